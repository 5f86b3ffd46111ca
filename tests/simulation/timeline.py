"""When things happen in a simulated world: a virtual clock that jumps, and one list of what is due.

A message on its way costs no task, only an entry of that list; so a minute of a cluster takes less than half a second.
"""

import heapq
from collections.abc import Callable
from math import inf

import trio


class VirtualClock(trio.abc.Clock):
    """Stands still while anything can run, and jumps to the next deadline when nothing can."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def start_clock(self) -> None:
        """See trio.abc.Clock."""

    def current_time(self) -> float:
        """See trio.abc.Clock."""
        return self._now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """See trio.abc.Clock. Asked only when no task can run: what waits for no deadline, waits for nothing."""
        if deadline != inf:
            self._now_s = max(self._now_s, deadline)
        return 0.0


class Timeline:
    """Calls functions at their times, in order; those of one time in the order in which they were entered."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0
        self._scope = trio.CancelScope()

    @property
    def now_s(self) -> float:
        """The time, seconds."""
        return trio.current_time()

    def at(self, when_s: float, call: Callable[[], object]) -> None:
        """Call it then, whatever becomes of whoever wanted it."""
        self._count += 1
        heapq.heappush(self._due, (when_s, self._count, call))
        self._scope.deadline = min(self._scope.deadline, when_s)

    def after(self, delay_s: float, call: Callable[[], object]) -> None:
        """The same, so many seconds from now."""
        self.at(trio.current_time() + delay_s, call)

    async def run(self) -> None:
        """Make things happen until cancelled."""
        due = self._due
        while True:
            while due and due[0][0] <= trio.current_time():
                heapq.heappop(due)[2]()
            with trio.CancelScope(deadline=due[0][0] if due else inf) as self._scope:
                await trio.sleep_forever()
