"""A fake node, a small HTTP client that sends bytes as they are, and loopback sockets to hand over."""

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import h11
import msgspec
import trio

from gateway.api.app import Api
from gateway.api.ports import Check
from gateway.api.server import HttpServer
from gateway.auth import Identity, TokenRefused
from gateway.refusals import Refused
from protocol import frames
from protocol.errors import ErrorCode
from protocol.frames import Command, ErrorReply, Reply

TOO_MANY = "more than 100 requests a second"
NOT_HERE = "there is no such conversation, or you are not in it"


@dataclass
class FakeNode:
    """Remembers what it was asked; answers what the test laid down, or waits when told to."""

    address: str = "http://127.0.0.1:8480"
    checks: list[Check] = field(default_factory=lambda: [Check("store", True), Check("accepting", True)])
    asked: list[tuple[str, Command]] = field(default_factory=list)
    reply: Reply | Callable[[Command], Reply] = field(
        default_factory=lambda: ErrorReply(1, ErrorCode.NOT_FOUND, NOT_HERE)
    )
    started: bool = True
    wait_ms: dict[str, int] = field(default_factory=dict)
    """Users who ask too much, and how long they have to wait."""
    gate: trio.Event | None = None
    """When set, a call waits for it."""
    called: trio.Event = field(default_factory=trio.Event)

    async def call(self, user: str, command: Command) -> Reply:
        self.asked.append((user, command))
        self.called.set()
        if self.gate is not None:
            await self.gate.wait()
        return self.reply(command) if callable(self.reply) else self.reply

    def admit(self, user: str) -> None:
        if user in self.wait_ms:
            raise Refused(ErrorCode.RATE_LIMITED, TOO_MANY, self.wait_ms[user])

    async def verify(self, token: str) -> Identity:
        await trio.lowlevel.checkpoint()
        if not token.startswith("token-of-"):
            raise TokenRefused("the token has expired; get a new one")
        return Identity(token.removeprefix("token-of-"), 2_000_000_000)

    def readiness(self) -> list[Check]:
        return self.checks

    def render_metrics(self) -> bytes:
        return b"# TYPE tidegate_connections gauge\ntidegate_connections 0\n"


def encoded_entry(seq: int, body: str = "hello", **more: object) -> msgspec.Raw:
    entry = frames.Entry(seq, frames.EntryKind.MESSAGE, 1_700_000_000_000_000 + seq, "bob", f"m{seq}", body, **more)  # type: ignore[arg-type]
    return msgspec.Raw(msgspec.msgpack.encode(entry))


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        decoded = msgspec.json.decode(self.body)
        assert isinstance(decoded, dict)
        return decoded


class Client:
    """One HTTP connection: raw bytes out, responses parsed by h11 in."""

    def __init__(self, sock: socket.socket) -> None:
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._h11 = h11.Connection(h11.CLIENT)

    async def response(self, method: str = "GET") -> Response:
        """Read one response; the request itself was written by hand."""
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        self._h11.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        self._h11.send(h11.EndOfMessage())
        head: h11.Response | None = None
        body = b""
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                self._h11.receive_data(await self.stream.receive_some())
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return Response(head.status_code, {k.decode(): v.decode() for k, v in head.headers}, body)

    async def ask(
        self, method: str, path: str, body: object = None, *, user: str | None = "alice", raw: bytes | None = None
    ) -> Response:
        await self.stream.send_all(request_bytes(method, path, body, user=user, raw=raw))
        return await self.response(method)

    async def closed(self) -> bool:
        """Whether the server has ended the connection (waits for it)."""
        try:
            return not await self.stream.receive_some()
        except trio.BrokenResourceError:
            return True


def request_bytes(
    method: str,
    path: str,
    body: object = None,
    *,
    user: str | None = "alice",
    raw: bytes | None = None,
    headers: tuple[str, ...] = (),
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
    if user is not None:
        lines.append(f"Authorization: Bearer token-of-{user}")
    content = raw if raw is not None else b"" if body is None else msgspec.json.encode(body)
    if content or method in ("POST", "PUT", "PATCH"):
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


class Front:
    """The server under test, and how a test gets connections to it."""

    def __init__(self, node: FakeNode, server: HttpServer, api: Api) -> None:
        self.node = node
        self.server = server
        self.api = api

    def sockets(self) -> tuple[socket.socket, socket.socket]:
        """A connected pair of loopback sockets: the client's, and the one that the listener would hold."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        ours.setblocking(False)
        theirs.setblocking(False)
        return ours, theirs

    def open(self, head: bytes) -> Client:
        """A connection handed over with ``head`` already read."""
        ours, theirs = self.sockets()
        self.server.hand_over(theirs, head)
        return Client(ours)

    async def until_connections(self, count: int) -> None:
        """Wait until the server holds so many: what a socket's other end did may take the kernel a moment to tell."""
        while self.server.connections != count:
            await trio.lowlevel.checkpoint()

    async def ask(
        self, method: str, path: str, body: object = None, *, user: str | None = "alice", raw: bytes | None = None
    ) -> Response:
        """One request on a connection of its own."""
        client = self.open(request_bytes(method, path, body, user=user, raw=raw))
        async with client.stream:
            return await client.response(method)
