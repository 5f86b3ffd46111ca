"""Nodes that cannot live beside each other: of one name, of versions too far apart, or asking other replicas."""

from typing import Any

import pytest
import trio
import trio.lowlevel
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from trio.testing import MockClock

from gateway.cluster.joining import CannotJoin, DatacentersApart, NameTaken, VersionsApart, conflict, wait_for_place
from gateway.cluster.versions import OWN, Versions, understood, versions_of
from gateway.owner.members import direct_id
from protocol.frames import Send
from store.coordination import LeaseRecord
from tests.fakes.coordination import MemoryCoordination
from tests.fakes.edge import FakeOrigin
from tests.gateway.cluster.cluster_parts import lease_of
from tests.gateway.cluster.cluster_world import NodePart, World, create, world

RENEW_S = 2.0
FAR = Versions(OWN.newest + 1, OWN.newest + 3).packed


def row(node: str, protocol: int = OWN.packed, nonce: int = 1) -> LeaseRecord:
    return LeaseRecord(f"{node}:x{nonce}", node, nonce, True, f"{node}.internal:8481", True, False, protocol)


def asking(node: str, datacenter: str) -> LeaseRecord:
    return replace(row(node), datacenter=datacenter)


ranges = st.tuples(st.integers(1, 99), st.integers(0, 9)).map(lambda pair: Versions(pair[0], sum(pair)))


@given(ranges, ranges)
def test_two_ranges_have_their_newest_common_version(one: Versions, other: Versions) -> None:
    both = set(range(one.oldest, one.newest + 1)) & set(range(other.oldest, other.newest + 1))
    assert one.common(other) == other.common(one) == max(both, default=0)
    assert versions_of(one.packed) == one


def test_a_lease_with_a_single_version_speaks_that() -> None:
    assert versions_of(1) == Versions(1, 1)
    assert understood(OWN.packed)
    assert not understood(FAR)


@pytest.mark.parametrize(
    ("other", "kind", "says"),
    [
        (row("a"), NameTaken, "a node named 'a' is running already at a.internal:8481: .* with --node-name"),
        (row("b", Versions(9, 11).packed), VersionsApart, "'b' at b.internal:8481 is of a newer tidegate: it speaks "
         "version 9 to 11 of the protocol between nodes, this one 5 to 7; start this node with a tidegate as new"),
        (row("b", Versions(3, 4).packed), VersionsApart, "older tidegate.* over a tidegate that speaks both, or stop"),
    ],
)  # fmt: skip
def test_what_stands_in_the_way_is_said_with_what_to_do(other: LeaseRecord, kind: type[CannotJoin], says: str) -> None:
    with pytest.raises(kind, match=says):
        raise conflict(row("a", Versions(5, 7).packed), other) or AssertionError


@pytest.mark.parametrize("versions", [Versions(3, 5), Versions(7, 9), Versions(5, 7)])
def test_neighbouring_versions_live_beside_each_other(versions: Versions) -> None:
    assert conflict(row("a", Versions(5, 7).packed), row("b", versions.packed)) is None


def test_a_node_that_asks_another_datacenter_is_told_which_one_to_ask() -> None:
    says = (
        r"'b' at b.internal:8481 asks .* datacenter 'west', this one 'east'.*set cassandra_datacenter to west here, or"
    )
    with pytest.raises(DatacentersApart, match=says):
        raise conflict(asking("a", "east"), asking("b", "west")) or AssertionError


@pytest.mark.parametrize(("own", "other"), [("east", "east"), ("", "west"), ("east", ""), ("", "")])
def test_whoever_asks_the_same_or_does_not_say_it_is_in_nobodys_way(own: str, other: str) -> None:
    assert conflict(asking("a", own), asking("b", other)) is None


async def waited_s(coordination: MemoryCoordination) -> float:
    began_s = trio.current_time()
    own = replace(row("a", nonce=0), datacenter="east")
    await wait_for_place(coordination, own, RENEW_S)
    return trio.current_time() - began_s


async def test_nobody_in_the_way_is_not_waited_for(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination()
    dead = replace(row("a"), alive=False)
    coordination.rows = {each.incarnation: each for each in (row("b"), dead, row("c", 1))}
    assert await waited_s(coordination) < 0.1


@pytest.mark.parametrize("late_renewals", [0, 1])
async def test_an_earlier_life_that_was_killed_is_waited_for_a_little(
    autojump_clock: MockClock, late_renewals: int
) -> None:
    coordination = MemoryCoordination()
    earlier = row("a")
    coordination.rows[earlier.incarnation] = earlier
    async with trio.open_nursery() as nursery:

        async def renew_late() -> None:
            await trio.sleep(3)
            coordination.rows[earlier.incarnation] = replace(earlier, nonce=1 + late_renewals)

        nursery.start_soon(renew_late)
        assert 5 <= await waited_s(coordination) < 6


@pytest.mark.parametrize(
    ("name", "protocol", "datacenter", "reason"),
    [("a", OWN.packed, "", NameTaken), ("b", FAR, "", VersionsApart), ("b", OWN.packed, "west", DatacentersApart)],
)
async def test_whoever_lives_is_in_the_way_and_stays_undisturbed(
    autojump_clock: MockClock, name: str, protocol: int, datacenter: str, reason: type[CannotJoin]
) -> None:
    coordination = MemoryCoordination()
    lease = lease_of(coordination, name, protocol=protocol, datacenter=datacenter)
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.run)
        await trio.sleep(30)
        with pytest.raises(reason):
            await waited_s(coordination)
        assert set(coordination.rows) == {lease.incarnation}
        nursery.cancel_scope.cancel()


