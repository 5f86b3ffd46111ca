"""A supervisor whose node processes are made up: they end when the test, or an order, says so."""

from collections.abc import Callable

import trio

from gateway.config import Settings
from gateway.processes import Supervisor
from gateway.upgrade.control import Line

GRACE_S = 20.0


class FakeChild:
    """A node process that ends when the test, or an order, says so."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self.started_s = trio.current_time()
        self.ready = trio.Event()
        self.address = f"http://{name}"
        self.orders: list[str] = []
        self.on_line: Callable[[Line], None] = lambda _line: None
        self.link_fd = -1
        self.successors: list[int] = []
        self.deaf = False
        self.drain_code = 0
        self._code: int | None = None
        self._ended = trio.Event()

    def exit(self, code: int) -> None:
        self._code = code
        self._ended.set()

    async def run(self) -> int:
        await self._ended.wait()
        assert self._code is not None
        return self._code

    def drain(self) -> None:
        self._obey("drain", self.drain_code)

    def end(self) -> None:
        self._obey("end", 0)

    def kill(self) -> None:
        self.orders.append("kill")
        self.exit(137)

    def _obey(self, order: str, code: int) -> None:
        self.orders.append(order)
        if not self.deaf:
            self.exit(code)


class World:
    """A supervisor and all the processes that it has started."""

    def __init__(self, count: int, adopted: dict[str, FakeChild] | None = None) -> None:
        self.children: list[FakeChild] = []
        self.refusals: list[OSError] = []
        self.announced = 0
        self.code: int | None = None
        nodes = [Settings(node_name=f"n{number}", drain_grace_s=GRACE_S) for number in range(1, count + 1)]
        self.supervisor = Supervisor(nodes, self.launch, adopted)

    async def launch(self, settings: Settings, predecessor: FakeChild | None = None) -> FakeChild:
        if self.refusals:
            raise self.refusals.pop()
        child = FakeChild(settings.node_name, 100 + len(self.children))
        self.children.append(child)
        if predecessor is not None:
            predecessor.successors.append(child.pid)
        return child

    def of(self, name: str) -> list[FakeChild]:
        """All processes of one node, oldest first."""
        return [child for child in self.children if child.name == name]

    async def run(self) -> None:
        self.code = await self.supervisor.run(self._announce)

    async def start(self, nursery: trio.Nursery) -> None:
        """All processes run and are ready."""
        nursery.start_soon(self.run)
        await trio.testing.wait_all_tasks_blocked()
        while not self.announced:
            for child in self.children:
                child.ready.set()
            await trio.testing.wait_all_tasks_blocked()

    def _announce(self) -> None:
        self.announced += 1
