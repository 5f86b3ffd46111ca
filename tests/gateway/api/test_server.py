"""Sockets handed over: split heads and bodies, keep-alive, bounds, deadlines, and the end."""

import socket
import struct

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.api import app, conversations, server, stream
from gateway.api.app import Api
from gateway.api.server import HttpServer
from gateway.config import Settings
from protocol import frames
from tests.gateway.api.support import Client, FakeNode, Front, request_bytes

ENTRIES = "/v1/conversations/dABC/entries"
LIVE = request_bytes("GET", "/health/live", user=None)
UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
SEND = request_bytes("POST", ENTRIES, {"client_msg_id": "m1", "body": "hello"})


async def test_a_request_split_anywhere_is_the_same_request(front: Front) -> None:
    front.node.reply = frames.SendAck(1, 4, 9)
    for cut in range(1, len(SEND) + 1, 7):
        client = front.open(SEND[:cut])
        async with client.stream:
            await wait_all_tasks_blocked()
            if cut < len(SEND):
                await client.stream.send_all(SEND[cut:])
            assert (await client.response("POST")).status == 201
    assert len({str(asked) for asked in front.node.asked}) == 1


async def test_a_request_byte_by_byte(front: Front) -> None:
    front.node.reply = frames.SendAck(1, 4, 9)
    client = front.open(SEND[:1])
    async with client.stream:
        for place in range(1, len(SEND)):
            await client.stream.send_all(SEND[place : place + 1])
        assert (await client.response("POST")).status == 201


async def test_a_chunked_body_of_many_tiny_chunks(front: Front) -> None:
    front.node.reply = frames.SendAck(1, 4, 9)
    body = b'{"client_msg_id":"m1","body":"%s"}' % (b"x" * 500)
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-of-alice\r\n" % ENTRIES.encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    client = front.open(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    async with client.stream:
        assert (await client.response("POST")).status == 201


async def test_one_connection_carries_many_requests(front: Front) -> None:
    client = front.open(LIVE)
    async with client.stream:
        assert (await client.response()).status == 200
        for _ in range(3):
            assert (await client.ask("GET", "/health/ready")).status == 200
            assert (await client.ask("GET", "/v2/nothing")).status == 404
            assert (await client.ask("POST", ENTRIES, raw=b"{")).status == 400
            assert (await client.ask("POST", ENTRIES, raw=b"{", user=None)).status == 401
        assert front.server.connections == 1


async def test_pipelined_requests_are_answered_in_order(front: Front) -> None:
    client = front.open(LIVE + request_bytes("GET", "/v2/nothing") + LIVE)
    async with client.stream:
        assert [(await client.response()).status for _ in range(3)] == [200, 404, 200]


async def test_connection_close_is_obeyed(front: Front) -> None:
    client = front.open(request_bytes("GET", "/health/live", user=None, headers=("Connection: close",)))
    async with client.stream:
        assert (await client.response()).status == 200
        assert await client.closed()


async def test_a_closed_connection_frees_its_place_at_once(front: Front, mock_clock: MockClock) -> None:
    client = front.open(LIVE)
    await client.response()
    opened_at = mock_clock.current_time()
    await client.stream.aclose()
    await front.until_connections(0)
    assert mock_clock.current_time() == opened_at


async def test_a_half_closed_connection_still_gets_its_answer(front: Front) -> None:
    front.node.reply = frames.SendAck(1, 4, 9)
    front.node.gate = trio.Event()
    client = front.open(SEND)
    async with client.stream:
        await front.node.called.wait()
        await client.stream.send_eof()
        await wait_all_tasks_blocked()
        front.node.gate.set()
        assert (await client.response("POST")).status == 201
        assert await client.closed()
        await front.until_connections(0)


async def test_an_upgrade_on_a_kept_connection_is_refused_clearly(front: Front) -> None:
    client = front.open(LIVE)
    async with client.stream:
        await client.response()
        await client.stream.send_all(request_bytes("GET", "/v1/connect", headers=UPGRADE))
        response = await client.response()
        assert response.status == 400
        assert "open a new one for /v1/connect" in str(response.json["detail"])
        assert await client.closed()


