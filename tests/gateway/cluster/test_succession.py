"""A node's part of the cluster goes on in another process, while the other node asks and answers as ever."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import trio
from msgspec import msgpack
from trio.testing import MockClock

from gateway.cluster.resyncs import Resyncs
from gateway.cluster.succession import Inheritance, Succession
from gateway.cluster.watch import Watch
from gateway.config import Settings
from gateway.owner.members import direct_id
from protocol.codec import decode_entry
from protocol.frames import ConversationKind, CreateConversation, Send
from tests.fakes.coordination import MemoryCoordination
from tests.fakes.edge import FakeOrigin
from tests.fakes.memory_store import MemoryStore
from tests.fakes.network import Network, NodeConnection
from tests.gateway.cluster.cluster_parts import LEASE_S, ClusterPart, conversation_owned_by

SOUND = SimpleNamespace(quiet=True, writable=True, trouble="")


class Process(ClusterPart):
    """A process in which a node lives; with ``forebear`` the next one, at the other end of the same inbox."""

    def __init__(self, world: "World", name: str, forebear: "Process | None" = None) -> None:
        def wires(incarnation: str, _watch: Watch) -> tuple[NodeConnection, NodeConnection]:
            self.connection = forebear.connection if forebear else NodeConnection(world.network, incarnation)
            return self.connection, self.connection

        incarnation = forebear.lease.incarnation if forebear else ""
        super().__init__(world.coordination, world.store, name, wires, settings=world.settings, incarnation=incarnation)
        self.resyncs = Resyncs(SimpleNamespace(connections=list), lambda: False)
        self.cluster.on_gap = self.resyncs.everybody
        self.succession = Succession(self.cluster, SOUND, self.resyncs, None, None, LEASE_S)
        self.scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.connection.run)
                await nursery.start(self.cluster.owner.run)
                await nursery.start(self.cluster.run)
                task_status.started()

    async def come_to_rest(self) -> None:
        while True:
            self.succession.rest()
            if not self.succession.busy and self.cluster.owner.idle:
                return
            await trio.sleep(0.001)


class World:
    def __init__(self) -> None:
        self.settings = Settings()
        self.coordination = MemoryCoordination()
        self.network = Network()
        self.store = MemoryStore()
        self.nursery: trio.Nursery

    async def start(self, name: str) -> Process:
        process = Process(self, name)
        await self.nursery.start(process.run)
        return process

    async def go_on(self, process: Process, name: str) -> Process:
        """Its successor, once it rests; not a moment lies between the two."""
        await process.come_to_rest()
        heir = Process(self, name, process)
        state = msgpack.decode(msgpack.encode(process.succession.state()), type=Inheritance)
        process.scope.cancel()
        heir.succession.restore(state)
        await self.nursery.start(heir.run)
        return heir


@asynccontextmanager
async def world() -> AsyncIterator[tuple[World, Process, Process]]:
    each = World()
    async with trio.open_nursery() as nursery:
        each.nursery = nursery
        await nursery.start(each.store.run)
        a, b = await each.start("a"), await each.start("b")
        await trio.sleep(10)
        yield each, a, b
        nursery.cancel_scope.cancel()


async def conversation(each: World, at: Process, owner: Process, user: FakeOrigin) -> str:
    """A conversation of a user of one process that the other, or the same, owns."""
    _, peer = conversation_owned_by(each.coordination, owner.lease.incarnation, user.user)
    at.submit(user, CreateConversation(1, ConversationKind.DIRECT, [peer], client_msg_id="create"))
    await trio.sleep(1)
    assert at.edge.replies_to(user), "created"
    return direct_id(user.user, peer)


async def test_the_other_node_notices_nothing_though_it_sends_on(autojump_clock: MockClock) -> None:
    async with world() as (each, a, b):
        alice = FakeOrigin("alice")
        conversation_id = await conversation(each, b, a, alice)
        version, sent = each.coordination.table.version, 0

        async def send_on() -> None:
            nonlocal sent
            while True:
                b.submit(alice, Send(100 + sent, conversation_id, f"m{sent}", f"m{sent}"))
                sent += 1
                await trio.sleep(0.003)

        async with trio.open_nursery() as sending:
            sending.start_soon(send_on)
            await trio.sleep(0.1)
            heir = await each.go_on(a, "a")
            await trio.sleep(0.1)
            last = await each.go_on(heir, "a")
            await trio.sleep(0.1)
            sending.cancel_scope.cancel()
        await trio.sleep(3)
        assert sent > 50
        assert b.acks(alice) == list(range(100, 100 + sent))
        bodies = [decode_entry(encoded).body for encoded in each.store.logs[conversation_id].entries[1:]]
        assert bodies == [f"m{number}" for number in range(sent)], "each once, in order"
        assert each.coordination.table.version == version, "no slot moved"
        assert (b.cluster.links.gaps, last.cluster.links.gaps, b.cluster.router.repeated) == (0, 0, 0)
        assert not last.resyncs.pending


async def test_a_node_rests_when_what_it_asked_of_others_is_answered_and_keeps_its_lease(
    autojump_clock: MockClock,
) -> None:
    async with world() as (each, a, b):
        alice = FakeOrigin("alice")
        conversation_id = await conversation(each, a, b, alice)
        each.network.delay_s = 0.5
        a.submit(alice, Send(5, conversation_id, "m1", "m1"))
        a.succession.rest()
        assert a.succession.busy == "commands that wait for other nodes"
        heir = await each.go_on(a, "a")
        assert a.acks(alice) == [5]
        await trio.sleep(30)
        assert heir.lease.valid()
        assert heir.lease.incarnation in b.cluster.watch.live
        heir.submit(alice, Send(6, conversation_id, "m2", "m2"))
        await trio.sleep(5)
        assert heir.acks(alice) == [6]


async def test_a_node_whose_successor_failed_goes_on_with_what_came_meanwhile(autojump_clock: MockClock) -> None:
    async with world() as (each, a, b):
        alice = FakeOrigin("alice")
        conversation_id = await conversation(each, b, a, alice)
        await a.come_to_rest()
        b.submit(alice, Send(5, conversation_id, "m1", "m1"))
        await trio.sleep(1)
        assert b.acks(alice) == []
        a.succession.resume()
        await trio.sleep(1)
        assert b.acks(alice) == [5]
        assert a.succession.busy == ""


async def test_it_says_why_now_is_no_moment(autojump_clock: MockClock) -> None:
    async with world() as (each, a, _b):
        assert a.succession.objection() == ""
        each.coordination.away = True
        await trio.sleep(12)
        assert "lease is in doubt" in a.succession.objection()
