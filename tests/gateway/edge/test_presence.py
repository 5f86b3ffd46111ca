"""Who is online, and who is told."""

import pytest
import trio

from gateway.config import Settings
from gateway.edge.presence import (
    LEAVERS_PER_SLICE,
    SAVE_AT_END_S,
    WATCH_COMMANDS_EACH_MAX,
    WATCH_COMMANDS_MAX,
    Presences,
)
from gateway.edge.watchers import WATCHERS_AT_ONCE_MAX, WATCHERS_PER_SLICE
from protocol.errors import ErrorCode
from protocol.frames import Presence, PresencePush, PresenceReply, WatchPresence
from store.interface import Unavailable


class Seen:
    """The part of a store that presence uses."""

    def __init__(self):
        self.saved = {}
        self.known = {"bob", "carol"}
        self.broken = False
        self.gates = []
        self.save_s = 0.0
        self.wall_ms = 1_000_000
        self.asked = 0

    async def acquainted(self, user, others):
        self.asked += 1
        if self.gates:
            await self.gates.pop(0).wait()
        if self.broken:
            raise Unavailable("planted")
        return self.known & set(others)

    async def last_seen(self, users):
        return {user: self.saved[user] for user in users if user in self.saved}

    async def save_last_seen(self, seen_ms):
        await trio.sleep(self.save_s)
        self.saved.update(seen_ms)


@pytest.fixture
def store():
    return Seen()


@pytest.fixture
def presences(edge, store):
    made = Presences(Settings(presence_grace_s=30), store, edge.hub, wall_ms=lambda: store.wall_ms)
    gone = edge.gone

    def forget(connection):
        gone(connection)
        made.forget(connection)

    edge.writer.on_gone = forget
    return made


async def watch(presences, *peers, users=("bob",)):
    for peer in peers:
        presences.watch(peer.connection, WatchPresence(1, list(users)))
        await trio.testing.wait_all_tasks_blocked()
        peer.frames()  # the reply


def pushes(peer):
    return [frame for frame in peer.frames() if isinstance(frame, PresencePush)]


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
    store.wall_ms += 29_000
    presences.tick(now + 29)
    assert len(alice.frames()) == 2
    store.wall_ms += 2_000
    presences.tick(now + 31)
    (push,) = alice.frames()[2:]
    assert (push.user, push.online) == ("bob", False)
    assert push.last_seen_ms == pytest.approx(1_000_000, abs=1000)
    await trio.testing.wait_all_tasks_blocked()
    assert store.saved == {"bob": 1_000_000}


async def test_who_left_unwatched_counts_as_online_within_the_grace_and_is_told_of_after_it(
    edge, presences, store, nursery
):
    await nursery.start(presences.run)
    now = trio.current_time()
    edge.writer.abort(edge.connect("bob").connection)
    presences.tick(now + 1)
    await trio.testing.wait_all_tasks_blocked()
    assert store.saved == {"bob": 1_000_000}
    assert presences.leaving == 0, "nobody asked, and still something is kept"
    store.wall_ms += 20_000
    presences.tick(now + 20)
    alice = edge.connect("alice")
    presences.watch(alice.connection, WatchPresence(1, ["bob"]))
    await trio.testing.wait_all_tasks_blocked()
    assert alice.frames() == [PresenceReply(1, [Presence("bob", True, 1_000_000)])]
    store.wall_ms += 11_000
    presences.tick(now + 31)
    (push,) = pushes(alice)
    assert (push.user, push.online) == ("bob", False)
    presences.watch(alice.connection, WatchPresence(2, ["bob"]))
    await trio.testing.wait_all_tasks_blocked()
    assert alice.frames()[-1] == PresenceReply(2, [Presence("bob", False, 1_000_000)])


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
    assert (reply.id, reply.code) == (1, ErrorCode.UNAVAILABLE)
    assert 1000 <= reply.retry_after_ms <= 3000
    assert str(reply.retry_after_ms) in reply.message


async def test_the_end_of_the_node_stores_who_is_leaving(edge, presences, store):
    async with trio.open_nursery() as nursery:
        await nursery.start(presences.run)
        bob = edge.connect("bob")
        edge.writer.abort(bob.connection)
        nursery.cancel_scope.cancel()
    assert store.saved == {"bob": pytest.approx(1_000_000, abs=1000)}


async def test_the_end_of_the_node_does_not_wait_for_a_store_that_hangs(edge, presences, store, autojump_clock):
    store.save_s = 3600
    async with trio.open_nursery() as nursery:
        await nursery.start(presences.run)
        edge.writer.abort(edge.connect("bob").connection)
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began == pytest.approx(SAVE_AT_END_S)


