"""Channels across nodes: one entry in the directory for all who follow at a node, and nothing missed by who joins."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial

import trio
from trio.testing import MockClock

from gateway.broker import Delivery, followers_of, is_channel
from gateway.cluster.following import Following
from gateway.cluster.ports import Directory, Transport
from gateway.cluster.slots import slot_of
from gateway.cluster.watch import Watch
from gateway.edge.connection import Connection
from gateway.edge.followers import Followers
from gateway.owner.members import channel_id
from protocol.codec import decode_entry
from protocol.frames import AddMembers, ConversationKind, CreateConversation, RemoveMembers, Resync, Send, SendAck
from tests.fakes.edge import FakeOrigin, RecordingEdge
from tests.fakes.network import Network, NodeConnection
from tests.gateway.cluster.cluster_world import NodePart, World, running

PEOPLE = [f"person{number}" for number in range(200)]


class SlowDirectory(NodeConnection):
    """Registers when the command has reached the server, as Redis does; confirms when its reply is here."""

    def arrive(self, user: str) -> None:
        self.execute(partial(super().arrive, user))

    def leave(self, user: str) -> None:
        self.execute(partial(super().leave, user))

    async def registered(self, user: str) -> None:
        confirmed = trio.Event()
        self.barrier(lambda _known: confirmed.set())
        await confirmed.wait()


class Edge(RecordingEdge):
    """An edge whose users follow channels: what it records is for those who are to get it here."""

    def __init__(self, *connected: str) -> None:
        super().__init__()
        self.connected = set(connected)
        self.followers = Followers(self.connected)

    def deliver(self, delivery: Delivery) -> None:
        if is_channel(delivery.conversation_id):
            recipients = self.followers.recipients(delivery)
            delivery = Delivery(delivery.conversation_id, recipients, delivery.entries, delivery.origins)
        super().deliver(delivery)


class Part(NodePart):
    """A node with connected users."""

    def __init__(self, world: "World[Part]", name: str, *connected: str) -> None:
        self.resyncs: list[tuple[str, Resync, int]] = []
        self.following_edge = Edge(*connected)
        super().__init__(world, name, edge=self.following_edge)
        self.followers = self.following_edge.followers
        self.following = Following(self.followers, self.connection, self, lambda user: [user], lambda: None)  # type: ignore[arg-type, list-item, return-value]

    def wires(self, incarnation: str, _watch: Watch) -> tuple[Transport, Directory]:
        self.connection = SlowDirectory(self.world.network, incarnation)
        return self.connection, self.connection

    async def begin(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.following.run)
        for user in self.following_edge.connected:
            self.connection.arrive(user)

    def connections(self) -> Collection[Connection]:
        return ()

    def push_surely(self, connections: Collection[Connection], push: Resync) -> None:
        """A user is a connection of their own here. Notes what a sync would then read."""
        [channel] = push.conversation_ids
        head_seq = len(self.world.store.logs[channel].entries)
        self.resyncs += [(str(user), push, head_seq) for user in connections]

    async def sync(self, user: str, *channels: str) -> None:
        with self.followers.comparing(user) as comparison:
            await comparison.take(dict.fromkeys(channels, 1), whole=True)

    def got(self, user: str, channel: str) -> list[int]:
        """The seqs of a channel that were delivered here to a user."""
        return [
            decode_entry(encoded).seq
            for delivery in self.edge.deliveries
            if delivery.conversation_id == channel and user in delivery.recipients
            for encoded in delivery.entries
        ]


def channel_owned_by(world: World[Part], part: Part) -> tuple[str, str]:
    """The client_msg_id and id of a channel of Alice's."""
    for number in range(10_000):
        made = channel_id("alice", f"c{number}")
        if world.coordination.table.slots[slot_of(made)].owner == part.lease.incarnation:
            return f"c{number}", made
    raise AssertionError("it owns nothing")


@asynccontextmanager
async def two_nodes() -> AsyncIterator[tuple[World[Part], Part, Part, FakeOrigin, str]]:
    """Alice is at the first node, Bob and Carol at the second; the first owns a channel of Alice and 200 others."""
    connected = {"a": ["alice"], "b": ["bob", "carol"]}
    world = World(lambda world, name: Part(world, name, *connected[name]), network=Network(delay_s=0.01))
    async with running(world, *connected) as (a, b):
        name, channel = channel_owned_by(world, a)
        alice = FakeOrigin("alice")
        a.submit(alice, CreateConversation(1, ConversationKind.CHANNEL, PEOPLE, name, "news"))
        await trio.sleep(1)
        yield world, a, b, alice, channel


async def send(part: Part, origin: FakeOrigin, channel: str, *names: str) -> None:
    for name in names:
        part.submit(origin, Send(100, channel, name, name))
    await trio.sleep(1)


