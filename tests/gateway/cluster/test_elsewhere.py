"""Presence across nodes, on a virtual clock: who is told that a user came to another node, or left it."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import MockClock

from gateway.cluster.elsewhere import Elsewhere
from gateway.config import Settings
from gateway.edge.presence import Presences
from protocol.frames import Presence, PresencePush, PresenceReply, WatchPresence
from tests.fakes.memory_store import MemoryStore
from tests.gateway.cluster.cluster_world import NodePart, World, running

GRACE_S = 30.0


class Watcher:
    """What presence uses of a connection."""

    user = "alice"
    flags = 0


class FakeHub:
    """What presence uses of a hub; pushes and replies are recorded."""

    def __init__(self) -> None:
        self.by_user: dict[str, object] = {}
        self.on_arrival = self.on_departure = lambda _user: None
        self.told: list[PresencePush] = []
        self.replies: list[PresenceReply] = []

    def connect(self, user: str) -> None:
        self.by_user[user] = object()
        self.on_arrival(user)

    def disconnect(self, user: str) -> None:
        del self.by_user[user]
        self.on_departure(user)

    def signal_connections(self, connections: Collection[object], push: PresencePush) -> None:
        self.told += [push] * len(connections)

    def reply(self, _connection: object, reply: PresenceReply) -> None:
        self.replies.append(reply)


class Seen(MemoryStore):
    """All users know each other; the times at which they were seen are shared by all nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen_ms: dict[str, int] = {}

    async def acquainted(self, _user: str, others: Collection[str]) -> set[str]:
        await trio.lowlevel.checkpoint()
        return set(others)

    async def last_seen(self, users: Collection[str]) -> dict[str, int]:
        await trio.lowlevel.checkpoint()
        return {user: self.seen_ms[user] for user in users if user in self.seen_ms}

    async def save_last_seen(self, seen_ms: Collection[tuple[str, int]]) -> None:
        await trio.lowlevel.checkpoint()
        self.seen_ms.update(seen_ms)


def wall_ms() -> int:
    return int((1_000_000 + trio.current_time()) * 1000)


class Node(NodePart):
    """A node's part of the cluster, and who is online as it tells it."""

    def __init__(self, world: "World[Node]", name: str) -> None:
        super().__init__(world, name)
        self.hub: Any = FakeHub()
        self.presences = Presences(Settings(presence_grace_s=GRACE_S), world.store, self.hub, wall_ms)
        self.cluster.follow(self.hub)
        self.cluster.elsewhere.listener = self.presences
        self.presences.elsewhere = self.cluster.elsewhere

    async def begin(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.presences.run)
        nursery.start_soon(self._tick)

    async def _tick(self) -> None:
        while True:
            self.presences.tick(trio.current_time())
            await trio.sleep(1)

    async def watch(self, *users: str) -> list[Presence]:
        """Whom a new connection watches, and how things stand."""
        watcher: Any = Watcher()
        self.presences.watch(watcher, WatchPresence(1, list(users)))
        await trio.sleep(0.1)
        return self.hub.replies[-1].users

    @property
    def told(self) -> list[tuple[str, bool]]:
        """Pushes since the last time this was asked."""
        told, self.hub.told = self.hub.told, []
        return [(push.user, push.online) for push in told]


class Sightings(World[Node]):
    """A world whose nodes tell who is online."""

    def __init__(self) -> None:
        self.seen = Seen()
        super().__init__(Node, store=self.seen)

    def set_away(self, away: bool) -> None:
        """What a connection to Redis does at its loss: what was cached is dropped, and nothing is reported."""
        self.network.away = away
        for connection in self.network.inboxes.values():
            connection.cache.clear()
            connection.tracked.clear()


@asynccontextmanager
async def world(*names: str) -> AsyncIterator[tuple[Sightings, list[Node]]]:
    each = Sightings()
    async with running(each, *names) as nodes:
        yield each, nodes


async def test_coming_to_another_node_and_leaving_it_is_told(autojump_clock: MockClock) -> None:
    async with world("a", "b") as (_, (a, b)):
        assert await a.watch("bob") == [Presence("bob", False)]
        b.hub.connect("bob")
        await trio.sleep(3)
        assert a.told == [("bob", True)]
        b.hub.disconnect("bob")
        left_ms = wall_ms()
        await trio.sleep(GRACE_S - 1)
        assert a.told == []
        await trio.sleep(4)
        (push,) = a.hub.told
        assert (push.user, push.online) == ("bob", False)
        assert abs(push.last_seen_ms - left_ms) <= 2_000


async def test_who_is_online_elsewhere_is_in_the_answer(autojump_clock: MockClock) -> None:
    async with world("a", "b") as (_, (a, b)):
        b.hub.connect("bob")
        await trio.sleep(1)
        (bob,) = await a.watch("bob")
        assert bob.online
        b.hub.disconnect("bob")
        await trio.sleep(2)
        (bob,) = await a.watch("bob")
        assert bob.online, "within the grace, by the time that the other node stored"
        await trio.sleep(GRACE_S + 2)
        (bob,) = await a.watch("bob")
        assert not bob.online
        assert bob.last_seen_ms


