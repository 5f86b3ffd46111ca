"""A whole node: start, drain, and the order of its end."""

import resource
import socket
import time
from types import SimpleNamespace

import jwt
import pytest
import trio
from structlog.contextvars import bound_contextvars, get_contextvars
from structlog.testing import capture_logs

from gateway.api.server import HTTP_CONNECTIONS_MAX, RESERVED_MAX
from gateway.auth import Identity, Verifier
from gateway.broker import Delivery
from gateway.config import Settings
from gateway.drain import SETTLE_S
from gateway.edge.listener import listen
from gateway.node import DESCRIPTORS_RESERVED, Node, derive_connections_max
from gateway.owner.members import direct_id
from protocol.codec import decode_server_frame, encode_entry
from protocol.frames import ConversationKind, CreateConversation, Entry, GetConversation, GoAway, Send, SendAck, Welcome
from protocol.websocket import Opcode, read_header
from tests.fakes.memory_store import MemoryStore

SECRET = "a secret of more than thirty-two bytes, for tests"


@pytest.fixture
def make_node():
    made = []

    def make(**settings):
        chosen = Settings(auth_secret=SECRET, port=0, **settings)
        sockets = listen("127.0.0.1", 0)
        made.extend(sockets)
        return Node(chosen, MemoryStore(), Verifier.from_settings(chosen), sockets)

    yield make
    for sock in made:
        sock.close()


async def connect(node, user):
    """A client's stream, its WebSocket open and its welcome read."""
    port = int(node.address.rpartition(":")[2])
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    token = jwt.encode({"sub": user, "exp": time.time() + 3600, "aud": "tidegate"}, SECRET, "HS256")
    fields = (
        "GET /v1/connect HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: tidegate.v1",
        f"Authorization: Bearer {token}",
    )
    await stream.send_all(("\r\n".join(fields) + "\r\n\r\n").encode())
    data = await stream.receive_some()
    assert data.startswith(b"HTTP/1.1 101 ")
    (welcome,) = frames(data.partition(b"\r\n\r\n")[2])
    assert isinstance(welcome, Welcome)
    return stream


def frames(data):
    """Frames, and close codes as ints."""
    found = []
    while data:
        header = read_header(data)
        end = header.header_bytes + header.payload_bytes
        payload = data[header.header_bytes : end]
        closing = header.opcode == Opcode.CLOSE
        found.append(int.from_bytes(payload[:2], "big") if closing else decode_server_frame(payload))
        data = data[end:]
    return found


async def everything(stream):
    """All that comes until the node closes; then the client closes too."""
    data = b"".join([chunk async for chunk in stream])
    await stream.aclose()
    return frames(data)


async def test_draining_tells_everybody_closes_and_returns(make_node, nursery):
    node = make_node()
    async with trio.open_nursery() as running:
        await running.start(node.run)
        streams = [await connect(node, f"u{n}") for n in range(3)]
        node.drain()
        node.drain()  # again: the same
        for stream in streams:
            got = await everything(stream)
            assert isinstance(got[0], GoAway)
            assert got[-1] == 1012
    assert node.table.count == 0


async def test_a_signal_during_the_start_drains_once_started(make_node, autojump_clock):
    node = make_node()

    async def slow(*, task_status):  # a first fetch of public keys, say
        await trio.sleep(5)
        task_status.started()

    node._verifier.run = slow
    async with trio.open_nursery() as running:
        running.start_soon(node.run)
        await trio.testing.wait_all_tasks_blocked()
        node.drain()


async def held_up(node):
    """A node that another process has left its connections waits for something before it accepts, as in a cluster."""
    go_on = trio.Event()
    node.before_serving = lambda: setattr(node, "started", True)
    node._reception.close = go_on.wait
    return go_on


async def test_a_successor_that_is_told_to_drain_before_it_accepts_drains_its_connections(make_node, nursery):
    node = make_node()
    go_on = await held_up(node)
    with trio.fail_after(30):
        async with trio.open_nursery() as running:
            running.start_soon(node.run)
            await trio.testing.wait_all_tasks_blocked(0.01)
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            identity = Identity("alice", time.time() + 3600)
            node.sessions.open(ours, identity, "phone", json=False)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
            node.drain()
            go_on.set()
            got = await everything(stream)
            assert isinstance(got[1], GoAway)
            assert got[-1] == 1012


async def test_a_successor_that_never_accepts_ends_within_the_grace_all_the_same(make_node, autojump_clock):
    node = make_node(drain_grace_s=7.0)
    await held_up(node)
    with trio.fail_after(60):
        async with trio.open_nursery() as running:
            running.start_soon(running_anyhow, running, node)
            await trio.testing.wait_all_tasks_blocked(0.01)
            node.drain()
            began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(7.0, abs=4.0)
    assert not node.listening