async def test_a_node_gets_a_channels_entries_as_long_as_somebody_follows_there(autojump_clock: MockClock) -> None:
    async with two_nodes() as (world, a, b, alice, channel):
        a.submit(alice, AddMembers(2, channel, "add", ["bob", "carol"]))
        await trio.sleep(1)
        key = followers_of(channel)
        assert world.network.users[key] == (a.lease.incarnation, b.lease.incarnation)
        await send(a, alice, channel, "m1", "m2")
        assert b.got("bob", channel) == b.got("carol", channel) == [2, 3, 4]
        # Whatever the number of members: the owner looked for the followers, and for those whom entries named.
        a.connection.cache.clear()
        await send(a, alice, channel, "m3")
        assert set(a.connection.cache) == {key}
        for user in ("bob", "carol"):
            b.following_edge.connected.remove(user)
            b.followers.departed(user)
        await trio.sleep(1)
        assert world.network.users[key] == (a.lease.incarnation,)
        handed_on = a.cluster.handing_on.delivered_elsewhere
        await send(a, alice, channel, "m4")
        assert a.cluster.handing_on.delivered_elsewhere == handed_on


async def test_an_acknowledged_removal_is_the_last_that_reaches_who_was_removed(autojump_clock: MockClock) -> None:
    async with two_nodes() as (_world, a, b, alice, channel):
        a.submit(alice, AddMembers(2, channel, "add", ["bob", "carol"]))
        await trio.sleep(1)
        a.submit(alice, RemoveMembers(3, channel, "remove", ["bob"]))
        await send(a, alice, channel, "m1", "m2")
        assert b.got("bob", channel) == [2, 3]
        assert b.got("carol", channel) == [2, 3, 4, 5]
        assert len([reply for reply in a.edge.replies_to(alice) if isinstance(reply, SendAck)]) == 4


async def test_a_removal_reaches_who_is_not_known_to_be_where_the_channel_is_followed(
    autojump_clock: MockClock,
) -> None:
    async with two_nodes() as (world, a, b, alice, channel):
        a.submit(alice, AddMembers(2, channel, "add", ["bob", "carol"]))
        await trio.sleep(1)
        world.network.users["bob"] = ()  # as if he had come while that node was cut off from Redis
        a.connection.cache.clear()
        a.submit(alice, RemoveMembers(3, channel, "remove", ["bob"]))
        await send(a, alice, channel, "m1")
        assert b.got("bob", channel) == [2, 3]
        assert b.got("carol", channel) == [2, 3, 4]


async def test_who_joins_where_nobody_followed_syncs_when_nothing_can_pass_by_any_more(
    autojump_clock: MockClock,
) -> None:
    async with two_nodes() as (world, a, b, alice, channel):
        world.network.delay_s = 0.5  # so that much happens before the directory knows
        a.submit(alice, AddMembers(2, channel, "add", ["bob"]))
        for number in range(40):
            await trio.sleep(0.1)
            a.submit(alice, Send(100 + number, channel, f"m{number}", f"m{number}"))
        await trio.sleep(10)
        head_seq = len(world.store.logs[channel].entries)
        assert head_seq == 42
        [(user, push, synced_seq)] = b.resyncs
        assert (user, push) == ("bob", Resync([channel]))
        got = b.got("bob", channel)
        assert len(set(got)) < head_seq - 1, "something passed by, or this shows nothing"
        assert set(range(2, head_seq + 1)) <= {*got, *range(2, synced_seq + 1)}


async def test_who_syncs_gets_all_that_is_not_in_the_answer(autojump_clock: MockClock) -> None:
    async with two_nodes() as (world, a, b, alice, channel):
        a.submit(alice, AddMembers(2, channel, "add", ["bob"]))
        await trio.sleep(1)
        b.following_edge.connected.remove("bob")
        b.followers.departed("bob")
        await trio.sleep(1)
        b.edge.forget()
        b.following_edge.connected.add("bob")
        world.network.delay_s = 0.5
        synced: list[int] = []

        async def come_back() -> None:
            await b.sync("bob", channel)
            synced.append(len(world.store.logs[channel].entries))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_back)
            for number in range(40):
                a.submit(alice, Send(100 + number, channel, f"m{number}", f"m{number}"))
                await trio.sleep(0.1)
        await trio.sleep(10)
        assert synced[0] > 2, "it waited while others spoke, or this shows nothing"
        assert set(range(synced[0] + 1, 43)) <= set(b.got("bob", channel))


async def test_parcels_that_got_lost_may_have_told_who_left(autojump_clock: MockClock) -> None:
    async with two_nodes() as (_world, a, b, alice, channel):
        a.submit(alice, AddMembers(2, channel, "add", ["bob"]))
        await trio.sleep(1)
        b.following.lost()
        await send(a, alice, channel, "m1")
        assert b.got("bob", channel) == [2]
        await b.sync("bob", channel)
        await send(a, alice, channel, "m2")
        assert b.got("bob", channel) == [2, 4]
