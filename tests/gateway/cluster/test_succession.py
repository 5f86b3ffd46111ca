"""A node's part of the cluster goes on in another process, while the other node asks and answers as ever."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import trio
from msgspec import msgpack
from trio.testing import MockClock

from gateway.cluster.ports import Directory, Transport
from gateway.cluster.resyncs import Resyncs
from gateway.cluster.succession import Inheritance, Succession
from gateway.cluster.watch import Watch
from gateway.owner.members import direct_id
from protocol.codec import decode_entry
from protocol.frames import ConversationKind, CreateConversation, Send
from tests.fakes.edge import FakeOrigin
from tests.gateway.cluster.cluster_parts import LEASE_S
from tests.gateway.cluster.cluster_world import NodePart, World, running

SOUND = SimpleNamespace(quiet=True, writable=True, trouble="")


class Process(NodePart):
    """A process in which a node lives; with ``forebear`` the next one, at the other end of the same inbox."""

    def __init__(self, world: "World[Process]", name: str, forebear: "Process | None" = None) -> None:
        self.forebear = forebear
        super().__init__(world, name, incarnation=forebear.lease.incarnation if forebear else "")
        self.resyncs = Resyncs(SimpleNamespace(connections=list), lambda: False)
        self.cluster.on_gap = self.resyncs.everybody
        self.succession = Succession(self.cluster, SOUND, self.resyncs, None, None, LEASE_S)

    def wires(self, incarnation: str, watch: Watch) -> tuple[Transport, Directory]:
        if self.forebear is None:
            return super().wires(incarnation, watch)
        self.connection = self.forebear.connection
        return self.connection, self.connection

    async def come_to_rest(self) -> None:
        while True:
            self.succession.rest()
            if not self.succession.busy and self.cluster.owner.idle:
                return
            await trio.sleep(0.001)


class Processes(World[Process]):
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
async def world() -> AsyncIterator[tuple[Processes, Process, Process]]:
    each = Processes(Process)
    async with running(each, "a", "b") as (a, b):
        yield each, a, b


async def conversation(each: Processes, at: Process, owner: Process, user: FakeOrigin) -> str:
    """A conversation of a user of one process that the other, or the same, owns."""
    _, peer = each.conversation_owned_by(owner, user.user)
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
