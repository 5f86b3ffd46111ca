"""What comes before a request: headers of load balancers from those who may send them, TLS, and both."""

from __future__ import annotations

import socket
import ssl

import pytest
import trio
from structlog.testing import capture_logs

from deploy.certificates import make_certificate
from gateway.edge.entrance import Arrival, Entrance, NotLetIn
from gateway.edge.proxy_protocol import SIGNATURE
from gateway.observe.seldom import LOG_INTERVAL_S
from tests.gateway.edge.test_listener import Door, receive_frames, receive_head, request

CLIENT = ("192.0.2.1", 56324)
HEADER = SIGNATURE + bytes.fromhex("21 11 000c  c0000201 c6336402 dc04 01bb")
LOCAL = SIGNATURE + bytes.fromhex("20 00 0000")
PAGE = b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def open_door(edge, nursery):
    doors = []

    async def make(**settings):
        made = Door(edge, **settings)
        doors.append(made)
        await nursery.start(made.listener.run, made.sockets)
        return made

    yield make
    for door in doors:
        door.close()


@pytest.fixture
async def door(open_door):
    return await open_door(proxy_protocol_from=["127.0.0.0/8"])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("certificate"), ["127.0.0.1"])


@pytest.fixture
async def tls_door(open_door, certificate):
    return await open_door(tls_cert=str(certificate.chain_path))


async def ended(stream):
    """What comes until the node closes, a reset included."""
    try:
        return b"".join([chunk async for chunk in stream])
    except trio.BrokenResourceError:
        return b""


async def settled(door):
    """Nothing of a handshake is left."""
    while door.listener.handshakes:
        await trio.lowlevel.checkpoint()