@pytest.mark.parametrize("successor", [False, True])
async def test_a_node_that_is_found_dead_before_it_accepts_ends_and_says_so(make_node, successor):
    node = make_node()

    async def run(*, task_status):
        with trio.CancelScope() as scope:
            node._fence()
            scope.cancel()
            await trio.sleep_forever()

    node.cluster = SimpleNamespace(run=run)
    node.before_serving = lambda: setattr(node, "started", successor)
    with trio.fail_after(30):
        async with trio.open_nursery() as running:
            await running.start(node.run)
    assert node.fenced
    assert not node.listening


async def running_anyhow(nursery, node):
    """Whoever waits for the start of a node that ends before is not told that this is a fault."""
    await nursery.start(node.run)


@pytest.mark.parametrize("part", ["hub.remove", "parking.forget", "presences.forget", "keepalive.forget"])
async def test_a_fault_at_the_end_of_one_connection_does_not_end_the_node(make_node, nursery, monkeypatch, part):
    node = make_node()
    owner, _, name = part.partition(".")
    monkeypatch.setattr(getattr(node, owner), name, lambda _connection: 1 / 0)
    with trio.fail_after(30):
        await nursery.start(node.run)
        alice, bob = [await connect(node, user) for user in ("alice", "bob")]
        await alice.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert node.table.count == 1
        assert ("alice" in node.hub.by_user) == (part == "hub.remove"), "the others forget it all the same"
        await bob.send_all(b"\x89\x80\x00\x00\x00\x00")  # a ping
        assert await bob.receive_some() == b"\x8a\x00"
        await bob.aclose()


async def test_a_store_that_stands_still_costs_nobody_the_close_frame(make_node, nursery):
    node = make_node(drain_grace_s=0.2)
    node.owner.backlog.waiting = 1  # an append that the disk does not answer
    async with trio.open_nursery() as running:
        await running.start(node.run)
        stream = await connect(node, "alice")
        node.drain()
        assert (await everything(stream))[-1] == 1012
    assert node.table.count == 0


async def test_acknowledgements_behind_a_fanout_leave_before_the_close(make_node, mock_clock):
    node = make_node()
    deliver_on, write = trio.Event(), node.hub.fanout.run

    async def run():
        await deliver_on.wait()
        await write()

    node.hub.fanout.run = run  # a large one takes a while
    async with trio.open_nursery() as running:
        await running.start(node.run)
        stream = await connect(node, "alice")
        (connection,) = node.hub.connections_of("alice")
        recipients = (*(f"u{n}" for n in range(5_000)), "alice")
        entry = encode_entry(Entry(1, 1, 1, "alice", "m"))
        node.hub.deliver(Delivery("g", recipients, [entry], [connection]))
        node.hub.reply(connection, SendAck(7, 1, 1), "g")
        node.drain()
        await almost_settle(mock_clock)
        deliver_on.set()
        await trio.testing.wait_all_tasks_blocked(0.001)
        mock_clock.rate = 10
        got = await everything(stream)
        assert SendAck(7, 1, 1) in got
        assert got[-1] == 1012


async def test_what_was_accepted_is_acknowledged_before_the_close(make_node, mock_clock):
    node = make_node()
    async with trio.open_nursery() as running:
        await running.start(node.run)
        stream = await connect(node, "alice")
        (connection,) = node.hub.connections_of("alice")
        node.owner.submit(connection, CreateConversation(6, ConversationKind.DIRECT, ["bob"], client_msg_id="create"))
        await trio.testing.wait_all_tasks_blocked(0.001)
        node.store.held = True
        node.owner.submit(connection, Send(7, direct_id("alice", "bob"), "m", "m"))
        node.drain()
        await almost_settle(mock_clock)
        node.store.answer()
        await trio.testing.wait_all_tasks_blocked(0.001)
        mock_clock.rate = 10
        got = await everything(stream)
        assert [frame.id for frame in got if isinstance(frame, SendAck)] == [7]
        assert got[-1] == 1012


async def almost_settle(clock):
    """Let most of the time pass for which a drain waits for answers."""
    for _ in range(4):
        await trio.testing.wait_all_tasks_blocked(0.001)
        clock.jump(SETTLE_S / 5)
    await trio.testing.wait_all_tasks_blocked(0.001)


