"""Handshakes over real sockets: what is accepted, what is refused and how, and who is kept waiting."""

from __future__ import annotations

import errno
import os
import time

import jwt
import pytest
import trio

from gateway.auth import UnknownKey, Verifier
from gateway.config import Settings
from gateway.edge.entrance import Entrance
from gateway.edge.first_frame import FIRST_READ_BYTES, FirstFrame
from gateway.edge.listener import ACCEPT_PAUSE_S, Listener, listen
from gateway.edge.sessions import Sessions
from protocol.codec import decode_server_frame, encode_json, encode_msgpack
from protocol.errors import CloseCode, ErrorCode
from protocol.frames import Authenticate, ErrorReply, Ping, Welcome
from protocol.websocket import FrameReader, Opcode, encode_frame, encode_masked_frame, read_header

SECRET = "a secret of more than thirty-two bytes, for tests"
MASK = b"\x05\x06\x07\x08"


def token(user="alice", **claims):
    return jwt.encode({"sub": user, "exp": time.time() + 3600, "aud": "tidegate"} | claims, SECRET, "HS256")


def request(*lines, path="/v1/connect", method="GET", authorization=True, **changes):
    fields = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "tidegate.v1",
    }
    if authorization:
        fields["Authorization"] = f"Bearer {token()}"
    fields |= {name.replace("_", "-"): value for name, value in changes.items()}
    head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value), *lines]
    return ("\r\n".join(head) + "\r\n\r\n").encode()


class Http:
    """Stands in for the HTTP server: closes what it is handed."""

    def __init__(self):
        self.taken = []
        self.peers = []

    def hand_over(self, sock, head, peer):
        self.taken.append(head)
        self.peers.append(peer)
        sock.close()


class Door:
    """A listener on a free port, and clients for it."""

    def __init__(self, edge, **settings):
        self.settings = Settings(auth_secret=SECRET, allowed_origins=["https://good.example"], **settings)
        self.edge = edge
        self.http = Http()
        verifier = self.verifier = Verifier.from_settings(self.settings)
        self.sessions = Sessions(self.settings, edge.table, edge.writer, edge.hub, edge.parking, "node-1")
        first = FirstFrame(verifier, self.sessions, edge.parking)
        self.entrance = Entrance.from_settings(self.settings)
        self.listener = Listener(
            self.settings, verifier, self.sessions, edge.table, first, self.http, connections_max=3,
            entrance=self.entrance,
        )  # fmt: skip
        self.sockets = listen("127.0.0.1", 0)
        self.port = self.sockets[0].getsockname()[1]
        self.streams = []

    async def connect(self, data=b""):
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.streams.append(stream)
        if data:
            await stream.send_all(data)
        return stream

    def close(self):
        for sock in (*self.sockets, *(stream.socket for stream in self.streams)):
            sock.close()

    async def answer(self, data):
        """Everything that the node sends until it closes."""
        async with await self.connect(data) as stream:
            return b"".join([chunk async for chunk in stream]).decode("latin-1")


@pytest.fixture
async def door(edge, nursery):
    made = Door(edge)
    await nursery.start(made.listener.run, made.sockets)
    yield made
    made.close()


async def receive_head(stream):
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some()
    return data.split(b"\r\n\r\n", 1)


async def receive_frames(stream, data, count, *, json=False):
    frames = []
    while len(frames) < count:
        header = read_header(data)
        if header is None or len(data) < header.header_bytes + header.payload_bytes:
            more = await stream.receive_some()
            assert more, f"ended after {frames}"
            data += more
            continue
        end = header.header_bytes + header.payload_bytes
        payload = data[header.header_bytes : end]
        if header.opcode == Opcode.CLOSE:
            frames.append(int.from_bytes(payload[:2], "big"))
        else:
            frames.append(decode_server_frame(payload, json=json))
        data = data[end:]
    return frames


