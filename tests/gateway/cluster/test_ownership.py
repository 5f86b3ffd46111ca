"""Leases, watching and slots of several nodes in one process, on a virtual clock."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from gateway.cluster.joining import NameTaken
from gateway.cluster.links import REACH_MAX_S
from gateway.cluster.ownership import HANDOVER_RETRY_S, SLOT_RELEASE_MAX_S, SlotOwnership
from gateway.cluster.slots import rightful_owners, slot_of
from store.coordination import SLOTS, LeaseRecord, Slot
from tests.fakes.coordination import MemoryCoordination
from tests.gateway.cluster.cluster_parts import lease_of, watch_of

HANDOVER_MAX_S = SLOT_RELEASE_MAX_S + REACH_MAX_S


class Holder:
    """A SlotHolder that takes ``release_s`` to release, and ``reach_s`` to reach heirs."""

    def __init__(self) -> None:
        self.release_s = 0.1
        self.released: list[set[int]] = []
        self.reach_s = 0.0
        self.reached: list[set[str]] = []
        self.silent = ""
        self.dropped = 0
        self.reads = 0
        self.read_up_s = 0.0

    async def release(self, slots: Collection[int]) -> None:
        await trio.sleep(self.release_s)
        self.released.append(set(slots))

    async def reach(self, heirs: Collection[str]) -> Collection[str]:
        self.reached.append(set(heirs))
        await trio.sleep(min(self.reach_s, REACH_MAX_S))
        return [heir for heir in heirs if self.reach_s < REACH_MAX_S and heir.split(":")[0] not in self.silent]

    async def read_up(self) -> None:
        self.reads += 1
        await trio.sleep(self.read_up_s)

    def drop_all(self) -> None:
        self.dropped += 1


class Part:
    """What of a node takes part in ownership."""

    def __init__(self, coordination: MemoryCoordination, node: str, owns: bool = True) -> None:
        self.lease = lease_of(coordination, node, owns=owns)
        self.watch = watch_of(coordination, self.lease)
        self.holder = Holder()
        self.ownership = SlotOwnership(coordination, self.lease, self.watch, self.holder)
        self.scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.lease.run)
                await nursery.start(self.watch.run)
                await nursery.start(self.ownership.run)
                task_status.started()

    @property
    def owned(self) -> int:
        return self.ownership.owned


@asynccontextmanager
async def cluster(*nodes: str) -> AsyncIterator[tuple[MemoryCoordination, list[Part], trio.Nursery]]:
    coordination = MemoryCoordination()
    async with trio.open_nursery() as nursery:
        parts = [Part(coordination, node) for node in nodes]
        for part in parts:
            await nursery.start(part.run)
        await trio.sleep(5)
        yield coordination, parts, nursery
        nursery.cancel_scope.cancel()


def assert_one_owner_each(parts: Collection[Part]) -> None:
    for slot in range(SLOTS):
        speakers = [part for part in parts if part.ownership._epochs[slot] and part.lease.valid()]
        assert len(speakers) == 1, f"slot {slot} has {len(speakers)} owners"


def test_a_slot_for_every_conversation_and_a_fair_share_for_every_node() -> None:
    counts = [0] * SLOTS
    for number in range(20_000):
        counts[slot_of(f"d{number}")] += 1
    assert min(counts) > 0
    four = rightful_owners(("a", "b", "c", "d"))
    assert all(SLOTS / 4 * 0.75 < four.count(node) < SLOTS / 4 * 1.25 for node in "abcd")
    three = rightful_owners(("a", "b", "c"))
    assert all(before == after for before, after in zip(four, three, strict=True) if before != "d")
    assert rightful_owners(()) == ("",) * SLOTS


async def test_the_first_node_takes_all_and_the_second_its_share(autojump_clock: MockClock) -> None:
    async with cluster("a") as (coordination, parts, nursery):
        assert parts[0].owned == SLOTS
        assert coordination.changes == 1, "one write for all slots"
        second = Part(coordination, "b")
        await nursery.start(second.run)
        await trio.sleep(5)
        assert_one_owner_each([*parts, second])
        assert parts[0].owned + second.owned == SLOTS
        assert second.owned == rightful_owners(("a", "b")).count("b")
        assert parts[0].holder.released[0] == {
            number for number, node in enumerate(rightful_owners(("a", "b"))) if node == "b"
        }
        assert coordination.changes == 3, "announced, then handed over"
        assert {slot.epoch for slot in coordination.table.slots} == {1, 2}


async def test_the_slots_of_a_silent_node_are_claimed_after_a_lease_and_not_before(autojump_clock: MockClock) -> None:
    async with cluster("a", "b") as (_, (first, second), _nursery):
        before = first.owned
        died_s = trio.current_time()
        second.scope.cancel()
        while first.owned == before:  # noqa: ASYNC110 - virtual time
            await trio.sleep(0.1)
        assert 10.0 - 2.0 <= trio.current_time() - died_s <= 10.0 + 2.5
        assert not second.lease.valid(), "silent before its slots were taken"
        assert first.owned == SLOTS


async def test_what_the_dead_said_is_read_before_their_slots_are_claimed(autojump_clock: MockClock) -> None:
    async with cluster("a", "b") as (_, (first, second), _nursery):
        assert first.holder.reads == 0, "nobody had the first slots before"
        before = first.owned
        first.holder.read_up_s = 1.5
        second.scope.cancel()
        while not first.holder.reads:  # noqa: ASYNC110 - virtual time
            await trio.sleep(0.1)
        await trio.sleep(1.3)
        assert first.owned == before
        await trio.sleep(0.3)
        assert first.owned == SLOTS
        assert first.holder.reads == 1


async def test_a_short_silence_moves_nothing(autojump_clock: MockClock) -> None:
    async with cluster("a", "b") as (coordination, (first, second), _):
        version = coordination.table.version
        coordination.away = True
        await trio.sleep(60)  # longer than every lease, but nobody can see anything
        assert not first.lease.valid()
        coordination.away = False
        await trio.sleep(15)
        assert coordination.table.version == version
        assert_one_owner_each([first, second])


async def test_a_node_that_leaves_gives_everything_away_first(autojump_clock: MockClock) -> None:
    async with cluster("a", "b", "c") as (_, (first, second, third), _nursery):
        second.lease.drain()
        await trio.sleep(5)
        assert second.owned == 0
        assert second.ownership.handovers > 200
        assert_one_owner_each([first, third])


async def test_what_a_leaving_node_gives_does_not_go_back_because_its_heir_has_not_heard_of_that(
    autojump_clock: MockClock,
) -> None:
    async with cluster("a", "b") as (coordination, (first, second), _):
        before = coordination.changes
        await trio.sleep(0.2)  # just after the heir's look at the leases
        first.lease.drain()
        await trio.sleep(0.01)
        first.watch.wake()
        while first.owned:
            second.ownership.wake()  # it hears at once that the table changed, though not why
            await trio.sleep(0.01)
        for _ in range(10):
            second.ownership.wake()
            await trio.sleep(0.01)
        assert second.owned == SLOTS
        assert second.ownership.handovers == 0
        assert coordination.changes - before == 2, "announced, then handed over"


async def test_a_slot_that_cannot_be_released_stays(autojump_clock: MockClock) -> None:
    async with cluster("a") as (coordination, (first,), nursery):
        first.holder.release_s = 60
        second = Part(coordination, "b")
        await nursery.start(second.run)
        await trio.sleep(HANDOVER_MAX_S + 3)
        assert first.owned == SLOTS
        assert all(first.ownership._accepted), "accepted again"
        first.holder.release_s = 0.1
        await trio.sleep(20)
        assert_one_owner_each([first, second])
        assert second.owned


async def test_only_an_heir_that_reads_what_it_is_told_gets_slots(autojump_clock: MockClock) -> None:
    async with cluster("a") as (coordination, (first,), nursery):
        first.holder.silent = "b"
        second, third = Part(coordination, "b"), Part(coordination, "c")
        await nursery.start(second.run)
        await nursery.start(third.run)
        await trio.sleep(HANDOVER_MAX_S + 3)
        assert set().union(*first.holder.reached) == {second.lease.incarnation, third.lease.incarnation}
        assert (second.owned, third.owned) == (0, rightful_owners(("a", "b", "c")).count("c"))
        assert first.ownership.handovers == third.owned
        assert all(first.ownership._accepted[slot] for slot in range(SLOTS) if first.ownership._epochs[slot])
        first.holder.silent = ""
        await trio.sleep(HANDOVER_RETRY_S + 3)
        assert second.owned == rightful_owners(("a", "b", "c")).count("b")
        assert_one_owner_each([first, second, third])


async def test_an_heir_has_its_time_to_read_however_long_the_appends_took(autojump_clock: MockClock) -> None:
    async with cluster("a") as (coordination, (first,), nursery):
        first.holder.release_s, first.holder.reach_s = SLOT_RELEASE_MAX_S - 0.1, REACH_MAX_S - 0.1
        second = Part(coordination, "b")
        await nursery.start(second.run)
        while not first.holder.reached:  # noqa: ASYNC110  # virtual time
            await trio.sleep(0.1)
        while not second.owned:  # noqa: ASYNC110  # virtual time
            await trio.sleep(0.1)
        assert first.holder.reached == [{second.lease.incarnation}]


async def test_a_handover_is_called_off_while_its_heir_would_have_no_time_to_read(autojump_clock: MockClock) -> None:
    async with cluster("a") as (coordination, (first,), nursery):
        first.holder.release_s = SLOT_RELEASE_MAX_S + 0.1
        second = Part(coordination, "b")
        await nursery.start(second.run)
        await trio.sleep(HANDOVER_MAX_S + 3)
        assert (first.holder.reached, second.owned) == ([], 0)


@pytest.mark.parametrize("what", ["slots", "renew", "mark"])
async def test_lost_answers_never_make_two_owners(autojump_clock: MockClock, what: str) -> None:
    async with cluster("a") as (coordination, parts, nursery):
        count = 0

        def lose(change: str) -> bool:
            nonlocal count
            count += change == what
            return change == what and count % 2 == 1

        coordination.lose_answer = lose
        others = [Part(coordination, node) for node in ("b", "c")]
        for other in others:
            await nursery.start(other.run)
        await trio.sleep(20)
        assert_one_owner_each([*parts, *others])
        others[0].scope.cancel()
        await trio.sleep(30)
        assert_one_owner_each([*parts, others[1]])
        assert count > 0


async def test_a_node_without_the_owner_role_gets_no_slots(autojump_clock: MockClock) -> None:
    async with cluster("a") as (coordination, (first,), nursery):
        edge = Part(coordination, "edge", owns=False)
        await nursery.start(edge.run)
        await trio.sleep(10)
        assert (first.owned, edge.owned) == (SLOTS, 0)
        assert edge.ownership.owner_of(7) == first.lease.incarnation


async def test_an_owner_that_the_last_look_did_not_see_yet_is_not_taken_for_dead(autojump_clock: MockClock) -> None:
    """It took its lease after that look, and was handed slots before this node read the table."""
    coordination = MemoryCoordination()
    async with trio.open_nursery() as nursery:
        first = Part(coordination, "a")
        await nursery.start(first.lease.run)
        await first.watch.look()
        await first.ownership.look()
        assert first.owned == SLOTS
        # Neither watch nor ownership runs by itself: nothing comes between the steps that this is about.
        await first.watch.look()
        late = LeaseRecord("z:late", "z", 1, True, "z:1", True, False, 1)
        assert await coordination.take_lease(late)
        table = tuple(Slot("z:late", slot.epoch + 1) for slot in coordination.table.slots)
        assert await coordination.change_slots(coordination.table.version, table)
        await first.ownership.look()
        assert {slot.owner for slot in coordination.table.slots} == {"z:late"}
        assert first.owned == 0
        nursery.cancel_scope.cancel()


async def test_two_nodes_of_one_name(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination()
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the nursery is what raises
        async with trio.open_nursery() as nursery:
            await nursery.start(Part(coordination, "a").run)
            await trio.sleep(30)
            await nursery.start(Part(coordination, "a").run)
            await trio.sleep(30)
    assert caught.group_contains(NameTaken, match="a node named 'a' is running already at a:1", depth=None)


async def test_a_second_node_of_the_same_name_gives_way_however_long_the_store_let_it_wait(
    autojump_clock: MockClock,
) -> None:
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the nursery is what raises
        async with cluster("a") as (coordination, _, nursery):
            await trio.sleep(30)
            second = Part(coordination, "a")
            coordination.away = True
            nursery.start_soon(nursery.start, second.run)
            await trio.sleep(25)
            coordination.away = False
            await trio.sleep(30)
    assert caught.group_contains(NameTaken, depth=None)


async def test_the_late_last_renewal_of_an_earlier_life_is_no_second_node(autojump_clock: MockClock) -> None:
    async with cluster("a", "b") as (coordination, (first, second), nursery):
        second.scope.cancel()
        await trio.sleep(1)
        again = Part(coordination, "b")
        await nursery.start(again.run)
        await trio.sleep(2)
        dead = coordination.rows[second.lease.incarnation]
        coordination.rows[dead.incarnation] = replace(dead, nonce=dead.nonce + 1)
        await trio.sleep(20)
        assert_one_owner_each([first, again])
        assert again.owned > 0


async def test_the_next_life_of_a_killed_node_gets_its_slots_back(autojump_clock: MockClock) -> None:
    async with cluster("a", "b") as (coordination, (first, second), nursery):
        share = second.owned
        second.scope.cancel()
        await trio.sleep(1)
        again = Part(coordination, "b")
        await nursery.start(again.run)
        await trio.sleep(20)
        assert again.owned == share
        assert_one_owner_each([first, again])
        assert second.lease.incarnation not in coordination.rows, "no slot refers to it: its row is gone"