async def test_what_was_being_stored_at_the_end_is_stored_by_the_end(edge, presences, store, autojump_clock):
    store.save_s = 1.0
    async with trio.open_nursery() as nursery:
        await nursery.start(presences.run)
        edge.hub.on_departure("bob")
        presences.tick(trio.current_time() + 31)
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    assert list(store.saved) == ["bob"]


async def test_of_two_times_of_leaving_at_the_end_the_newer_one_is_stored(edge, presences, store, autojump_clock):
    store.save_s = 1.0
    async with trio.open_nursery() as nursery:
        await nursery.start(presences.run)
        edge.hub.on_departure("bob")
        presences.tick(trio.current_time() + 1)
        await trio.sleep(0.5)
        store.wall_ms += 5_000  # bob came back and left again while the first time was being stored
        presences.tick(trio.current_time() + 6)
        edge.hub.on_departure("bob")
        nursery.cancel_scope.cancel()
    assert store.saved == {"bob": 1_005_000}


# --- Watchers who go ------------------------------------------------------------------------------------------------


async def test_a_watcher_found_broken_while_being_told_of_an_arrival(edge, presences, nursery):
    await nursery.start(presences.run)
    broken, *others = [edge.connect(f"watcher-{n}") for n in range(3)]
    await watch(presences, broken, *others)
    broken.sock.close()  # the node has not read the end yet
    edge.connect("bob")
    assert broken.connection.fd == -1
    assert [pushes(peer) for peer in others] == [[PresencePush("bob", online=True)]] * 2


async def test_a_watcher_found_broken_while_being_told_of_a_departure(edge, presences, nursery):
    await nursery.start(presences.run)
    broken, other, bob = edge.connect("broken"), edge.connect("other"), edge.connect("bob")
    await watch(presences, broken, other)
    edge.writer.abort(bob.connection)
    broken.sock.close()
    presences.tick(trio.current_time() + 31)
    assert broken.connection.fd == -1
    assert [push.online for push in pushes(other)] == [False]


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_watch_answered_after_its_connection_went_is_not_kept(edge, presences, store, nursery, end):
    gate = trio.Event()
    store.gates = [gate]
    await nursery.start(presences.run)
    alice = edge.connect("alice")
    await watch(presences, alice)
    if end == "close":
        edge.writer.close(alice.connection, 1000)
    else:
        edge.writer.abort(alice.connection)
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert presences.watched == 0
    assert alice.frames() == []


async def test_the_newer_of_two_watch_commands_stays(edge, presences, store, nursery):
    slow, quick = trio.Event(), trio.Event()
    store.gates = [slow, quick]
    await nursery.start(presences.run)
    alice = edge.connect("alice")
    presences.watch(alice.connection, WatchPresence(1, ["bob"]))
    await trio.testing.wait_all_tasks_blocked()
    presences.watch(alice.connection, WatchPresence(2, ["carol"]))
    quick.set()
    await trio.testing.wait_all_tasks_blocked()
    slow.set()
    await trio.testing.wait_all_tasks_blocked()
    assert [reply.id for reply in alice.frames()] == [1, 2]
    edge.connect("bob")
    edge.connect("carol")
    assert pushes(alice) == [PresencePush("carol", online=True)]


async def test_one_connection_does_not_keep_all_places_for_watch_commands(edge, presences, store, nursery):
    flooder, other = edge.connect("mallory"), edge.connect("bob")
    await nursery.start(presences.run)
    store.gates = [gate := trio.Event()]
    for n in range(WATCH_COMMANDS_MAX):
        presences.watch(flooder.connection, WatchPresence(n, ["bob"]))
    await trio.testing.wait_all_tasks_blocked()  # at the gate
    presences.watch(other.connection, WatchPresence(7, ["bob"]))
    await trio.testing.wait_all_tasks_blocked()
    (reply,) = other.frames()
    assert isinstance(reply, PresenceReply)
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    refused = [frame for frame in flooder.frames() if not isinstance(frame, PresenceReply)]
    assert len(refused) == WATCH_COMMANDS_MAX - WATCH_COMMANDS_EACH_MAX
    assert {frame.code for frame in refused} == {ErrorCode.RATE_LIMITED}
    assert presences.idle


