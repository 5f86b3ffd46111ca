"""How long the event loop keeps others waiting: the time from one look at its sockets to the next."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from gateway.observe.registry import Histogram

OBSERVED_STALL_S: Final = 0.001
"""Seconds: shorter passes of the loop are not worth an observation; they only count as busy time."""

WINDOW_SLOT_S: Final = 10.0
WINDOW_SLOTS: Final = 6
"""The recent maximum covers the last six slots of ten seconds: at least 50 seconds, at most a minute."""


class LoopStalls(trio.abc.Instrument):
    """Measures each pass of the loop: what is ready when it polls waits at most until the next poll.

    An instrument rather than a task that measures its own lateness, because such a task sees only the stalls that hit
    its deadline. Costs two clock readings and about a microsecond per pass, whatever happens in it.

    Attributes:
        busy_s: seconds in which the loop did not wait, ever.
        longest_s: the longest pass ever, seconds.
        passes: how many there were.
    """

    def __init__(self, histogram: Histogram, clock: Callable[[], float] = time.perf_counter) -> None:
        self.busy_s = 0.0
        self.longest_s = 0.0
        self.passes = 0
        self._histogram = histogram
        self._clock = clock
        self._began = 0.0  # when the pass in progress began; 0 before the first
        self._slots: deque[float] = deque([0.0], maxlen=WINDOW_SLOTS)
        self._slot_ends = clock() + WINDOW_SLOT_S

    def after_io_wait(self, timeout: float) -> None:
        """Trio has polled: a pass begins."""
        self._began = self._clock()

    def before_io_wait(self, timeout: float) -> None:
        """Trio is about to poll: a pass is over."""
        if not self._began:
            return
        now = self._clock()
        span = now - self._began
        self.passes += 1
        self.busy_s += span
        if now >= self._slot_ends:
            self._turn_slots(now)
        if span > self._slots[-1]:
            self._slots[-1] = span
            self.longest_s = max(self.longest_s, span)
        if span >= OBSERVED_STALL_S:
            self._histogram.observe(span)

    def recent_longest_s(self) -> float:
        """The longest pass of about the last minute, seconds."""
        now = self._clock()
        if now >= self._slot_ends:
            self._turn_slots(now)
        return max(self._slots)

    def _turn_slots(self, now: float) -> None:
        behind = int((now - self._slot_ends) // WINDOW_SLOT_S) + 1
        self._slots.extend([0.0] * min(behind, WINDOW_SLOTS))
        self._slot_ends += behind * WINDOW_SLOT_S
