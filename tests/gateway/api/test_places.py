"""A bounded number of HTTP connections: who keeps the node waiting gives way, and operators are always answered."""

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from deploy.certificates import make_certificate
from gateway.api import places, server
from gateway.api.app import Api
from gateway.api.routes import ROUTES
from gateway.api.server import HttpServer
from gateway.config import Settings
from gateway.edge.tls import TlsServer
from protocol import frames
from tests.gateway.api.support import Client, FakeNode, Front, request_bytes

LIVE = request_bytes("GET", "/health/live", user=None)
METRICS = request_bytes("GET", "/metrics", user=None)
SEND = request_bytes("POST", "/v1/conversations/dABC/entries", {"client_msg_id": "m1", "body": "hello"})


class Bounded(Front):
    """A front whose server has room for few connections."""

    async def idle(self) -> Client:
        """A connection whose request was answered."""
        client = self.open(LIVE)
        assert (await client.response()).status == 200
        await wait_all_tasks_blocked()
        return client

    async def busy(self) -> Client:
        """A connection with a request that waits for the node."""
        client = self.open(SEND)
        await wait_all_tasks_blocked()
        return client

    def go_on(self) -> None:
        """Let the node answer what waits for it."""
        assert self.node.gate is not None
        self.node.gate.set()

    async def deaf(self, request: bytes) -> Client:
        """A connection that asks much and reads nothing."""
        ours, theirs = self.sockets()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        self.server.hand_over(theirs, request)
        await wait_all_tasks_blocked()
        return Client(ours)

    async def status(self, request: bytes = LIVE) -> int:
        """What a request on a connection of its own is answered."""
        client = self.open(request)
        async with client.stream:
            return (await client.response()).status


def shake_hands(sock: ssl.SSLSocket) -> bool:
    """Whether an end has done its part of a TLS handshake."""
    try:
        sock.do_handshake()
    except (ssl.SSLWantReadError, BlockingIOError):
        return False
    return True


@asynccontextmanager
async def running(node: FakeNode, connections_max: int, reserved: int) -> AsyncIterator[Bounded]:
    api = Api(node, "0.0.0")
    made = HttpServer(api, Settings(), connections_max=connections_max, reserved=reserved)
    node.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: made.run(task_status=task_status))
        bounded = Bounded(node, made, api)
        yield bounded
        bounded.go_on()  # the clock may stand still, and then nothing else would end them
        nursery.cancel_scope.cancel()


@pytest.fixture
async def narrow(node: FakeNode) -> AsyncIterator[Bounded]:
    """Room for one connection."""
    node.reply = frames.SendAck(1, 4, 9)
    async with running(node, 1, 0) as bounded:
        yield bounded


@pytest.fixture
async def front(node: FakeNode) -> AsyncIterator[Bounded]:
    """Room for two connections, and for one of operators."""
    node.reply = frames.SendAck(1, 4, 9)
    async with running(node, 2, 1) as bounded:
        yield bounded


async def test_one_connection_too_many_is_told_so(narrow: Bounded) -> None:
    busy = await narrow.busy()
    async with busy.stream:
        response = await narrow.ask("GET", "/health/live", user=None)
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert b"holds 1 HTTP connections" in response.body
        assert narrow.server.refused == 1
        narrow.go_on()
        assert (await busy.response("POST")).status == 201
    await narrow.until_connections(0)
    assert await narrow.status() == 200


async def test_who_is_turned_away_in_the_midst_of_a_request_sees_no_reset(narrow: Bounded) -> None:
    async with (await narrow.busy()).stream:
        ours, theirs = narrow.sockets()
        ours.send(SEND)
        head = SEND.index(b"\r\n\r\n") + 4
        narrow.server.hand_over(theirs, theirs.recv(head))
        client = Client(ours)
        async with client.stream:
            assert (await client.response("POST")).status == 503
            assert await client.stream.receive_some() == b""


async def test_the_connection_that_is_idle_for_longest_gives_way(front: Bounded, mock_clock: MockClock) -> None:
    first, second = await front.idle(), await front.idle()
    mock_clock.jump(1)
    assert (await first.ask("GET", "/health/live")).status == 200
    third = await front.idle()
    assert await second.closed()
    assert (await first.ask("GET", "/health/live")).status == 200
    assert (await third.ask("GET", "/health/live")).status == 200
    assert (front.server.connections, front.server.gave_way, front.server.refused) == (2, 1, 0)
    for client in (first, second, third):
        await client.stream.aclose()