async def test_watch_commands_beyond_the_limit_are_told_to_come_back(edge, presences, store, nursery):
    gate = trio.Event()
    await nursery.start(presences.run)
    crowd = [edge.connect(f"user{n}") for n in range(WATCH_COMMANDS_MAX // WATCH_COMMANDS_EACH_MAX)]
    late = edge.connect("late")
    store.gates = [gate] * len(crowd)
    for peer in crowd:
        for n in range(WATCH_COMMANDS_EACH_MAX):
            presences.watch(peer.connection, WatchPresence(n, ["bob"]))
    await watch(presences, late)
    (reply,) = late.frames()
    assert reply.code == ErrorCode.OVERLOADED
    assert 1000 <= reply.retry_after_ms <= 3000
    for peer in crowd:
        edge.writer.abort(peer.connection)  # what it asked for needs no answer
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert store.asked == len(crowd), "nothing was read for the other commands of a connection that is gone"
    await watch(presences, late)
    assert isinstance(late.frames()[-1], PresenceReply)


# --- Crowds ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def crowd(edge, presences, nursery):
    """Watchers of bob; of one turn of the scheduler each, two slices may be seen at the most."""
    await nursery.start(presences.run)
    peers = [edge.connect(f"watcher-{n}") for n in range(3 * WATCHERS_PER_SLICE)]
    for peer in peers:
        presences.watch(peer.connection, WatchPresence(1, ["bob"]))
        await trio.testing.wait_all_tasks_blocked()
    return peers


async def test_many_watchers_are_told_in_slices(edge, crowd):
    edge.connect("bob")
    told = [sum(bool(pushes(peer)) for peer in crowd)]
    while told[-1] < len(crowd):
        await trio.lowlevel.checkpoint()
        told.append(sum(bool(pushes(peer)) for peer in crowd))
        assert len(told) < 100
    assert max(after - before for before, after in zip([0, *told], told, strict=False)) <= 2 * WATCHERS_PER_SLICE
    await trio.testing.wait_all_tasks_blocked()
    assert [pushes(peer) for peer in crowd] == [[PresencePush("bob", online=True)]] * len(crowd)


async def test_a_newer_push_overtakes_no_older_one(edge, presences, crowd):
    bob = edge.connect("bob")
    while not any(pushes(peer) for peer in crowd):
        await trio.lowlevel.checkpoint()
    edge.writer.abort(bob.connection)
    presences.tick(trio.current_time() + 31)
    await trio.testing.wait_all_tasks_blocked()
    heard = [[push.online for push in pushes(peer)] for peer in crowd]
    assert [True, False] in heard  # was told before
    assert [False] in heard  # need not be told any more
    assert all(each in ([True, False], [False]) for each in heard)


async def test_a_newer_push_to_few_does_not_overtake_an_older_one_to_many(edge, presences, crowd):
    bob = edge.connect("bob")
    last, *others = crowd
    for peer in others:
        presences.forget(peer.connection)
    edge.writer.abort(bob.connection)
    presences.tick(trio.current_time() + 31)
    await trio.testing.wait_all_tasks_blocked()
    assert [push.online for push in pushes(last)] == [False]


async def test_who_stops_watching_is_told_no_more(edge, presences, crowd):
    edge.connect("bob")
    for peer in crowd[::2]:
        presences.forget(peer.connection)
    await trio.testing.wait_all_tasks_blocked()
    assert [len(pushes(peer)) for peer in crowd[:4]] == [0, 1, 0, 1]


async def test_a_crowd_that_leaves_at_once_is_told_of_in_slices(edge, presences, store, nursery):
    users = [f"user-{n}" for n in range(100)]
    store.known = set(users)
    await nursery.start(presences.run)
    alice = edge.connect("alice")
    await watch(presences, alice, users=users)
    for user in users:
        edge.hub.on_departure(user)
    presences.tick(trio.current_time() + 31)
    assert len(pushes(alice)) == WATCHERS_AT_ONCE_MAX
    await trio.testing.wait_all_tasks_blocked()
    assert [push.user for push in pushes(alice)] == users


async def test_a_crowd_becomes_offline_in_slices(edge, presences, store, nursery):
    users = [f"user-{n}" for n in range(3 * LEAVERS_PER_SLICE + 1)]
    store.known = set(users)
    await nursery.start(presences.run)
    await watch(presences, edge.connect("alice"), users=users)
    for user in users:
        edge.hub.on_departure(user)
    presences.tick(trio.current_time() + 31)
    assert presences.leaving == 2 * LEAVERS_PER_SLICE + 1
    await trio.testing.wait_all_tasks_blocked()
    assert presences.leaving == 0
    assert set(store.saved) == set(users)
