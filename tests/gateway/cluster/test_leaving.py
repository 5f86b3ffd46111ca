"""A node that leaves gives all it owns to whoever is there, on a virtual clock."""

from collections.abc import Collection

import pytest
import trio
from trio.testing import MockClock

from gateway.cluster.links import REACH_MAX_S
from protocol.frames import Send
from store.coordination import LeaseRecord
from tests.fakes.edge import FakeOrigin
from tests.gateway.cluster.cluster_world import create, world


async def test_an_heir_that_came_after_the_last_look_is_found(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reads_at_once(heirs: Collection[str]) -> Collection[str]:
        return heirs

    async with world("a") as each:
        leaving = each.parts["a"].cluster
        await each.coordination.take_lease(LeaseRecord("z:new", "z", 1, True, "z:1", True, False, 1))
        assert "z:new" not in leaving.watch.live
        monkeypatch.setattr(leaving.links, "reach", reads_at_once)
        with trio.fail_after(10):
            await leaving.leave()
        assert {slot.owner for slot in each.coordination.table.slots} == {"z:new"}


async def test_nobody_is_waited_for_when_nobody_is_there(autojump_clock: MockClock) -> None:
    async with world("a") as each:
        leaving = each.parts["a"].cluster
        with trio.fail_after(10):
            await leaving.leave()
        assert {slot.owner for slot in each.coordination.table.slots} == {leaving.incarnation}


async def test_what_an_heir_delivers_comes_behind_what_was_delivered_before_however_late_that_reaches_it(
    autojump_clock: MockClock,
) -> None:
    async with world("a", "b") as each:
        a, b = each.parts["a"], each.parts["b"]
        alice, alice_elsewhere = FakeOrigin("alice"), FakeOrigin("alice")
        conversation_id, peer = each.conversation_owned_by(a, "alice")
        each.network.place(peer, b.lease.incarnation)
        await create(each, a, alice, peer)
        b.connection.late_s = REACH_MAX_S / 2
        a.submit(alice, Send(5, conversation_id, "m1", "m1"))
        await trio.sleep(0.1)
        assert a.acks(alice) == [5]
        assert b.bodies(peer) == [], "it has not come yet"
        await a.cluster.leave()
        b.cluster.ownership.wake()
        b.submit(alice_elsewhere, Send(6, conversation_id, "m2", "m2"))
        await trio.sleep(5)
        assert b.acks(alice_elsewhere) == [6]
        assert b.bodies(peer) == ["m1", "m2"]


async def test_an_heir_that_is_not_reached_gets_the_slots_at_last(autojump_clock: MockClock) -> None:
    async with world("a", "b") as each:
        a, b = each.parts["a"].cluster, each.parts["b"].cluster
        each.network.drop = lambda receiver, _parcel: receiver == b.incarnation
        with trio.move_on_after(a.lease.lease_s):
            await a.leave()
        assert a.incarnation in {slot.owner for slot in each.coordination.table.slots}
        with trio.fail_after(2 * REACH_MAX_S + 1):
            await a.leave()
        assert {slot.owner for slot in each.coordination.table.slots} == {b.incarnation}