async def test_a_draining_node_is_not_ready_and_accepts_connections_for_its_lead(make_node, mock_clock):
    node = make_node(drain_lead_s=10.0)
    port = int(node.address.rpartition(":")[2])
    async with trio.open_nursery() as running:
        await running.start(node.run)
        streams = [await connect(node, "alice")]
        assert all(check.ok for check in node.readiness())
        mock_clock.jump(100)
        node.drain()
        assert [check.name for check in node.readiness() if not check.ok] == ["accepting"]
        streams.append(await connect(node, "bob"))
        mock_clock.jump(10)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", port)
        mock_clock.rate = 10
        for stream in streams:
            got = await everything(stream)
            assert isinstance(got[0], GoAway)
            assert got[-1] == 1012
    assert node.table.count == 0


async def test_a_node_of_a_cluster_without_a_sure_lease_is_not_ready(make_node):
    """Its Cassandra stands still and nobody sends: no write has failed, and none would be acknowledged."""
    node = make_node()
    lease = SimpleNamespace(valid=lambda: True)
    node.cluster = SimpleNamespace(lease=lease)
    node.started = True
    assert all(check.ok for check in node.readiness())
    lease.valid = lambda: False
    (check,) = [check for check in node.readiness() if not check.ok]
    assert check.name == "lease"
    assert "Cassandra" in check.detail


async def test_who_does_not_go_is_cut_when_the_grace_is_over(make_node, mock_clock):
    node = make_node(drain_grace_s=4.0, drain_lead_s=1.0)
    async with trio.open_nursery() as running:
        await running.start(node.run)
        stream = await connect(node, "alice")
        began = trio.current_time()
        node.drain()
        while node.table.count:
            mock_clock.jump(0.25)
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert trio.current_time() - began == pytest.approx(4.0, abs=0.5)
        await stream.aclose()


async def test_requests_of_one_user_are_bounded_whatever_their_connections(make_node, mock_clock):
    node = make_node(commands_per_s_max=1, commands_burst_max=2)
    token = jwt.encode({"sub": "alice", "exp": time.time() + 3600, "aud": "tidegate"}, SECRET, "HS256")
    request = f"GET /v1/conversations HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"

    async def ask():
        async with await trio.open_tcp_stream(*node.sockets[0].getsockname()) as stream:
            await stream.send_all(request.encode())
            return b"".join([chunk async for chunk in stream]).decode()

    async with trio.open_nursery() as running:
        await running.start(node.run)
        assert [(await ask())[9:12] for _ in range(2)] == ["200"] * 2
        refused = await ask()
        assert refused.startswith("HTTP/1.1 429 ")
        assert "retry-after: 2\r\n" in refused.lower()
        assert "more than 1 requests a second of one user, 2 at once" in refused
        assert node.admission.refused == 1
        mock_clock.jump(1.1)
        assert (await ask()).startswith("HTTP/1.1 200 ")
        running.cancel_scope.cancel()


async def test_what_a_request_sets_going_for_others_as_well_is_not_logged_as_its_own(make_node, monkeypatch):
    node, ids = make_node(), []
    take_over = node._store.take_over

    async def take_over_and_look(*args):
        ids.append(get_contextvars())
        return await take_over(*args)

    monkeypatch.setattr(node._store, "take_over", take_over_and_look)
    async with trio.open_nursery() as running:
        await running.start(node.run)
        with bound_contextvars(request="r1", user="alice"):
            await node.call("alice", GetConversation(1, direct_id("alice", "bob")))
        running.cancel_scope.cancel()
    assert ids == [{}]


def test_descriptors_are_kept_back_for_all_that_is_no_connection():
    assert DESCRIPTORS_RESERVED > HTTP_CONNECTIONS_MAX + RESERVED_MAX


@pytest.mark.parametrize(
    ("configured", "descriptors", "limit", "level"),
    [
        (0, 20_000, 20_000 - 512 - DESCRIPTORS_RESERVED, "info"),
        (5_000, 20_000, 5_000, "info"),
        (50_000, 20_000, 20_000 - 512 - DESCRIPTORS_RESERVED, "warning"),
        (0, 256, 1, "warning"),
    ],
)
def test_the_connection_limit_is_derived_from_the_file_limit_and_logged(
    configured, descriptors, limit, level, monkeypatch
):
    raised = []
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (100, descriptors))
    monkeypatch.setattr(resource, "setrlimit", lambda _what, limits: raised.append(limits))
    with capture_logs() as lines:
        assert derive_connections_max(Settings(connections_max=configured)) == limit
    assert raised == [(descriptors, descriptors)]
    (line,) = lines
    assert (line["log_level"], line["event"], line["connections_max"]) == (level, "connection limit", limit)
    assert (line["configured"], line["descriptors"]) == (configured, descriptors)
    assert ("ulimit -n" in line.get("advice", "")) == (level == "warning")