class TestHeaders:
    async def test_a_connection_that_a_load_balancer_forwards_opens_at_once(self, door, edge):
        with capture_logs() as logs:
            stream = await door.connect(HEADER + request())
            _, data = await receive_head(stream)
            await receive_frames(stream, data, 1)
        assert edge.table.count == 1
        assert {"event": "connection opened", "log_level": "debug", "user": "alice", "client": CLIENT[0]} in logs

    async def test_the_client_is_told_to_the_http_server(self, door):
        assert await door.answer(HEADER + PAGE) == ""
        assert (door.http.taken, door.http.peers) == ([PAGE], [CLIENT])

    @pytest.mark.parametrize("token", [True, False])
    async def test_byte_by_byte(self, door, edge, token):
        stream = await door.connect()
        for byte in HEADER + request(authorization=token):
            await stream.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        head, _ = await receive_head(stream)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert edge.table.count == token

    async def test_a_refusal_names_the_client_and_not_the_load_balancer(self, door):
        with capture_logs() as logs:
            answer = await door.answer(HEADER + request(path="/wrong"))
        assert answer.startswith("HTTP/1.1 404 ")
        assert [line["client"] for line in logs if line["event"] == "handshake refused"] == [CLIENT[0]]

    async def test_a_health_check_comes_from_the_load_balancer_itself(self, door):
        await door.answer(LOCAL + PAGE)
        assert door.http.taken == [PAGE]
        assert door.http.peers[0][0] == "127.0.0.1"

    async def test_without_a_header_nobody_gets_in(self, door):
        with capture_logs() as logs:
            for data in (PAGE, request(), b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2\r\n" + PAGE):
                assert await ended(await door.connect(data)) == b""
        assert door.listener.handshakes == 0
        assert door.http.taken == []
        assert door.entrance.headers_refused == 3
        (line,) = [line for line in logs if line["event"] == "load balancer's header refused"]
        assert line["client"] == "127.0.0.1"
        assert "does not begin with a PROXY protocol v2 header" in line["reason"]

    async def test_a_header_that_turns_wrong_in_the_middle(self, door):
        stream = await door.connect(HEADER[:13])
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(b"\x41")
        assert await ended(stream) == b""
        assert door.entrance.headers_refused == 1

    async def test_a_load_balancer_that_connects_and_leaves_is_no_fault(self, door):
        with capture_logs() as logs:
            for data in (b"", HEADER[:5], HEADER, LOCAL):
                async with await door.connect(data):
                    await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
            await settled(door)
        assert door.entrance.headers_refused == 0
        assert logs == []

    async def test_others_may_not_say_who_they_are(self, open_door):
        door = await open_door(proxy_protocol_from=["10.0.0.0/8", "2001:db8::/32"])
        answer = await door.answer(HEADER + request())
        assert answer.startswith("HTTP/1.1 400 ")
        await door.answer(PAGE)
        assert door.http.peers[0][0] == "127.0.0.1"

    async def test_who_is_slow_with_the_header_is_cut_in_time(self, open_door, autojump_clock):
        door = await open_door(proxy_protocol_from=["127.0.0.1"], handshake_timeout_s=3)
        before = trio.current_time()
        assert b" 408 " in await ended(await door.connect(HEADER[:20]))
        assert 2.9 < trio.current_time() - before < 4

    async def test_the_log_tells_how_many_it_left_out(self, autojump_clock):
        entrance = Entrance(["127.0.0.1"], None)
        with capture_logs() as logs:
            for pause_s in (0, 1, 1, LOG_INTERVAL_S):
                await trio.sleep(pause_s)
                ours, theirs = socket.socketpair()
                theirs.send(b"GET")
                with pytest.raises(NotLetIn):
                    entrance.begin(Arrival(ours, ("127.0.0.1", 1), entering=True))
                ours.close()
                theirs.close()
        assert [line["others_since_last_line"] for line in logs] == [0, 2]


class TestTls:
    async def connect(self, door, certificate, header=b""):
        tcp = await door.connect(header)
        context = certificate.client_context()
        return trio.SSLStream(tcp, context, server_hostname="127.0.0.1", https_compatible=True)

    async def test_a_connection_opens_and_is_closed(self, tls_door, certificate, edge):
        stream = await self.connect(tls_door, certificate)
        await stream.send_all(request())
        head, data = await receive_head(stream)
        assert head.startswith(b"HTTP/1.1 101 ")
        await receive_frames(stream, data, 1)
        assert edge.table.count == 1
        (connection,) = edge.hub.connections_of("alice")
        edge.writer.close(connection, 1012, "over")
        assert (await receive_frames(stream, b"", 1)) == [1012]
        assert await ended(stream) == b""  # TLS ends too, in order

    async def test_with_a_header_before_it(self, open_door, certificate):
        door = await open_door(tls_cert=str(certificate.chain_path), proxy_protocol_from=["127.0.0.1"])
        stream = await self.connect(door, certificate, HEADER)
        await stream.send_all(PAGE)
        assert await ended(stream) == b""
        assert (door.http.taken, door.http.peers) == ([PAGE], [CLIENT])

    async def test_a_large_request_in_small_reads(self, open_door, certificate):
        door = await open_door(tls_cert=str(certificate.chain_path), request_head_bytes_max=1024)
        stream = await self.connect(door, certificate)
        page = PAGE + b"x" * 10_000
        await stream.send_all(page)
        assert await ended(stream) == b""
        assert b"".join(door.http.taken) == page

    async def test_plain_http_is_told_what_the_port_speaks(self, tls_door):
        answer = await tls_door.answer(PAGE)
        assert answer.startswith("HTTP/1.1 400 ")
        assert "https://" in answer
        assert tls_door.entrance.tls_failed == 1

    async def test_garbage_is_counted_and_closed(self, tls_door):
        await ended(await tls_door.connect(b"\x00" * 100))
        await settled(tls_door)
        assert tls_door.entrance.tls_failed == 1

    async def test_a_client_that_does_not_trust_the_certificate(self, tls_door):
        tcp = await tls_door.connect()
        stream = trio.SSLStream(tcp, ssl.create_default_context(), server_hostname="127.0.0.1")
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await tcp.aclose()
        await settled(tls_door)
        assert tls_door.listener.handshakes == 0

    async def test_who_is_slow_is_cut_in_time(self, open_door, certificate, autojump_clock):
        door = await open_door(tls_cert=str(certificate.chain_path), handshake_timeout_s=3)
        before = trio.current_time()
        assert await ended(await door.connect(b"\x16\x03\x01")) == b""
        assert 2.9 < trio.current_time() - before < 4
        stream = await self.connect(door, certificate)
        await stream.send_all(b"GET / HT")
        assert b" 408 " in await ended(stream)

    async def test_the_end_of_the_node_ends_handshakes(self, edge, certificate):
        door = Door(edge, tls_cert=str(certificate.chain_path))
        async with trio.open_nursery() as nursery:
            await nursery.start(door.listener.run, door.sockets)
            stream = await door.connect(b"\x16\x03\x01")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await ended(stream) == b""
        door.close()
