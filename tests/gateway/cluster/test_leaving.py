"""A node that leaves gives all it owns to whoever is there, on a virtual clock."""

import trio
from trio.testing import MockClock

from store.coordination import LeaseRecord
from tests.gateway.cluster.cluster_world import world


async def test_an_heir_that_came_after_the_last_look_is_found(autojump_clock: MockClock) -> None:
    async with world("a") as each:
        leaving = each.parts["a"].cluster
        await each.coordination.take_lease(LeaseRecord("z:new", "z", 1, True, "z:1", True, False, 1))
        assert "z:new" not in leaving.watch.live
        with trio.fail_after(10):
            await leaving.leave()
        assert {slot.owner for slot in each.coordination.table.slots} == {"z:new"}


async def test_nobody_is_waited_for_when_nobody_is_there(autojump_clock: MockClock) -> None:
    async with world("a") as each:
        leaving = each.parts["a"].cluster
        with trio.fail_after(10):
            await leaving.leave()
        assert {slot.owner for slot in each.coordination.table.slots} == {leaving.incarnation}