async def test_moving_from_node_to_node_is_not_told(autojump_clock: MockClock) -> None:
    async with world("a", "b", "c") as (_, (a, b, c)):
        b.hub.connect("bob")
        await a.watch("bob")
        for leave, come in ((b, c), (c, a), (a, b)):
            leave.hub.disconnect("bob")
            await trio.sleep(5)
            come.hub.connect("bob")
            await trio.sleep(2 * GRACE_S)
        assert a.told == []


async def test_one_of_two_nodes_left_is_not_told(autojump_clock: MockClock) -> None:
    async with world("a", "b") as (_, (a, b)):
        b.hub.connect("bob")
        await a.watch("bob")
        a.hub.connect("bob")
        await trio.sleep(5)
        a.hub.disconnect("bob")
        await trio.sleep(2 * GRACE_S)
        assert a.told == []
        a.hub.connect("bob")
        await trio.sleep(5)
        b.hub.disconnect("bob")
        await trio.sleep(2 * GRACE_S)
        assert a.told == []
        a.hub.disconnect("bob")
        await trio.sleep(2 * GRACE_S)
        assert a.told == [("bob", False)]


async def test_a_killed_node_takes_its_users_with_it(autojump_clock: MockClock) -> None:
    async with world("a", "b") as (each, (a, b)):
        b.hub.connect("bob")
        await a.watch("bob")
        b.scope.cancel()
        died_ms = wall_ms()
        await trio.sleep(10 + GRACE_S - 2)
        assert a.told == [], "a lease, and then the grace"
        await trio.sleep(8)
        assert a.told == [("bob", False)]
        assert 0 <= each.seen.seen_ms["bob"] - died_ms < 15_000, "nobody else can have stored it"


async def test_while_redis_is_away_nobody_is_called_offline(autojump_clock: MockClock) -> None:
    async with world("a", "b") as (each, (a, b)):
        for user in ("bob", "carol"):
            b.hub.connect(user)
        a.hub.connect("dave")
        await a.watch("bob", "carol", "dave", "erin")
        each.set_away(True)
        await trio.sleep(5)
        a.hub.disconnect("dave")  # and perhaps comes back to another node
        b.connection.leave("bob")
        b.connection.arrive("erin")
        await trio.sleep(3 * GRACE_S)
        assert a.told == []
        each.set_away(False)
        await trio.sleep(5)
        assert sorted(a.told) == [("dave", False), ("erin", True)]
        await trio.sleep(GRACE_S + 2)
        assert a.told == [("bob", False)]


async def test_a_change_that_was_not_reported_is_found_when_all_are_looked_up_again(autojump_clock: MockClock) -> None:
    async with world("a", "b") as (each, (a, b)):
        b.hub.connect("bob")
        await a.watch("bob", "carol")
        each.set_away(True)
        b.connection.leave("bob")
        b.connection.arrive("carol")
        each.set_away(False)  # sooner than anybody looks
        a.cluster.elsewhere.everybody()  # as a new generation does
        await trio.sleep(GRACE_S + 5)
        assert a.told == [("carol", True), ("bob", False)]


async def test_a_node_that_is_alone_asks_nobody_until_another_comes(autojump_clock: MockClock) -> None:
    async with world("a") as (each, (a,)):
        await a.watch("bob")
        await trio.sleep(60)
        assert a.connection.tracked == set()
        b = await each.start("b")
        b.hub.connect("bob")
        await trio.sleep(5)
        assert a.told == [("bob", True)]
        assert not a.presences.elsewhere.paused


class Recorder:
    """A PresenceListener that notes what it is told; everybody is watched."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bool]] = []

    def watches(self, _user: str) -> bool:
        return True

    def watched_users(self) -> Collection[str]:
        return ["bob", "carol"]

    def came_elsewhere(self, user: str) -> None:
        self.told.append((user, True))

    def left_elsewhere(self, user: str, *, with_node: bool) -> None:
        self.told.append((user, False))


async def test_another_process_tells_only_what_has_changed_since(autojump_clock: MockClock) -> None:
    async with world("a", "b") as (each, (a, b)):
        b.hub.connect("bob")
        b.hub.connect("carol")
        await a.watch("bob", "carol")
        known = a.cluster.elsewhere.state()
        assert sorted(known) == ["bob", "carol"]
        b.hub.disconnect("carol")
        heir = Elsewhere(a.cluster.incarnation, a.connection, a.cluster.watch, alone=lambda: False, away=lambda: False)
        heir.listener = recorder = Recorder()
        heir.restore(known)
        each.nursery.start_soon(heir.run)
        await trio.sleep(3)
        assert recorder.told == [("carol", False)]
