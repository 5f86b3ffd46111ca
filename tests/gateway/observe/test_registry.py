import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.observe.registry import Histogram, MetricRegistry

BOUNDS = (0.1, 1.0, 10.0)


def samples(registry: MetricRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(registry.render().decode())
        for sample in family.samples
    }


def test_values_are_read_when_asked() -> None:
    registry = MetricRegistry()
    counts = {"sends": 1, "depth": 5}
    by_code = {1000: 2, 4000: 1}
    registry.counter("sends", "Sends.", lambda: counts["sends"])
    registry.gauge("depth", "Depth.", lambda: counts["depth"])
    registry.counters("closes", "Closes.", "code", lambda: by_code)
    registry.info("node", "Node.", {"node": 'a"b\\c\n'})
    assert samples(registry)["tidegate_sends_total", ()] == 1
    counts["sends"] = 7
    by_code[1012] = 3
    found = samples(registry)
    assert found["tidegate_sends_total", ()] == 7
    assert found["tidegate_depth", ()] == 5
    assert found["tidegate_closes_total", (("code", "4000"),)] == 1
    assert found["tidegate_closes_total", (("code", "1012"),)] == 3
    assert found["tidegate_node_info", (("node", 'a"b\\c\n'),)] == 1


def test_a_name_is_taken_once() -> None:
    registry = MetricRegistry()
    registry.gauge("x", "X.", lambda: 0)
    with pytest.raises(AssertionError, match="metric tidegate_x exists already"):
        registry.gauge("x", "X.", lambda: 0)
    assert MetricRegistry().names() == []


def test_a_histogram_in_text() -> None:
    registry = MetricRegistry()
    histogram = registry.histogram("wait_seconds", "Waits.", BOUNDS)
    for value, count in ((0.05, 1), (0.1, 2), (0.5, 4), (100.0, 8)):
        histogram.observe(value, count)
    found = samples(registry)
    assert [found["tidegate_wait_seconds_bucket", (("le", bound),)] for bound in ("0.1", "1.0", "10.0", "+Inf")] == [
        3,
        7,
        7,
        15,
    ]
    assert found["tidegate_wait_seconds_count", ()] == 15
    assert found["tidegate_wait_seconds_sum", ()] == pytest.approx(802.25)


@given(st.lists(st.floats(0, 20), max_size=30))
def test_a_bucket_counts_what_is_at_most_its_bound(values: list[float]) -> None:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)
    for bound, count in histogram.buckets():
        assert count == sum(value <= float(bound) for value in values)
    assert histogram.count == len(values)


def test_bounds_must_increase() -> None:
    for bounds in ((1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(AssertionError):
            Histogram(bounds)