async def test_a_bearer_token_opens_at_once_and_the_welcome_follows_the_upgrade(door):
    stream = await door.connect(request(path="/v1/connect?device=phone"))
    head, rest = await receive_head(stream)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert b"Sec-WebSocket-Protocol: tidegate.v1" in head
    (welcome,) = await receive_frames(stream, rest, 1)
    assert isinstance(welcome, Welcome)
    assert (welcome.user, welcome.device, welcome.node) == ("alice", "phone", "node-1")
    assert (welcome.heartbeat_interval_s, welcome.idle_timeout_s) == (30, 90)
    assert 3590 <= welcome.token_expires_in_s <= 3600
    assert "alice" in door.edge.hub.by_user
    assert door.listener.handshakes == 0, "nobody needed a task"
    await stream.aclose()


@pytest.mark.parametrize("path", ["/v1/connect", "/v1/connect?", "/v1/connect?&", "/v1/connect?device="])
async def test_a_device_id_is_made_up_where_none_is_given(door, path):
    stream = await door.connect(request(path=path))
    _, rest = await receive_head(stream)
    (welcome,) = await receive_frames(stream, rest, 1)
    assert len(welcome.device) == 12


@pytest.mark.parametrize("json", [False, True])
async def test_a_token_in_the_first_frame_opens_too(door, json):
    protocol = "tidegate.v1.json" if json else "tidegate.v1"
    changes = {"Sec-WebSocket-Protocol": protocol, "Origin": "https://good.example"}
    stream = await door.connect(request(authorization=False, **changes))
    _, rest = await receive_head(stream)
    assert rest == b""
    encode, opcode = (encode_json, Opcode.TEXT) if json else (encode_msgpack, Opcode.BINARY)
    command = encode(Authenticate(1, token("bob"), "tab"))
    ping = encode(Ping(2))
    await stream.send_all(encode_masked_frame(opcode, command, MASK) + encode_masked_frame(opcode, ping, MASK)[:3])
    (welcome,) = await receive_frames(stream, b"", 1, json=json)
    assert (welcome.user, welcome.device) == ("bob", "tab")
    await stream.send_all(encode_masked_frame(opcode, ping, MASK)[3:])
    while not door.edge.handled:
        await door.edge.settle()
    assert [payload for _, payload in door.edge.handled] == [ping], "what followed the first frame was lost"


@pytest.mark.parametrize(
    ("frame", "code", "reply"),
    [
        (encode_masked_frame(2, encode_msgpack(Ping(7)), MASK), 4101, (7, ErrorCode.NOT_AUTHENTICATED)),
        (encode_masked_frame(2, encode_msgpack(Authenticate(8, "x.y.z")), MASK), 4101, (8, ErrorCode.TOKEN_REFUSED)),
        (encode_masked_frame(2, b"\x92\x01\x05", MASK), 4101, (5, ErrorCode.BAD_REQUEST)),
        (encode_masked_frame(2, encode_msgpack(Authenticate(9, "x", "a\nb")), MASK), 4101, (9, ErrorCode.BAD_REQUEST)),
        (encode_masked_frame(2, b"\x92\x63\x05", MASK), 4101, (5, ErrorCode.NOT_AUTHENTICATED)),
        (encode_masked_frame(2, b"\xc1", MASK), CloseCode.BAD_FRAME, None),
        (encode_masked_frame(1, b"[1,1]", MASK), CloseCode.UNSUPPORTED_DATA, None),
        (encode_masked_frame(8, b"", MASK), CloseCode.NORMAL, None),
        (b"\x82\x01x", CloseCode.PROTOCOL_ERROR, None),
    ],
    ids=("ping", "token", "field", "device", "command", "garbage", "text", "close", "unmasked"),
)
async def test_another_first_frame_is_refused(door, frame, code, reply):
    stream = await door.connect(request(authorization=False))
    _, rest = await receive_head(stream)
    await stream.send_all(frame)
    got = await receive_frames(stream, rest, 2 if reply else 1)
    assert got[-1] == code
    if reply:
        assert isinstance(got[0], ErrorReply)
        assert (got[0].id, got[0].code) == reply
        if got[0].code == ErrorCode.NOT_AUTHENTICATED:
            assert got[0].message == "the first frame is not Authenticate: connect again and begin with it (tag 1)"
    assert await stream.receive_some() == b""
    assert not door.edge.hub.by_user
    assert door.edge.writer.closed_by_code == {code: 1}


