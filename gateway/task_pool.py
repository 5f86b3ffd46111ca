"""Short jobs that have to wait for something: a bounded number runs at once, a bounded number waits for a turn."""

from collections import deque
from collections.abc import Awaitable, Callable

import trio

Job = Callable[[], Awaitable[None]]


class TaskPool:
    """Runs jobs in tasks of one nursery; a job that fails takes its nursery down, so that no failure is lost.

    Attributes:
        running: jobs that have a task now.
        refused: jobs that were turned away because too many waited.
        closed: while True, every job is turned away; those taken before go on.
    """

    def __init__(self, running_max: int, waiting_max: int) -> None:
        self.running = 0
        self.refused = 0
        self.closed = False
        self._running_max = running_max
        self._waiting_max = waiting_max
        self._waiting: deque[Job] = deque()
        self._nursery: trio.Nursery | None = None

    @property
    def waiting(self) -> int:
        """Jobs that wait for a turn."""
        return len(self._waiting)

    def start(self, job: Job) -> bool:
        """Run ``job`` now or when its turn comes; False, and nothing happens, when too many wait or the pool is closed.

        A plain call. Jobs begin in the order in which they came.
        """
        if self._nursery is None or self.closed or len(self._waiting) >= self._waiting_max:
            self.refused += 1
            return False
        if self.running < self._running_max:
            self.running += 1
            self._nursery.start_soon(self._work, job)
        else:
            self._waiting.append(job)
        return True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be the nursery of the jobs until cancelled; jobs under way are then cancelled, waiting ones forgotten."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:  # before the nursery closes: a job that ends may still ask for another
                self._nursery = None
                self._waiting.clear()

    async def _work(self, job: Job) -> None:
        try:
            await job()
            while self._waiting:
                await self._waiting.popleft()()
        finally:
            self.running -= 1