async def test_a_store_that_is_away_is_waited_for(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination()
    coordination.away = True
    async with trio.open_nursery() as nursery:

        async def come_back() -> None:
            await trio.sleep(60)
            coordination.away = False

        nursery.start_soon(come_back)
        assert 60 <= await waited_s(coordination) < 63


async def run(part: NodePart, ended: list[CannotJoin]) -> None:
    """Run a node until it ends or is cancelled, and note why it could not go on."""
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(part.run)
            await trio.sleep_forever()
    except* CannotJoin as group:
        while isinstance(group, ExceptionGroup):
            (group,) = group.exceptions
        ended.append(group)


async def test_a_second_node_of_a_name_ends_before_anything_has_moved(autojump_clock: MockClock) -> None:
    async with world("a", "b") as each:
        before, rows = each.coordination.table, set(each.coordination.rows)
        ended: list[CannotJoin] = []
        with trio.fail_after(6):
            await run(NodePart(each, "a"), ended)
        assert [type(reason) for reason in ended] == [NameTaken]
        assert each.coordination.table == before
        assert set(each.coordination.rows) == rows


async def test_two_of_a_name_that_begin_together_leave_one_that_serves(autojump_clock: MockClock) -> None:
    async with world("b") as each, trio.open_nursery() as nursery:
        ended: list[CannotJoin] = []
        parts = [NodePart(each, "a"), NodePart(each, "a")]
        for part in parts:
            nursery.start_soon(run, part, ended)
        await trio.sleep(30)
        assert [type(reason) for reason in ended] == [NameTaken]
        own = {part.lease.incarnation for part in parts}
        alive = {row.incarnation for row in each.coordination.rows.values() if row.alive} & own
        assert len(alive) == 1, "who gave way gave its lease up"
        assert {slot.owner for slot in each.coordination.table.slots} & own == alive
        nursery.cancel_scope.cancel()


def part_in(world: World[Any], name: str, datacenter: str) -> NodePart:
    part = NodePart(world, name)
    part.lease.asks(datacenter)
    return part


async def test_a_node_that_asks_another_datacenter_ends_before_anything_has_moved(autojump_clock: MockClock) -> None:
    async with world() as each:
        each.nursery.start_soon(run, part_in(each, "a", "east"), [])
        await trio.sleep(10)
        before, rows = each.coordination.table, set(each.coordination.rows)
        ended: list[CannotJoin] = []
        with trio.fail_after(6):
            await run(part_in(each, "b", "west"), ended)
        assert [type(reason) for reason in ended] == [DatacentersApart]
        assert each.coordination.table == before
        assert set(each.coordination.rows) == rows


async def test_two_that_ask_different_datacenters_and_begin_together_own_nothing_until_one_has_given_way(
    autojump_clock: MockClock,
) -> None:
    async with world() as each:
        ended: list[CannotJoin] = []
        parts = [part_in(each, "a", "east"), part_in(each, "b", "west")]
        for part in parts:
            each.nursery.start_soon(run, part, ended)
        await trio.sleep(15)
        assert [type(reason) for reason in ended] == [DatacentersApart]
        assert sorted(part.cluster.ownership.owned for part in parts) == [0, 1024]
        assert {slot.epoch for slot in each.coordination.table.slots} == {1}, "who gave way had claimed some"


async def test_a_node_of_another_datacenter_that_slipped_in_gets_no_slots_and_no_leaver_waits_for_it(
    autojump_clock: MockClock,
) -> None:
    async with world() as each:
        a = part_in(each, "a", "east")
        await each.nursery.start(a.run)
        await trio.sleep(30)
        late = lease_of(each.coordination, "b", datacenter="west")
        await each.nursery.start(late.run)
        await trio.sleep(30)
        assert a.cluster.ownership.owned == 1024
        with trio.fail_after(5):
            await a.cluster.leave()


async def test_a_stranger_that_lives_here_gets_no_slots_and_harms_nobody(autojump_clock: MockClock) -> None:
    async with world("a") as each:
        a = each.parts["a"]
        stranger = lease_of(each.coordination, "stranger", protocol=FAR)
        await each.nursery.start(stranger.run)
        await trio.sleep(30)
        assert a.cluster.ownership.owned == 1024
        alice = FakeOrigin("alice")
        await create(each, a, alice, "bob")
        a.submit(alice, Send(9, direct_id("alice", "bob"), "m1", "m1"))
        await trio.sleep(1)
        assert a.acks(alice) == [9]
        with trio.fail_after(5):
            await a.cluster.leave()