async def test_who_sends_slowly_gives_way_and_is_told_so(front: Bounded, mock_clock: MockClock) -> None:
    slow, busy = front.open(SEND[:-1]), await front.busy()
    other = request_bytes("GET", "/v1/conversations", user=None)
    assert await front.status(other) == 503  # it may still be on its way
    mock_clock.jump(places.PATIENCE_S)
    assert await front.status(other) == 401
    response = await slow.response("POST")
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert b"the rest of the request did not come" in response.body
    assert await slow.closed()
    assert front.server.gave_way == 1
    for client in (slow, busy):
        await client.stream.aclose()


async def test_who_sends_slowly_over_tls_is_told_so(front: Bounded, mock_clock: MockClock, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, ["127.0.0.1"])
    ours, theirs = front.sockets()
    taken = TlsServer(str(certificate.certificate_path), str(certificate.key_path)).wrap(theirs)
    context = certificate.client_context()
    slow = context.wrap_socket(ours, server_hostname="127.0.0.1", do_handshake_on_connect=False)
    while not (shake_hands(slow) & shake_hands(taken)):
        await trio.lowlevel.checkpoint()
    front.server.hand_over(taken, SEND[:-1])
    busy = await front.busy()
    mock_clock.jump(places.PATIENCE_S)
    assert await front.status(request_bytes("GET", "/v1/conversations", user=None)) == 401
    assert b"the rest of the request did not come" in slow.recv(4_096)
    assert slow.recv(4_096) == b""
    slow.close()
    await busy.stream.aclose()


async def test_who_reads_slowly_gives_way(front: Bounded, mock_clock: MockClock) -> None:
    deaf, busy = await front.deaf(request_bytes("GET", "/", user=None) * 200), await front.busy()
    mock_clock.jump(places.PATIENCE_S)
    assert await front.status(request_bytes("GET", "/v1/conversations", user=None)) == 401
    assert front.server.gave_way == 1
    for client in (deaf, busy):
        await client.stream.aclose()


async def test_idle_ones_give_way_before_slow_ones(front: Bounded, mock_clock: MockClock) -> None:
    slow = front.open(SEND[:-1])
    idle = await front.idle()
    mock_clock.jump(places.PATIENCE_S)
    async with (await front.idle()).stream:
        assert await idle.closed()
        front.go_on()
        await slow.stream.send_all(SEND[-1:])
        assert (await slow.response("POST")).status == 201
    for client in (slow, idle):
        await client.stream.aclose()


async def test_a_request_that_waits_for_the_node_never_gives_way(front: Bounded, mock_clock: MockClock) -> None:
    busy = [await front.busy(), await front.busy()]
    mock_clock.jump(5)
    assert await front.status(request_bytes("GET", "/v1/conversations")) == 503
    front.go_on()
    for client in busy:
        assert (await client.response("POST")).status == 201
        await client.stream.aclose()


async def test_operators_are_answered_however_many_requests_wait_for_the_node(front: Bounded) -> None:
    busy = [await front.busy(), await front.busy()]
    for request in (LIVE, METRICS, request_bytes("GET", "/health/ready?verbose", user=None)) * 2:
        client = front.open(request)
        async with client.stream:
            response = await client.response()
            assert (response.status, response.headers["connection"]) == (200, "close")
            assert await client.closed()
        await front.until_connections(2)
    assert (front.server.gave_way, front.server.refused) == (0, 0)
    for client in busy:
        await client.stream.aclose()


async def test_the_reserve_is_no_place_to_wait_in(front: Bounded, mock_clock: MockClock) -> None:
    front.api._node.render_metrics = lambda: b"x" * 4_000_000  # type: ignore[method-assign]
    busy = [await front.busy(), await front.busy()]
    deaf = await front.deaf(METRICS)
    assert front.server.connections == 3
    assert await front.status() == 503
    mock_clock.jump(places.PATIENCE_S)
    assert await front.status() == 200
    for client in (*busy, deaf):
        await client.stream.aclose()


async def test_strangers_who_fill_all_places_keep_no_health_check_out(node: FakeNode) -> None:
    async with running(node, server.HTTP_CONNECTIONS_MAX, server.RESERVED_MAX) as front:
        strangers = [await front.idle() for _ in range(server.HTTP_CONNECTIONS_MAX)]
        for _ in range(3):
            assert await front.status() == 200
            assert await front.status(METRICS) == 200
        assert front.server.refused == 0
        for stranger in strangers:
            await stranger.stream.aclose()


def test_what_the_reserve_is_for_exists() -> None:
    assert {route.path.encode() for route in ROUTES} >= server.RESERVED_PATHS