async def test_a_broken_upgrade_does_not_hold_its_place(front: Front, mock_clock: MockClock) -> None:
    client = front.open(LIVE)
    async with client.stream:
        await client.response()
        broken = request_bytes("GET", "/v1/connect", headers=("Connection: Upgrade", "Upgrade: websocket"))
        await client.stream.send_all(broken)
        assert (await client.response()).status == 400
        await wait_all_tasks_blocked()
        mock_clock.jump(server.READ_TIMEOUT_S + 1)
        assert await client.closed()


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n"])
async def test_garbage_gets_400_and_the_end(front: Front, garbage: bytes) -> None:
    client = front.open(garbage)
    async with client.stream:
        assert (await client.response()).status == 400
        assert await client.closed()


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"])
@pytest.mark.parametrize("pipelined", [False, True])
async def test_garbage_behind_a_request_frees_the_place_at_once(
    front: Front, garbage: bytes, pipelined: bool, mock_clock: MockClock
) -> None:
    client = front.open(LIVE + garbage if pipelined else LIVE)
    async with client.stream:
        assert (await client.response()).status == 200
        if not pipelined:
            await client.stream.send_all(garbage)
        assert (await client.response()).status == 400
        assert await client.closed()
        await front.until_connections(0)


async def test_what_a_stranger_breaks_is_told_without_a_traceback(front: Front) -> None:
    """Bytes behind an upgrade that hypercorn refuses: it stumbles over its own state."""
    with capture_logs() as logs:
        client = front.open(request_bytes("GET", "/v1/connect", user=None, headers=UPGRADE) + LIVE)
        async with client.stream:
            await front.until_connections(0)
    assert logs
    assert {line["log_level"] for line in logs} == {"warning"}
    assert not any("exc_info" in line for line in logs)


async def test_a_too_large_head_on_a_kept_connection_is_refused(front: Front) -> None:
    client = front.open(LIVE)
    async with client.stream:
        await client.response()
        await client.stream.send_all(b"GET / HTTP/1.1\r\nX: " + b"a" * (Settings().request_head_bytes_max + 1))
        assert (await client.response()).status == 431


async def test_a_too_large_body_is_413(front: Front) -> None:
    body = b" " * (app.REQUEST_BODY_BYTES_MAX + 1)
    response = await front.ask("POST", ENTRIES, raw=body)
    assert (response.status, response.json["code"]) == (413, "TOO_LONG")
    assert "65,536 bytes" in str(response.json["detail"])


async def test_a_body_as_large_as_allowed_is_read(front: Front) -> None:
    front.node.reply = frames.SendAck(1, 4, 9)
    body = b'{"client_msg_id":"m1","body":"x"}'.ljust(app.REQUEST_BODY_BYTES_MAX)
    assert (await front.ask("POST", ENTRIES, raw=body)).status == 201


async def test_an_endless_body_is_cut_off(front: Front) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
    client = front.open(head)
    async with client.stream:
        with pytest.raises(trio.BrokenResourceError):
            await client.stream.send_all(b" " * 1_000_000_000)
    await front.until_connections(0)


async def test_a_body_that_does_not_come_is_408(front: Front, mock_clock: MockClock) -> None:
    client = front.open(SEND[:-1])
    async with client.stream:
        await wait_all_tasks_blocked()
        mock_clock.jump(app.BODY_TIMEOUT_S)
        assert (await client.response("POST")).status == 408
        assert await client.closed()


async def test_an_idle_connection_ends_after_the_keep_alive_time(front: Front, mock_clock: MockClock) -> None:
    client = front.open(LIVE)
    async with client.stream:
        await client.response()
        await wait_all_tasks_blocked()
        mock_clock.jump(server.KEEP_ALIVE_S)
        assert await client.closed()


