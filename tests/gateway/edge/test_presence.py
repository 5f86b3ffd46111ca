"""Who is online, and who is told."""

import pytest
import trio

from gateway.config import Settings
from gateway.edge.presence import Presences
from protocol.frames import Presence, PresencePush, PresenceReply, WatchPresence
from store.interface import Unavailable


class Seen:
    """The part of a store that presence uses."""

    def __init__(self):
        self.saved = {}
        self.known = {"bob", "carol"}
        self.broken = False

    async def acquainted(self, user, others):
        if self.broken:
            raise Unavailable("planted")
        return self.known & set(others)

    async def last_seen(self, users):
        return {user: self.saved[user] for user in users if user in self.saved}

    async def save_last_seen(self, seen_ms):
        self.saved.update(seen_ms)


@pytest.fixture
def store():
    return Seen()


@pytest.fixture
def presences(edge, store):
    made = Presences(Settings(presence_grace_s=30), store, edge.hub, wall_ms=lambda: 1_000_000)
    gone = edge.gone

    def forget(connection):
        gone(connection)
        made.forget(connection)

    edge.writer.on_gone = forget
    return made


async def test_coming_and_going_is_told_after_the_grace(edge, presences, store, nursery):
    await nursery.start(presences.run)
    alice = edge.connect("alice")
    presences.watch(alice.connection, WatchPresence(1, ["bob", "carol", "stranger", "bob"]))
    await trio.testing.wait_all_tasks_blocked()
    assert alice.frames() == [PresenceReply(1, [Presence("bob", False), Presence("carol", False)])]
    bob = edge.connect("bob")
    assert alice.frames()[1:] == [PresencePush("bob", online=True)]
    now = trio.current_time()
    edge.writer.abort(bob.connection)
    presences.tick(now + 29)
    assert presences.is_online("bob")
    assert len(alice.frames()) == 2
    presences.tick(now + 31)
    assert not presences.is_online("bob")
    (push,) = alice.frames()[2:]
    assert (push.user, push.online) == ("bob", False)
    assert push.last_seen_ms == pytest.approx(1_000_000 - 31_000, abs=1000)
    await trio.testing.wait_all_tasks_blocked()
    assert store.saved == {"bob": push.last_seen_ms}


async def test_a_short_absence_is_not_told(edge, presences, nursery):
    await nursery.start(presences.run)
    alice, bob = edge.connect("alice"), edge.connect("bob")
    presences.watch(alice.connection, WatchPresence(1, ["bob"]))
    await trio.testing.wait_all_tasks_blocked()
    now = trio.current_time()
    edge.writer.abort(bob.connection)
    edge.connect("bob")
    presences.tick(now + 100)
    assert alice.frames() == [PresenceReply(1, [Presence("bob", True)])]


async def test_watchers_who_leave_are_forgotten(edge, presences, nursery):
    await nursery.start(presences.run)
    alice = edge.connect("alice")
    presences.watch(alice.connection, WatchPresence(1, ["bob"]))
    await trio.testing.wait_all_tasks_blocked()
    assert presences.watched == 1
    presences.watch(alice.connection, WatchPresence(2, []))
    await trio.testing.wait_all_tasks_blocked()
    assert presences.watched == 0
    presences.watch(alice.connection, WatchPresence(3, ["carol"]))
    await trio.testing.wait_all_tasks_blocked()
    edge.writer.abort(alice.connection)
    assert presences.watched == 0


async def test_a_store_that_cannot_be_read_is_said(edge, presences, store, nursery):
    await nursery.start(presences.run)
    store.broken = True
    alice = edge.connect("alice")
    presences.watch(alice.connection, WatchPresence(1, ["bob"]))
    await trio.testing.wait_all_tasks_blocked()
    (reply,) = alice.frames()
    assert (reply.id, reply.code, reply.retry_after_ms) == (1, 13, 1000)


async def test_the_end_of_the_node_stores_who_is_leaving(edge, presences, store):
    async with trio.open_nursery() as nursery:
        await nursery.start(presences.run)
        bob = edge.connect("bob")
        edge.writer.abort(bob.connection)
        nursery.cancel_scope.cancel()
    assert store.saved == {"bob": pytest.approx(1_000_000, abs=1000)}