async def test_pings_before_the_first_frame_keep_nobody_waiting(door, monkeypatch):
    """A stranger's 64 KiB of pings would be eleven thousand writes in one turn of the loop."""
    stream = await door.connect(request(authorization=False))
    _, rest = await receive_head(stream)
    reads = []
    feed = FrameReader.feed
    monkeypatch.setattr(FrameReader, "feed", lambda self, data: reads.append(len(data)) or feed(self, data))
    pings = b"".join(encode_masked_frame(Opcode.PING, b"%d" % n, MASK) for n in range(100))
    await stream.send_all(pings + encode_masked_frame(Opcode.PING, b"last", MASK) * 10_000)
    await stream.send_all(encode_masked_frame(2, encode_msgpack(Ping(7)), MASK))
    answer = rest + b"".join([chunk async for chunk in stream])
    assert sum(reads) > 100_000
    assert max(reads) <= FIRST_READ_BYTES
    assert 0 < answer.count(encode_frame(Opcode.PONG, b"last")) <= len(reads)
    assert CloseCode.TOKEN_REFUSED.to_bytes(2, "big") in answer


async def test_no_first_frame_in_time_is_closed(door, autojump_clock):
    stream = await door.connect(request(authorization=False))
    _, rest = await receive_head(stream)
    assert await receive_frames(stream, rest, 1) == [CloseCode.AUTHENTICATE_TIMEOUT]
    assert await stream.receive_some() == b""
    assert door.edge.writer.closed_by_code == {CloseCode.AUTHENTICATE_TIMEOUT: 1}


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, ""),
        (b"nonsense\r\n\r\n", 400, "METHOD TARGET"),
        (request(Sec_WebSocket_Version="8"), 426, "13"),
        (request(method="POST"), 405, "GET"),
        (request(Sec_WebSocket_Key="short"), 400, "Key"),
        (request(Sec_WebSocket_Protocol="chat"), 400, "tidegate.v1"),
        (request(Sec_WebSocket_Protocol=""), 400, "tidegate.v1"),
        (request(path="/elsewhere"), 404, "/v1/connect"),
        (request(path="/v1/connect?token=abc"), 400, "Authorization"),
        (request(path="/v1/connect?device=" + "x" * 65), 400, "64"),
        (request(Origin="https://evil.example"), 403, "allowed_origins"),
        (request(Authorization="Basic abc"), 401, "Bearer"),
        (request(Authorization="Bearer a.b.c"), 401, "JWT"),
        (request(Authorization=f"Bearer {token(exp=1)}"), 401, "expired"),
        (request(Authorization=f"Bearer {token(aud='other')}"), 401, "audience"),
        (request("X-Long: " + "x" * 17000), 431, "16384"),
        (request() + b"\x82\x80", 400, "wait"),
    ],
)
async def test_bad_requests_get_their_status_and_say_what_is_allowed(door, data, status, words):
    answer = await door.answer(data)
    assert answer.startswith(f"HTTP/1.1 {status} "), answer
    assert words in answer
    assert door.listener.refused == {status: 1}
    assert door.edge.table.count == 0
    if status == 401:
        assert "WWW-Authenticate: Bearer" in answer
        assert "a.b.c" not in answer


async def test_a_full_node_says_when_to_come_back(door):
    streams = [await door.connect(request(Authorization=f"Bearer {token(f'u{n}')}")) for n in range(3)]
    for stream in streams:
        await receive_head(stream)
    answer = await door.answer(request())
    assert answer.startswith("HTTP/1.1 503 ")
    assert "Retry-After: 5" in answer
    assert "it holds 3 connections, the most allowed: try again in 5 s, or another node" in answer
    for stream in streams:
        await stream.aclose()


