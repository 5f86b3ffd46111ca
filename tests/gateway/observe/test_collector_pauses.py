import gc

import pytest

from gateway.observe.collector_pauses import CollectorPauses
from gateway.observe.registry import Histogram


def test_pauses_are_measured_while_installed() -> None:
    times = iter([1.0, 1.5, 2.0, 2.25])
    histogram = Histogram((0.3, 1.0))
    pauses = CollectorPauses(histogram, lambda: next(times))
    enabled = gc.isenabled()
    gc.disable()  # only the collections below
    try:
        pauses.install()
        gc.collect(2)
        gc.collect(0)
        pauses.remove()
        gc.collect(2)
    finally:
        if enabled:
            gc.enable()
    assert pauses.collections == {0: 1, 1: 0, 2: 1}
    assert pauses.longest_s == pytest.approx(0.5)
    assert histogram.buckets() == [("0.3", 1.0), ("1.0", 2.0), ("+Inf", 2.0)]
    assert pauses.note not in gc.callbacks
