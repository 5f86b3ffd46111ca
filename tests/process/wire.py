"""A client that is nothing but the bytes: what it sends may be as wrong as a test likes."""

import base64
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import trio

from bench.processes import NodeProcess
from protocol import codec
from protocol.frames import (
    SUBPROTOCOL,
    SUBPROTOCOL_JSON,
    ConversationKind,
    ConversationReply,
    CreateConversation,
    EntryPush,
    Frame,
    Welcome,
)
from protocol.websocket import Opcode, encode_masked_frame, parse_close, read_header

ANSWER_TIMEOUT_S = 60.0
"""Seconds after which a node that does not answer has failed: far more than it takes on a busy machine."""

F = TypeVar("F", bound=Frame)


class Closed(Exception):
    """The node closed the connection; ``code`` is 0 when there was no close frame."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"closed with {code} {reason}")
        self.code = code
        self.reason = reason


class HttpAnswer(msgspec.Struct):
    """What a request got: status, headers by lower-case name, and the rest of the bytes so far."""

    status: int
    headers: dict[str, str]
    rest: bytes


def upgrade_request(
    headers: Mapping[str, str | None] | None = None, target: str = "/v1/connect", method: str = "GET"
) -> bytes:
    """A good upgrade request, changed: ``headers`` replaces fields, None leaves one out."""
    fields: dict[str, str | None] = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Protocol": SUBPROTOCOL,
    }
    fields.update(headers or {})
    lines = [
        f"{method} {target} HTTP/1.1",
        *(f"{name}: {value}" for name, value in fields.items() if value is not None),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def connect_tcp(node: NodeProcess) -> trio.SocketStream:
    """A bare TCP connection to the node."""
    return await trio.open_tcp_stream(node.host, node.port)


async def read_http(stream: trio.SocketStream, *, whole: bool = False) -> HttpAnswer:
    """The answer to an HTTP request; ``whole`` reads until the node closes."""
    data = b""
    with trio.fail_after(ANSWER_TIMEOUT_S):
        while whole or b"\r\n\r\n" not in data:
            chunk = await _receive(stream)
            if not chunk:
                break
            data += chunk
    if not data:
        raise Closed(0, "without an answer")
    head, _, rest = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return HttpAnswer(int(status_line.split()[1]), headers, rest)


async def ask(node: NodeProcess, request: bytes) -> HttpAnswer:
    """Send bytes on a fresh TCP connection and read the whole answer."""
    async with await connect_tcp(node) as stream:
        await stream.send_all(request)
        return await read_http(stream, whole=True)


class Wire:
    """One WebSocket, spoken byte by byte."""

    def __init__(self, stream: trio.SocketStream, rest: bytes, *, json: bool) -> None:
        self.stream = stream
        self.json = json
        self.pushes: list[EntryPush] = []
        self._data = bytearray(rest)
        self._ids = 0

    async def send_bytes(self, data: bytes) -> None:
        """Raw bytes, as they are."""
        await self.stream.send_all(data)

    async def send_frame(self, payload: bytes, opcode: int | None = None, **more: Any) -> None:
        """One masked frame; by default of the opcode of the subprotocol."""
        opcode = (Opcode.TEXT if self.json else Opcode.BINARY) if opcode is None else opcode
        await self.stream.send_all(encode_masked_frame(opcode, payload, os.urandom(4), **more))

    async def send(self, command: Frame) -> None:
        """One command."""
        await self.send_frame((codec.encode_json if self.json else codec.encode_msgpack)(command))

    def next_id(self) -> int:
        """A fresh request id."""
        self._ids += 1
        return self._ids

    async def ask(self, command: Any, kind: type[F]) -> F:
        """Send a command and return its reply, which has to be of that kind; pushes meanwhile are kept."""
        command.id = command.id or self.next_id()
        await self.send(command)
        return await self.reply(command.id, kind)

    async def reply(self, request_id: int, kind: type[F]) -> F:
        """The reply to a command sent before."""
        while True:
            frame = await self.receive()
            if isinstance(frame, EntryPush):
                self.pushes.append(frame)
            elif getattr(frame, "id", None) == request_id:
                assert isinstance(frame, kind), frame
                return frame

    async def create_direct(self, other: str) -> str:
        """The conversation with another user, which may be there already."""
        command = CreateConversation(0, ConversationKind.DIRECT, [other], "direct")
        return (await self.ask(command, ConversationReply)).conversation.conversation_id

    async def pushed(self, body: bytes) -> None:
        """Wait until an entry with that body comes."""
        while body not in bytes((await self.push()).entry):
            pass

    async def push(self) -> EntryPush:
        """The next entry pushed."""
        while not self.pushes:
            frame = await self.receive()
            if isinstance(frame, EntryPush):
                self.pushes.append(frame)
        return self.pushes.pop(0)

    async def receive(self) -> Any:
        """The next frame of the subprotocol. Raises Closed."""
        while True:
            opcode, payload = await self.receive_message()
            if opcode in (Opcode.TEXT, Opcode.BINARY):
                assert (opcode == Opcode.TEXT) == self.json
                return codec.decode_server_frame(payload, json=self.json)

    async def receive_message(self) -> tuple[int, bytes]:
        """The next WebSocket frame, control frames too. Raises Closed for a close frame and for the end."""
        with trio.fail_after(ANSWER_TIMEOUT_S):
            while (frame := self._take()) is None:
                chunk = await _receive(self.stream)
                if not chunk:
                    raise Closed(0)
                self._data += chunk
        if frame[0] == Opcode.CLOSE:
            raise Closed(*parse_close(frame[1]))
        return frame

    async def closed(self) -> Closed:
        """Read on until the node closes; how it did."""
        while True:
            try:
                await self.receive_message()
            except Closed as closed:
                return closed

    def _take(self) -> tuple[int, bytes] | None:
        header = read_header(self._data)
        if header is None or len(self._data) < header.header_bytes + header.payload_bytes:
            return None
        assert not header.masked
        assert header.fin
        assert not header.rsv
        end = header.header_bytes + header.payload_bytes
        payload = bytes(self._data[header.header_bytes : end])
        del self._data[:end]
        return header.opcode, payload


@asynccontextmanager
async def upgraded(
    node: NodeProcess,
    *,
    headers: Mapping[str, str | None] | None = None,
    target: str = "/v1/connect",
    json: bool = False,
) -> AsyncIterator[Wire]:
    """A connection whose upgrade was granted; nothing is said about who it is."""
    fields = {"Sec-WebSocket-Protocol": SUBPROTOCOL_JSON if json else SUBPROTOCOL, **(headers or {})}
    async with await connect_tcp(node) as stream:
        await stream.send_all(upgrade_request(fields, target))
        answer = await read_http(stream)
        assert answer.status == 101, answer
        yield Wire(stream, answer.rest, json=json)


@asynccontextmanager
async def connected(node: NodeProcess, user: str, *, device: str = "", json: bool = False) -> AsyncIterator[Wire]:
    """A connection of a user, authenticated by header and welcomed."""
    headers = {"Authorization": f"Bearer {node.token(user)}"}
    target = f"/v1/connect?device={device}" if device else "/v1/connect"
    async with upgraded(node, headers=headers, target=target, json=json) as wire:
        welcome = await wire.receive()
        assert isinstance(welcome, Welcome)
        assert welcome.user == user
        yield wire


async def _receive(stream: trio.SocketStream) -> bytes:
    """Bytes, or none at the end; a reset is an end too (what came before it was read before it)."""
    try:
        return bytes(await stream.receive_some(65_536))
    except trio.BrokenResourceError:
        return b""
