"""Sync in a cluster, where who is in and how far the log is are two reads: who is removed between them."""

from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.config import Settings
from gateway.edge.catchup import Catchup
from gateway.owner.owner import Owner
from gateway.owner.ports import SingleOwner
from protocol.codec import decode_entry
from protocol.frames import AddMembers, ConversationKind, RemoveMembers, Sync
from tests.fakes.edge import FakeOrigin
from tests.gateway.edge.catchup_place import Place


class HeadsElsewhere:
    """Heads as the owner on another node knows them, told when ``told`` is set."""

    def __init__(self, owner):
        self._owner = owner
        self.told = trio.Event()

    async def heads(self, user, conversation_ids):
        await self.told.wait()
        return {each: self._owner.head(each)[1] for each in conversation_ids}


@pytest.fixture
async def place(nursery):
    """A node whose conversations another one owns."""
    settings = Settings()
    made = Place(settings)
    idle = Owner(settings, made.store, made.edge, SingleOwner(), made.clock_us)
    made.catchup = Catchup(settings, made.store, idle, made.edge)
    for part in (made.store, made.owner, made.catchup):
        await nursery.start(part.run)
    return made


async def begin_sync(place, origin, cursors):
    """A Sync that knows which conversations there are, and not yet how far they are."""
    place.catchup.heads = HeadsElsewhere(place.owner)
    place.catchup.submit(origin, Sync(3, cursors))
    await wait_all_tasks_blocked()


async def end_sync(place, origin):
    place.catchup.heads.told.set()
    await wait_all_tasks_blocked()
    (page,) = place.edge.replies_to(origin)
    assert page.done
    (synced,) = page.conversations
    return synced


@pytest.mark.parametrize("kind", [ConversationKind.GROUP, ConversationKind.CHANNEL])
@pytest.mark.parametrize("behind", [1, 150])
async def test_who_was_removed_gets_nothing_behind_it(place, kind, behind):
    alice, bob = FakeOrigin("alice"), FakeOrigin("bob")
    conversation_id = await place.create(alice, kind, "bob")
    await begin_sync(place, bob, {conversation_id: 1})
    await place.own(alice, RemoveMembers(1, conversation_id, "r1", ["bob"]))
    await place.fill(alice, conversation_id, behind, "not for bob")
    synced = await end_sync(place, bob)
    assert synced.removed
    assert not synced.entries


async def test_who_was_removed_and_added_again_gets_it_all(place):
    alice, bob = FakeOrigin("alice"), FakeOrigin("bob")
    conversation_id = await place.create(alice, ConversationKind.GROUP, "bob")
    await place.own(alice, RemoveMembers(1, conversation_id, "r1", ["bob"]))
    await place.own(alice, AddMembers(1, conversation_id, "a1", ["bob"]))
    await begin_sync(place, bob, {})
    await place.own(alice, RemoveMembers(1, conversation_id, "r2", ["bob"]))
    await place.own(alice, AddMembers(1, conversation_id, "a2", ["bob", "carol"]))
    await place.own(alice, RemoveMembers(1, conversation_id, "r3", ["carol"]))
    synced = await end_sync(place, bob)
    assert [decode_entry(bytes(raw)).seq for raw in synced.entries] == [1, 2, 3, 4, 5, 6]


async def test_a_removal_of_before_counts_for_nothing(place):
    alice, bob = FakeOrigin("alice"), FakeOrigin("bob")
    conversation_id = await place.create(alice, ConversationKind.GROUP, "bob")
    await place.own(alice, RemoveMembers(1, conversation_id, "r1", ["bob"]))
    head = place.owner.head(conversation_id)
    await place.own(alice, AddMembers(1, conversation_id, "a1", ["bob"]))
    await begin_sync(place, bob, {})
    place.catchup.heads._owner = SimpleNamespace(head=lambda _conversation_id: head)  # which is not the last any more
    synced = await end_sync(place, bob)
    assert [decode_entry(bytes(raw)).seq for raw in synced.entries] == [1, 2]
