"""Opening a WebSocket with trio-websocket, on whatever stream a caller provides."""

import re
import ssl
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import quote, urlsplit

import trio
from msgspec import Struct
from trio_websocket import WebSocketConnection, wrap_client_stream

from protocol import limits
from protocol.client.endings import ConnectionEnded, Ending
from protocol.frames import SUBPROTOCOL

ENDPOINT: Final = "/v1/connect"

_RECEIVE_BYTES: Final = 65_536
"""Bytes read from the stream at once; trio-websocket's own 4 KiB would mean a read per few messages of a sync."""

_NOT_IN_HEADERS: Final = re.compile(r"[^ -~]")

_BROKE_OFF: Final = Ending("backoff", "the connection broke off before the node answered")


class Address(Struct, frozen=True):
    """Where a node is: what a ws:// or wss:// URL says."""

    host: str
    port: int
    tls: bool
    path: str

    def __str__(self) -> str:
        return f"{'wss' if self.tls else 'ws'}://{self.authority}"

    @property
    def authority(self) -> str:
        """Host and port as a Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


StreamOpener = Callable[[Address], Awaitable[trio.abc.HalfCloseableStream]]
"""Opens the byte stream below the WebSocket. Raises OSError."""


def parse_url(url: str) -> Address:
    """Understand a node's URL; without a path, the endpoint of the protocol is meant.

    Raises:
        ValueError: the message says what a URL looks like.
    """
    parts = urlsplit(url)
    schemes = {"ws": False, "http": False, "wss": True, "https": True}
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError(f"{url!r} is no address of a node: write ws://HOST:PORT, or wss:// with TLS")
    if parts.query or parts.fragment:
        raise ValueError(
            f"{url!r} has a query or fragment: a node's address ends with its path, and tokens go elsewhere"
        )
    try:
        parts.hostname.encode("idna")
        printable = parts.path.isascii() and parts.path.isprintable() and " " not in parts.path
    except UnicodeError:
        printable = False
    if not printable:
        raise ValueError(f"{url!r} is no address of a node: its host is no name, or its path is not URL-encoded")
    tls = schemes[parts.scheme]
    path = parts.path if parts.path not in {"", "/"} else ENDPOINT
    return Address(parts.hostname, parts.port or (443 if tls else 80), tls, path)


async def open_stream(address: Address) -> trio.abc.HalfCloseableStream:
    """Open a TCP stream, with TLS where the address asks for it. The ordinary StreamOpener."""
    if not address.tls:
        return await trio.open_tcp_stream(address.host, address.port)
    context = ssl.create_default_context()
    stream = await trio.open_ssl_over_tcp_stream(address.host, address.port, ssl_context=context, https_compatible=True)
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        raise ConnectionEnded(Ending("backoff", f"TLS with {address} failed: {error.__cause__}")) from error
    return stream  # type: ignore[return-value]  # TLS cannot half-close; nobody here asks it to


async def open_websocket(
    nursery: trio.Nursery, stream: "HandshakeStream", address: Address, *, token: str, device: str
) -> WebSocketConnection:
    """Upgrade a stream; the WebSocket's reader runs in ``nursery``. The stream stays the caller's, who closes it.

    Failures come out of this call or of ``nursery``: ConnectionEnded, and trio_websocket's errors of a handshake.
    Cancelling leaves a stream of no more use.
    """
    resource = f"{address.path}?device={quote(device, safe='')}" if device else address.path
    websocket = await wrap_client_stream(
        nursery,
        stream,  # type: ignore[arg-type]  # any stream will do
        address.authority,
        resource,
        subprotocols=[SUBPROTOCOL],
        extra_headers=[(b"Authorization", b"Bearer " + _NOT_IN_HEADERS.sub("?", token).encode())],
        max_message_size=limits.SERVER_FRAME_BYTES_MAX,
        receive_buffer_size=_RECEIVE_BYTES,
    )
    stream.upgraded = True
    if websocket.subprotocol != SUBPROTOCOL:
        text = f"{address} speaks WebSocket, but not {SUBPROTOCOL}: is it a tidegate node?"
        raise ConnectionEnded(Ending("never", text))
    return websocket


class HandshakeStream(trio.abc.Stream):
    """A stream that fails when it ends during the handshake; trio-websocket would wait for the upgrade for ever."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.upgraded = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            data = bytes(await self._stream.receive_some(max_bytes))
        except trio.BrokenResourceError:
            if self.upgraded:
                raise
            data = b""
        if not data and not self.upgraded:
            raise ConnectionEnded(_BROKE_OFF)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            if self.upgraded:
                raise
            raise ConnectionEnded(_BROKE_OFF) from None

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
