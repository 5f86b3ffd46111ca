"""One reading of the slot table serves all who asked before it began."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.cluster.table_looks import TableLooks
from store.coordination import SLOTS, Slot, SlotTable
from store.interface import Unavailable


class Table:
    """A table whose readings wait until they are let go."""

    def __init__(self) -> None:
        self.version = 0
        self.begun = 0
        self.failing = False
        self.gate = trio.Event()

    async def read(self) -> SlotTable:
        self.begun += 1
        version = self.version
        await self.gate.wait()
        if self.failing:
            raise Unavailable("no quorum")
        return SlotTable(version, (Slot(),) * SLOTS)

    def let_go(self) -> None:
        self.gate.set()
        self.gate = trio.Event()


async def test_who_asks_during_a_reading_shares_the_next_one(nursery: trio.Nursery) -> None:
    table = Table()
    looks = TableLooks(table.read)
    seen: dict[str, int] = {}

    async def ask(name: str) -> None:
        seen[name] = (await looks.look()).version

    nursery.start_soon(ask, "first")
    await wait_all_tasks_blocked()
    table.version = 1
    for name in ("second", "third"):
        nursery.start_soon(ask, name)
    await wait_all_tasks_blocked()
    assert table.begun == 1
    table.let_go()
    await wait_all_tasks_blocked()
    assert seen == {"first": 0}
    table.let_go()
    await wait_all_tasks_blocked()
    assert seen == {"first": 0, "second": 1, "third": 1}
    assert looks.looks == 2


async def test_who_reads_for_others_may_be_cancelled(nursery: trio.Nursery) -> None:
    table = Table()
    looks = TableLooks(table.read)
    seen: list[int] = []

    async def ask() -> None:
        seen.append((await looks.look()).version)

    async with trio.open_nursery() as leaders:
        leaders.start_soon(ask)
        await wait_all_tasks_blocked()
        leaders.cancel_scope.cancel()
    nursery.start_soon(ask)
    nursery.start_soon(ask)
    await wait_all_tasks_blocked()
    for _ in range(2):
        table.let_go()
        await wait_all_tasks_blocked()
    assert len(seen) == 2


async def test_a_reading_that_fails_fails_for_all_who_wait_for_it(nursery: trio.Nursery) -> None:
    table = Table()
    looks = TableLooks(table.read)
    failed: list[str] = []

    async def ask() -> None:
        with pytest.raises(Unavailable) as caught:
            await looks.look()
        failed.append(str(caught.value))

    table.failing = True
    for _ in range(2):
        nursery.start_soon(ask)
    for _ in range(2):
        await wait_all_tasks_blocked()
        table.let_go()
    await wait_all_tasks_blocked()
    assert failed == ["no quorum"] * 2
    table.failing = False
    nursery.start_soon(looks.look)
    await wait_all_tasks_blocked()
    table.let_go()
