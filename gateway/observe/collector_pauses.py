"""How long Python's garbage collector stops everything."""

import gc
import time
from collections.abc import Callable
from typing import Literal

from gateway.observe.registry import Histogram


class CollectorPauses:
    """Measures each collection, from ``install`` to ``remove``.

    Attributes:
        longest_s: the longest pause, seconds.
        collections: collections by generation.
    """

    def __init__(self, histogram: Histogram, clock: Callable[[], float] = time.perf_counter) -> None:
        self.longest_s = 0.0
        self.collections: dict[int, int] = {0: 0, 1: 0, 2: 0}
        self._histogram = histogram
        self._clock = clock
        self._began = 0.0

    def install(self) -> None:
        """Begin to measure."""
        gc.callbacks.append(self.note)

    def remove(self) -> None:
        """Stop measuring."""
        gc.callbacks.remove(self.note)

    def note(self, phase: Literal["start", "stop"], info: dict[str, int]) -> None:
        """The collector's callback: it begins, or has finished. Whichever thread collects holds up all of them."""
        if phase == "start":
            self._began = self._clock()
            return
        pause = self._clock() - self._began
        self.collections[info["generation"]] += 1
        self.longest_s = max(self.longest_s, pause)
        self._histogram.observe(pause)
