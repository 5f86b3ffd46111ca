import pytest
import trio

from gateway.observe.loop_stalls import WINDOW_SLOT_S, WINDOW_SLOTS, LoopStalls
from gateway.observe.registry import Histogram


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def passes(stalls: LoopStalls, clock: Clock, *spans: float) -> None:
    for span in spans:
        stalls.after_io_wait(0)
        clock.now += span
        stalls.before_io_wait(0)


def test_passes_are_measured() -> None:
    clock, histogram = Clock(), Histogram((0.01, 0.1))
    stalls = LoopStalls(histogram, clock)
    stalls.before_io_wait(0)  # installed in the middle of a pass: nothing to measure yet
    passes(stalls, clock, 0.0005, 0.002, 0.05, 0.0001)
    assert stalls.passes == 4
    assert stalls.longest_s == pytest.approx(0.05)
    assert stalls.busy_s == pytest.approx(0.0526)
    assert histogram.count == 2  # passes below a millisecond are no stalls


def test_waiting_for_io_is_not_busy() -> None:
    clock = Clock()
    stalls = LoopStalls(Histogram((1.0,)), clock)
    passes(stalls, clock, 0.001)
    clock.now += 5
    passes(stalls, clock, 0.001)
    assert stalls.busy_s == pytest.approx(0.002)


def test_the_recent_maximum_forgets() -> None:
    clock = Clock()
    stalls = LoopStalls(Histogram((1.0,)), clock)
    passes(stalls, clock, 0.5)
    clock.now += WINDOW_SLOT_S
    passes(stalls, clock, 0.2)
    assert stalls.recent_longest_s() == pytest.approx(0.5)
    clock.now += WINDOW_SLOT_S * (WINDOW_SLOTS - 1)
    assert stalls.recent_longest_s() == pytest.approx(0.2)
    passes(stalls, clock, 0.1)
    clock.now += WINDOW_SLOT_S * (WINDOW_SLOTS - 2)
    assert stalls.recent_longest_s() == pytest.approx(0.1)
    clock.now += WINDOW_SLOT_S * 1000
    assert stalls.recent_longest_s() == 0
    assert stalls.longest_s == pytest.approx(0.5)
    passes(stalls, clock, 0.05)
    assert stalls.recent_longest_s() == pytest.approx(0.05)


async def test_trio_tells_of_its_passes() -> None:
    clock = Clock()
    stalls = LoopStalls(Histogram((1.0,)), clock)
    trio.lowlevel.add_instrument(stalls)
    try:
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        clock.now += 3
        await trio.lowlevel.checkpoint()
    finally:
        trio.lowlevel.remove_instrument(stalls)
    assert stalls.passes >= 5
    assert stalls.longest_s == pytest.approx(3)