async def test_a_node_that_does_not_answer(front: Front, mock_clock: MockClock) -> None:
    front.node.gate = trio.Event()
    for request, code in ((SEND, "OUTCOME_UNKNOWN"), (request_bytes("GET", ENTRIES), "UNAVAILABLE")):
        client = front.open(request)
        async with client.stream:
            await wait_all_tasks_blocked()
            mock_clock.jump(conversations.CALL_TIMEOUT_S)
            response = await client.response()
        assert (response.status, response.json["code"]) == (503, code)
        assert response.headers["retry-after"] == "1"


async def test_a_reader_that_takes_nothing_is_cut_off(front: Front, mock_clock: MockClock) -> None:
    ours, theirs = front.sockets()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    front.server.hand_over(theirs, request_bytes("GET", "/", user=None) * 200)
    client = Client(ours)
    async with client.stream:
        await wait_all_tasks_blocked()
        assert front.server.connections == 1
        mock_clock.jump(stream.SEND_TIMEOUT_S)
        await front.until_connections(0)


async def test_a_reset_ends_the_request_under_way(front: Front) -> None:
    front.node.gate = trio.Event()
    client = front.open(SEND)
    await front.node.called.wait()
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await client.stream.aclose()
    await front.until_connections(0)


@pytest.mark.parametrize("settings", ["garbage", "AAMAAABkAAQAAP__"])
async def test_an_upgrade_to_http2_is_passed_over(front: Front, settings: str) -> None:
    """A proxy that sees a 101 would forward whatever comes behind it, past its own rules."""
    headers = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", f"HTTP2-Settings: {settings}")
    upgrade = request_bytes("GET", "/health/live", user=None, headers=headers)
    client = front.open(upgrade)
    async with client.stream:
        assert (await client.response()).status == 200
        await client.stream.send_all(upgrade)
        assert (await client.response()).status == 200


async def test_http2_does_not_begin_on_a_kept_connection(front: Front) -> None:
    client = front.open(LIVE)
    async with client.stream:
        await client.response()
        await client.stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 4")


# --- The end --------------------------------------------------------------------------------------------------------


async def test_before_the_start_connections_are_turned_away(node: FakeNode) -> None:
    api = Api(node, "0.0.0")
    front = Front(node, HttpServer(api, Settings()), api)
    response = await front.ask("GET", "/health/live", user=None)
    assert (response.status, response.headers["retry-after"]) == (503, "1")


async def test_at_the_end_open_requests_are_answered_and_idle_connections_closed(node: FakeNode) -> None:
    node.reply = frames.SendAck(1, 4, 9)
    node.gate = trio.Event()
    api = Api(node, "0.0.0")
    http = HttpServer(api, Settings())
    front = Front(node, http, api)
    async with trio.open_nursery() as clients, trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: http.run(task_status=task_status))
        idle, busy = front.open(LIVE), front.open(SEND)
        await idle.response()
        await node.called.wait()
        statuses: list[int] = []

        async def finish() -> None:
            assert await idle.closed()
            await front.until_connections(1)
            assert node.gate is not None
            node.gate.set()
            statuses.append((await busy.response("POST")).status)
            assert await busy.closed()

        clients.start_soon(finish)
        nursery.cancel_scope.cancel()
    assert statuses == [201]
    assert http.connections == 0
    assert (await front.ask("GET", "/health/live", user=None)).status == 503
    await idle.stream.aclose()
    await busy.stream.aclose()


async def test_a_request_that_outlasts_the_grace_is_cut(node: FakeNode, autojump_clock: MockClock) -> None:
    node.gate = trio.Event()
    api = Api(node, "0.0.0")
    http = HttpServer(api, Settings())
    front = Front(node, http, api)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: http.run(task_status=task_status))
        client = front.open(SEND)
        await node.called.wait()
        stopped_at = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - stopped_at == pytest.approx(server.GRACE_S)
    assert await client.closed()
    await client.stream.aclose()
