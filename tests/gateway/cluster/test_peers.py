"""Parcels straight between nodes, over real sockets of the loopback: who is admitted, what is carried, what is lost.

The clock jumps only when no socket has had anything to read for a while, so that timeouts take no time and the network
still does its work.
"""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import jwt
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from gateway.cluster import peer_handshake, peers
from gateway.cluster.peer_handshake import Incoming, PeerRefused, admit, dial, key_of
from gateway.cluster.peers import Peers, listen_for_peers, split_address
from gateway.cluster.ports import Directory, Transport
from gateway.cluster.two_ways import TwoWays
from gateway.cluster.watch import Watch
from protocol.frames import ConversationKind, CreateConversation, Send
from store.coordination import LeaseRecord
from tests.fakes.edge import FakeOrigin
from tests.gateway.cluster.cluster_world import NodePart, World, running

SECRET = "a secret that all nodes of this cluster have"
KEY = key_of(SECRET)


@pytest.fixture
def jumping_clock() -> MockClock:
    return MockClock(autojump_threshold=0.002)


def lease(incarnation: str, address: str) -> LeaseRecord:
    return LeaseRecord(incarnation, incarnation, 1, True, address, True, False, 1)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, up to a minute of the virtual clock; only a network with nothing to do lets that pass."""
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - what it looks at tells nobody
            await trio.sleep(0.01)


class Ends:
    """Nodes that do nothing but carry parcels."""

    def __init__(self) -> None:
        self.live: dict[str, LeaseRecord] = {}
        self.nursery: trio.Nursery
        self.arrived: dict[str, list[bytes]] = {}

    async def start(self, name: str, key: bytes = KEY, address: str = "") -> Peers:
        listening = listen_for_peers("127.0.0.1", 0)
        self.live[name] = lease(name, address or f"127.0.0.1:{listening.getsockname()[1]}")
        node = Peers(name, key, listening, lambda: self.live)
        node.received = self.arrived.setdefault(name, []).append
        await self.nursery.start(node.run)
        return node


@asynccontextmanager
async def ends() -> AsyncIterator[Ends]:
    each = Ends()
    async with trio.open_nursery() as nursery:
        each.nursery = nursery
        yield each
        nursery.cancel_scope.cancel()


class Answers(list[bool]):
    """Takes answers, and waits for a number of them."""

    async def wait_for(self, count: int) -> None:
        await until(lambda: len(self) >= count)


# --- Carrying -------------------------------------------------------------------------------------------------------


async def test_parcels_arrive_in_order_and_are_confirmed(jumping_clock: MockClock) -> None:
    async with ends() as each:
        a = await each.start("a")
        await each.start("b")
        parcels = [bytes([number]) * (number * 97) for number in range(200)]
        taken = Answers()
        for parcel in parcels:
            a.send("b", parcel, taken.append, without_redis=True)
        await taken.wait_for(len(parcels))
        assert each.arrived["b"] == parcels
        assert taken == [True] * len(parcels)
        assert (a.sent, a.not_taken) == (200, 0)


async def test_a_connection_ends_when_nothing_is_sent_and_begins_again_when_something_is(
    jumping_clock: MockClock,
) -> None:
    async with ends() as each:
        a = await each.start("a")
        b = await each.start("b")
        taken = Answers()
        a.send("b", b"1", taken.append, without_redis=True)
        await taken.wait_for(1)
        assert b.cut_off("a")
        assert a.connections == 1
        await trio.sleep(peers.SILENCE_S + 1)
        assert a.connections == 0
        assert not b.cut_off("a")
        a.send("b", b"2", taken.append, without_redis=True)
        await taken.wait_for(2)
        assert each.arrived["b"] == [b"1", b"2"]
        assert taken == [True, True]


async def test_only_who_cannot_reach_redis_is_answered_directly(jumping_clock: MockClock) -> None:
    async with ends() as each:
        a = await each.start("a")
        b = await each.start("b")
        taken = Answers()
        a.send("b", b"1", taken.append, without_redis=True)
        await taken.wait_for(1)
        assert b.cut_off("a")
        a.send("b", b"2", taken.append, without_redis=False)
        await taken.wait_for(2)
        assert not b.cut_off("a")


async def test_a_node_that_is_not_there_takes_nothing_and_is_tried_again_later(jumping_clock: MockClock) -> None:
    async with ends() as each:
        a = await each.start("a")
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))  # and does not listen
            each.live["b"] = lease("b", f"127.0.0.1:{nobody.getsockname()[1]}")
            taken = Answers()
            a.send("b", b"1", taken.append, without_redis=True)
            await taken.wait_for(1)
            a.send("b", b"2", taken.append, without_redis=True)
            assert taken == [False, False], "not even tried so soon"
        await each.start("b")
        await trio.sleep(peers.RETRY_S)
        a.send("b", b"3", taken.append, without_redis=True)
        await taken.wait_for(3)
        assert taken == [False, False, True]
        assert each.arrived["b"] == [b"3"]


async def test_whoever_has_no_lease_gets_nothing(jumping_clock: MockClock) -> None:
    async with ends() as each:
        a = await each.start("a")
        taken = Answers()
        a.send("stranger", b"1", taken.append, without_redis=True)
        assert taken == [False]


async def test_what_waits_for_a_node_is_bounded(jumping_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "QUEUE_BYTES_MAX", 1_000)
    async with ends() as each:
        a = await each.start("a")
        await each.start("b")
        taken = Answers()
        a.send("b", bytes(900), taken.append, without_redis=True)
        a.send("b", bytes(101), taken.append, without_redis=True)
        assert taken == [False]
        await taken.wait_for(2)
        assert taken == [False, True]
        a.send("b", bytes(1_000), taken.append, without_redis=True)
        await taken.wait_for(3)
        assert taken[2] is True


async def test_who_confirms_nothing_is_given_up(jumping_clock: MockClock) -> None:
    async def say_nothing(stream: trio.SocketStream) -> None:
        await admit(stream, Incoming(stream), KEY, "b")
        await trio.sleep_forever()

    async with ends() as each:
        a = await each.start("a")
        (listener,) = await each.nursery.start(partial(trio.serve_tcp, say_nothing, 0, host="127.0.0.1"))
        each.live["b"] = lease("b", f"127.0.0.1:{listener.socket.getsockname()[1]}")
        taken = Answers()
        a.send("b", b"1", taken.append, without_redis=True)
        await taken.wait_for(1)
        assert taken == [False]
        assert a.connections == 0


async def test_what_waits_for_a_dead_node_is_given_up(jumping_clock: MockClock) -> None:
    async def never_answer(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with ends() as each:
        a = await each.start("a")
        (listener,) = await each.nursery.start(partial(trio.serve_tcp, never_answer, 0, host="127.0.0.1"))
        each.live["b"] = lease("b", f"127.0.0.1:{listener.socket.getsockname()[1]}")
        taken = Answers()
        a.send("b", b"1", taken.append, without_redis=True)
        a.forget("b")
        await taken.wait_for(1)
        assert taken == [False]


# --- Who is admitted ------------------------------------------------------------------------------------------------


async def test_another_secret_is_refused_by_both_sides(jumping_clock: MockClock) -> None:
    async with ends() as each:
        a = await each.start("a", key_of("another secret, of another cluster entirely"))
        b = await each.start("b")
        taken = Answers()
        a.send("b", b"1", taken.append, without_redis=True)
        b.send("a", b"2", taken.append, without_redis=True)
        await taken.wait_for(2)
        assert taken == [False, False]
        assert each.arrived == {"a": [], "b": []}


async def test_an_earlier_life_at_the_same_address_is_not_taken_for_the_later(jumping_clock: MockClock) -> None:
    async with ends() as each:
        a = await each.start("a")
        b = await each.start("b:2")
        each.live["b:1"] = lease("b:1", each.live["b:2"].address)
        taken = Answers()
        a.send("b:1", b"1", taken.append, without_redis=True)
        await taken.wait_for(1)
        assert taken == [False]
        assert b.refused == 1
        assert each.arrived["b:2"] == []


async def _refused(each: Ends, node: Peers, name: str, sends: Callable[[trio.SocketStream], object]) -> None:
    """Whoever does that to a node is let go without a word, and nothing has arrived."""
    stream = await trio.open_tcp_stream(*split_address(each.live[name].address))
    async with stream:
        await sends(stream)  # type: ignore[misc]
        with trio.fail_after(60):
            try:
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass  # closed with something unread: a reset
    assert node.refused == 1
    assert each.arrived[name] == []


async def test_a_clients_token_admits_nobody(jumping_clock: MockClock) -> None:
    token = jwt.encode({"sub": "a", "aud": "tidegate"}, SECRET, algorithm="HS256").encode()
    async with ends() as each:
        b = await each.start("b")
        await _refused(
            each,
            b,
            "b",
            lambda stream: stream.send_all(b"GET /v1/peer HTTP/1.1\r\nAuthorization: Bearer " + token + b"\r\n\r\n"),
        )


@pytest.mark.parametrize(
    ("begins", "says"),
    [
        (b"tidegate peer 2\n", "whose nodes connect by version 2, these by version 1"),
        (b"GET /v1/connect HTTP/1.1\r\n", "clients belong at the other port"),
    ],
)
async def test_whoever_begins_otherwise_is_told_apart(begins: bytes, says: str) -> None:
    here, there = trio.testing.memory_stream_pair()
    await there.send_all(begins)
    with pytest.raises(PeerRefused, match=says):
        await admit(here, Incoming(here), KEY, "a:1")


async def test_strangers_do_not_fill_the_log(jumping_clock: MockClock) -> None:
    async with ends() as each:
        b = await each.start("b")
        with capture_logs() as logs:
            for count in range(1, 6):
                async with await trio.open_tcp_stream(*split_address(each.live["b"].address)) as stream:
                    await stream.send_all(b"GET /v1/connect HTTP/1.1\r\n")
                    await until(lambda count=count: b.refused == count)  # type: ignore[misc]
    assert [line["event"] for line in logs] == ["connection from a node refused"]


async def test_who_says_nothing_is_let_go(jumping_clock: MockClock) -> None:
    async with ends() as each:
        b = await each.start("b")
        await _refused(each, b, "b", lambda stream: stream.send_all(peer_handshake.PREAMBLE))


async def test_a_listeners_proof_sent_back_to_it_admits_nobody(jumping_clock: MockClock) -> None:
    async def reflect(stream: trio.SocketStream) -> None:
        incoming = Incoming(stream)
        names = b"\x00\x01a\x00\x01b"
        await stream.send_all(peer_handshake.PREAMBLE + bytes(32) + names)
        await incoming.exactly(32)
        await stream.send_all(await incoming.exactly(32))

    async with ends() as each:
        b = await each.start("b")
        await _refused(each, b, "b", reflect)


async def test_a_parcel_beyond_the_limit_ends_the_connection(jumping_clock: MockClock) -> None:
    async with ends() as each:
        await each.start("b")
        stream = await trio.open_tcp_stream(*split_address(each.live["b"].address))
        async with stream:
            incoming = Incoming(stream)
            await dial(stream, incoming, KEY, "a", "b")
            await stream.send_all((peers.PARCEL_BYTES_MAX + 1).to_bytes(4, "big") + b"\x01")
            with pytest.raises(PeerRefused, match="closed"):
                await incoming.exactly(1)
        assert each.arrived["b"] == []


def test_a_short_secret_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"has 31 characters; allowed: at least 32.*openssl rand"):
        key_of("x" * 31)


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:0", "host:65536", "host:http"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(PeerRefused, match="not HOST:PORT"):
        split_address(address)


def test_addresses_of_both_families_are_understood() -> None:
    assert split_address("10.0.0.1:7") == ("10.0.0.1", 7)
    assert split_address("[::1]:7") == ("::1", 7)


# --- A cluster without Redis ----------------------------------------------------------------------------------------


class Node(NodePart):
    """A node with a Redis that can go away, and real sockets."""

    def __init__(self, world: "World[Node]", name: str) -> None:
        self.listening = listen_for_peers("127.0.0.1", 0)
        super().__init__(world, name, address=f"127.0.0.1:{self.listening.getsockname()[1]}")

    def wires(self, incarnation: str, watch: Watch) -> tuple[Transport, Directory]:
        _, directory = super().wires(incarnation, watch)
        self.peers = Peers(incarnation, KEY, self.listening, lambda: watch.live)
        self.transport = TwoWays(self.connection, self.peers)
        return self.transport, directory

    async def begin(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.peers.run)

    async def acknowledged(self, origin: FakeOrigin, count: int) -> None:
        await until(lambda: len(self.acks(origin)) >= count)


async def begin_conversation(each: World[Node], origin: FakeOrigin, at: Node, owner: Node) -> tuple[str, str]:
    """A direct conversation that another node owns, and whom it is with."""
    conversation_id, peer = each.conversation_owned_by(owner, origin.user)
    at.submit(origin, CreateConversation(1, ConversationKind.DIRECT, [peer], client_msg_id="create"))
    await until(lambda: bool(at.edge.replies_to(origin)))
    return conversation_id, peer


@asynccontextmanager
async def world(*names: str, away: bool = False) -> AsyncIterator[tuple[World[Node], list[Node]]]:
    each = World(Node)
    each.network.away = away
    async with running(each, *names) as nodes:
        yield each, nodes


async def test_redis_goes_and_comes_back_and_every_send_is_acknowledged(jumping_clock: MockClock) -> None:
    async with world("a", "b", "c") as (each, (a, b, c)):
        alice = FakeOrigin("alice")
        conversation_id, peer = await begin_conversation(each, alice, a, b)
        each.network.place(peer, c.lease.incarnation)
        submit = partial(a.submit, alice)
        for number in range(30):
            each.network.away = 10 <= number < 20
            submit(Send(100 + number, conversation_id, f"m{number}", f"m{number}"))
            await a.acknowledged(alice, number + 1)
        await trio.sleep(10)
        assert c.bodies(peer) == [f"m{number}" for number in range(30)]
        direct = [node.transport.direct for node in (a, b, c)]
        assert all(direct)
        await trio.sleep(10)
        assert [node.transport.direct for node in (a, b, c)] == direct, "back to Redis"
        assert [node.peers.connections for node in (a, b, c)] == [0, 0, 0]


async def test_a_cluster_begins_and_serves_without_redis(jumping_clock: MockClock) -> None:
    async with world("a", "b", away=True) as (each, (a, b)):
        alice = FakeOrigin("alice")
        conversation_id, peer = await begin_conversation(each, alice, a, b)
        for number in range(5):
            a.submit(alice, Send(100 + number, conversation_id, f"m{number}", f"m{number}"))
        await a.acknowledged(alice, 5)
        await trio.sleep(1)
        assert a.bodies(peer) == b.bodies(peer) == [f"m{number}" for number in range(5)]