async def test_clients_that_wait_for_their_first_frame_count_too(door):
    for _ in range(3):
        await receive_head(await door.connect(request(authorization=False)))
    assert (await door.answer(request(authorization=False))).startswith("HTTP/1.1 503 ")


async def test_clients_whose_requests_came_in_pieces_count_until_they_are_gone(door):
    data = request(authorization=False)
    for _ in range(3):
        stream = await door.connect(data[:20])
        while not door.listener.handshakes:
            await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(data[20:])
        await receive_head(stream)
        await stream.aclose()
        while door.listener.handshakes:
            await trio.testing.wait_all_tasks_blocked()
    for _ in range(3):
        stream = await door.connect(data[:20])
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(data[20:])
        await receive_head(stream)
    assert (await door.answer(data)).startswith("HTTP/1.1 503 ")


class FullEpoll:
    """The kernel's answer beyond fs.epoll.max_user_watches."""

    def register(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_kernel_without_room_costs_one_connection_and_not_the_node(door, monkeypatch):
    monkeypatch.setattr(door.edge.parking, "_epoll", FullEpoll())
    assert await door.answer(request()) == ""
    assert door.edge.table.count == 0
    monkeypatch.undo()
    head, _ = await receive_head(await door.connect(request()))
    assert head.startswith(b"HTTP/1.1 101 ")


async def test_what_followed_the_first_frame_is_not_kept_where_the_kernel_had_no_room(door, monkeypatch):
    stream = await door.connect(request(authorization=False))
    await receive_head(stream)
    monkeypatch.setattr(door.edge.parking, "_epoll", FullEpoll())
    command = encode_masked_frame(Opcode.BINARY, encode_msgpack(Authenticate(1, token("bob"), "tab")), MASK)
    await stream.send_all(command + command[:3])
    assert [chunk async for chunk in stream] == []
    assert door.edge.table.count == 0
    assert door.edge.parking.partial == 0


async def test_a_fault_of_ours_costs_one_handshake_and_not_the_node(door, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("planted")

    monkeypatch.setattr(door.sessions, "open", fail)
    assert await door.answer(request()) == ""
    late = await door.connect(request()[:20])
    await trio.testing.wait_all_tasks_blocked()
    await late.send_all(request()[20:])
    assert b"".join([chunk async for chunk in late]) == b""
    monkeypatch.undo()
    head, _ = await receive_head(await door.connect(request()))
    assert head.startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("in_header", [True, False])
async def test_keys_that_cannot_be_fetched_are_not_blamed_on_the_client(door, monkeypatch, autojump_clock, in_header):
    def unknown(_token):
        raise UnknownKey("planted")

    async def hang(_token):
        await trio.sleep_forever()

    monkeypatch.setattr(door.verifier, "verify", unknown)
    monkeypatch.setattr(door.verifier, "verify_fresh", hang)
    if in_header:
        answer = await door.answer(request())
        assert answer.startswith("HTTP/1.1 503 ")
        assert "Retry-After: 5" in answer
        assert "could not be verified within 10 s: try again in 5 s, or another node" in answer
        return
    stream = await door.connect(request(authorization=False))
    _, rest = await receive_head(stream)
    await stream.send_all(encode_masked_frame(2, encode_msgpack(Authenticate(1, token())), MASK))
    assert await receive_frames(stream, rest, 1) == [CloseCode.INTERNAL_ERROR]


async def test_a_draining_node_refuses_upgrades(door):
    door.listener.accepting = False
    assert "going away" in await door.answer(request())


async def test_a_starting_node_refuses_upgrades_with_its_reason(door):
    door.listener.accepting, door.listener.why_not = False, "the node is starting"
    answer = await door.answer(request())
    assert answer.startswith("HTTP/1.1 503 ")
    assert "the node is starting: try again in 5 s, or another node" in answer


async def test_a_node_that_only_orders_conversations_takes_no_clients_and_answers_http(edge, nursery):
    door = Door(edge, store="cassandra", roles="owner")
    await nursery.start(door.listener.run, door.sockets)
    answer = await door.answer(request())
    assert answer.startswith("HTTP/1.1 503 ")
    assert "orders conversations and holds no connections (roles = owner): try again" in answer
    assert "or another node" in answer
    await door.answer(b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
    assert len(door.http.taken) == 1
    door.close()


async def test_other_requests_go_to_the_http_server(door):
    data = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    await door.answer(data)
    assert door.http.taken == [data]


class Failing:
    """A listening socket of which some calls of accept fail at first."""

    def __init__(self, sock, *errors):
        self.fileno = sock.fileno
        self._sock, self._errors = sock, list(errors)

    def accept(self):
        if self._errors:
            error = self._errors.pop()
            raise OSError(error, os.strerror(error))
        return self._sock.accept()


@pytest.mark.parametrize(("error", "pause_s"), [(errno.EMFILE, ACCEPT_PAUSE_S), (errno.ECONNABORTED, 0)])
async def test_accepting_goes_on_after_an_error_and_waits_where_descriptors_are_missing(
    edge, nursery, autojump_clock, error, pause_s
):
    door = Door(edge)
    await nursery.start(door.listener.run, [Failing(sock, *[error] * 3) for sock in door.sockets])
    began = trio.current_time()
    head, _ = await receive_head(await door.connect(request()))
    assert head.startswith(b"HTTP/1.1 101 ")
    assert trio.current_time() - began >= 3 * pause_s
    door.close()


async def test_a_request_in_pieces_is_put_together(door):
    data = request()
    stream = await door.connect(data[:1])
    for byte in data[1:]:
        await stream.send_all(bytes((byte,)))
        await trio.testing.wait_all_tasks_blocked()
    head, _ = await receive_head(stream)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert door.listener.handshakes == 0


async def test_slow_handshakes_are_cut_and_keep_nobody_waiting(edge, nursery, autojump_clock):
    door = Door(edge, handshakes_max=20)
    await nursery.start(door.listener.run, door.sockets)
    slow = [await door.connect(b"G") for _ in range(20)]
    while door.listener.handshakes < 20:
        await trio.testing.wait_all_tasks_blocked()
    answer = await door.answer(b"G")
    assert "20 handshakes are in progress, the most allowed; send a request at once: try again in 5 s" in answer
    quick = await door.connect(request())
    head, _ = await receive_head(quick)
    assert head.startswith(b"HTTP/1.1 101 "), "an honest client was kept waiting"
    for stream in slow:
        answer = b"".join([chunk async for chunk in stream])
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"no complete request within 10 s: send it at once" in answer
    assert door.listener.handshakes == 0
    door.close()


async def test_the_end_of_the_node_sends_handshakes_in_progress_away(edge):
    door = Door(edge)
    async with trio.open_nursery() as nursery:
        await nursery.start(door.listener.run, door.sockets)
        waiting = await door.connect(b"GET")
        silent = await door.connect(request(authorization=False))
        await receive_head(silent)
        while door.listener.handshakes < 2:
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    answer = b"".join([chunk async for chunk in waiting])
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: " in answer
    assert await receive_frames(silent, b"", 1) == [CloseCode.SERVICE_RESTART]
    door.close()


async def test_an_attempt_that_was_given_up_before_it_was_accepted_takes_nothing_over(edge):
    door = Door(edge)
    phone = request(path="/v1/connect?device=phone")
    stays, left = await door.connect(phone), await door.connect(phone)
    await left.send_eof()
    async with trio.open_nursery() as nursery:
        await nursery.start(door.listener.run, door.sockets)
        answer = b"".join([chunk async for chunk in left])
        assert answer.startswith(b"HTTP/1.1 101 ")
        await receive_head(stays)
        [connection] = edge.hub.connections_of("alice")
        assert connection.sock.getpeername() == stays.socket.getsockname()
        assert not edge.writer.closed_by_code
        nursery.cancel_scope.cancel()
    door.close()
