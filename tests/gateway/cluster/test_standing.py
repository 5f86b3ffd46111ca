"""Heads for a client that comes back: from memory, from others' hints that the slot table confirms, or from owners."""

from collections.abc import Callable, Mapping

import trio
from trio.testing import MockClock

from gateway.broker import Head, Origin
from gateway.cluster.own_heads import OwnHeads
from gateway.cluster.ports import SlotView
from gateway.cluster.slots import slot_of
from gateway.cluster.standing import ASK_MAX_S, Standing
from gateway.cluster.table_looks import TableLooks
from gateway.refusals import not_found
from protocol.frames import Command, Conversation, ConversationReply
from store.coordination import SLOTS, Slot, SlotTable
from store.interface import Unavailable

HERE, THERE = "a:1", "b:1"
OURS, THEIRS, UNWRITTEN = "g-ours", "g-theirs", "g-unwritten"


class Slots:
    """Who owns what as this node knows it, and as the table says."""

    def __init__(self) -> None:
        rows = [Slot(THERE, 5)] * SLOTS
        rows[slot_of(OURS)] = Slot(HERE, 3)
        self.table = self.written = SlotTable(1, tuple(rows))
        self.sure = True
        self.failing = False
        self.woken = 0

    def epoch(self, conversation_id: str) -> int | None:
        row = self.table.slots[slot_of(conversation_id)]
        return row.epoch if row.owner == HERE else None

    def may_speak(self, conversation_id: str, epoch: int) -> bool:
        return self.sure

    def wake(self) -> None:
        self.woken += 1

    async def read(self) -> SlotTable:
        await trio.lowlevel.checkpoint()
        if self.failing:
            raise Unavailable("no quorum")
        return self.written

    def take_over(self, conversation_id: str) -> None:
        """Somebody else claims a slot, and this node has not heard of it."""
        rows = list(self.written.slots)
        rows[slot_of(conversation_id)] = Slot("c:1", rows[slot_of(conversation_id)].epoch + 1)
        self.written = SlotTable(self.written.version + 1, tuple(rows))


class Shared:
    """What others wrote."""

    def __init__(self) -> None:
        self.on_void: Callable[[], None] = lambda: None
        self.counts_from = 0
        self.known = {THEIRS: Head(9, 90)}
        self.views: dict[str, SlotView] = {}
        self.meanwhile: Callable[[], None] = lambda: None

    async def heads(self, views: Mapping[str, SlotView]) -> Mapping[str, Head]:
        self.views.update(views)
        await trio.lowlevel.checkpoint()
        self.meanwhile()
        return {each: head for each, head in self.known.items() if each in views}


class Owners:
    """Owners that answer, refuse, or are silent."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.silent = False

    def submit(self, origin: Origin, command: Command) -> None:
        self.asked.append(command.conversation_id)
        if self.silent:
            return
        if command.conversation_id.startswith("g-none"):
            origin.receive(not_found().reply(command.id))
            return
        told = Conversation(command.conversation_id, 2, "", 4, 0, 0, None, [], 0)
        origin.receive(ConversationReply(command.id, told))


class Place:
    def __init__(self) -> None:
        self.own = OwnHeads()
        self.own.note(OURS, 3, Head(7, 70))
        self.slots = Slots()
        self.shared = Shared()
        self.owners = Owners()
        self.standing = Standing(self.own, self.slots, TableLooks(self.slots.read), self.owners)
        self.standing.shared = self.shared

    async def heads(self, *conversation_ids: str) -> dict[str, Head]:
        return await self.standing.heads("alice", conversation_ids)


async def test_each_head_comes_from_whoever_knows_it() -> None:
    place = Place()
    assert await place.heads(OURS, THEIRS, UNWRITTEN, "g-none") == {
        OURS: Head(7, 70),
        THEIRS: Head(9, 90),
        UNWRITTEN: Head(4, 0),
    }
    assert set(place.shared.views) == {THEIRS, UNWRITTEN, "g-none"}
    assert place.shared.views[THEIRS] == SlotView(slot_of(THEIRS), THERE, 5)
    assert sorted(place.owners.asked) == ["g-none", UNWRITTEN]
    standing = place.standing
    assert (standing.own_known, standing.shared_known, standing.asked) == (1, 1, 2)


async def test_a_head_of_an_owner_that_was_followed_meanwhile_is_not_believed() -> None:
    place = Place()
    place.shared.meanwhile = lambda: place.slots.take_over(THEIRS)
    assert await place.heads(THEIRS) == {THEIRS: Head(4, 0)}
    assert place.owners.asked == [THEIRS]
    assert place.slots.woken == 1


async def test_another_slots_change_does_not_matter() -> None:
    place = Place()
    place.shared.meanwhile = lambda: place.slots.take_over(OURS)
    assert await place.heads(THEIRS) == {THEIRS: Head(9, 90)}


async def test_nothing_is_believed_that_the_table_does_not_confirm() -> None:
    place = Place()
    place.slots.failing = True
    assert await place.heads(THEIRS) == {THEIRS: Head(4, 0)}


async def test_memory_is_not_believed_without_a_sure_lease_or_of_another_epoch() -> None:
    place = Place()
    place.slots.sure = False
    assert await place.heads(OURS) == {OURS: Head(4, 0)}
    place.slots.sure = True
    rows = list(place.slots.table.slots)
    rows[slot_of(OURS)] = Slot(HERE, 5)
    place.slots.table = SlotTable(2, tuple(rows))
    assert await place.heads(OURS) == {OURS: Head(4, 0)}


async def test_without_redis_owners_are_asked() -> None:
    place = Place()
    place.standing.shared = None
    assert await place.heads(OURS, THEIRS) == {OURS: Head(7, 70), THEIRS: Head(4, 0)}


async def test_who_does_not_answer_in_time_is_left_out(autojump_clock: MockClock) -> None:
    place = Place()
    place.owners.silent = True
    began_s = trio.current_time()
    assert await place.heads(OURS, THEIRS, UNWRITTEN) == {OURS: Head(7, 70), THEIRS: Head(9, 90)}
    assert trio.current_time() - began_s == ASK_MAX_S


async def test_what_memory_knows_costs_nothing() -> None:
    place = Place()
    await place.heads(OURS)
    assert (place.shared.views, place.owners.asked) == ({}, [])
