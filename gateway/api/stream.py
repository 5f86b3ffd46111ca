"""A socket whose first bytes were already read by somebody else, as a trio stream."""

import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self

import trio

from gateway.api.tls_transport import TlsTransport
from gateway.edge.farewell import farewell

SEND_TIMEOUT_S: Final = 30.0
"""Seconds that one response may take to leave: a client that reads slower than some 10 KB/s is cut off. hypercorn
shields its writes from cancellation, so nothing else would ever end them."""


async def _nothing() -> None:
    """What happens at the end of a stream that nobody watches."""


class Addresses:
    """Both ends of a connection, as a socket tells them; the client's may be one that a load balancer named.

    Attributes:
        sock: that socket.
    """

    def __init__(self, sock: socket.socket, peer: tuple[Any, ...] | None) -> None:
        self.sock = sock
        self._peer = peer

    @property
    def family(self) -> socket.AddressFamily:
        """IPv4 or IPv6, as the client's address is."""
        if self._peer is None:
            return self.sock.family
        return socket.AF_INET6 if ":" in self._peer[0] else socket.AF_INET

    def getpeername(self) -> Any:
        """The client's address. Raises OSError when it is the socket's own, and that is gone."""
        return self._peer or self.sock.getpeername()

    def getsockname(self) -> Any:
        """The node's address, as the connection reached it. Raises OSError when the socket is closed."""
        return self.sock.getsockname()


class HandedOverStream(trio.abc.HalfCloseableStream):
    """A stream that gives ``head`` first and then what comes from the socket. Owns the socket.

    Attributes:
        socket: both addresses, which hypercorn asks for.
        ended: whether the peer has ended its side.
        at_end: awaited when it has, before the reader learns of it.
        at_break: called when the peer is gone, or took a response too slowly: nothing can be sent any more.
    """

    def __init__(
        self, transport: trio.abc.HalfCloseableStream, close: Callable[[], None], addresses: Addresses, head: bytes
    ) -> None:
        self.socket = addresses
        self.ended = False
        self.at_end: Callable[[], Awaitable[None]] = _nothing
        self.at_break: Callable[[], None] = self.cut
        self._stream = transport
        self._close = close
        self._head = head

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, empty at the end. Raises as trio.SocketStream does. Cancelling loses nothing."""
        if self._head:
            await trio.lowlevel.checkpoint()
            given, self._head = self._head[:max_bytes], self._head[len(self._head[:max_bytes]) :]
            return given
        try:
            received = bytes(await self._stream.receive_some(max_bytes))
        except trio.BrokenResourceError:
            self.at_break()
            raise
        if not received:
            self.ended = True
            await self.at_end()
        return received

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write everything.

        Raises:
            trio.BrokenResourceError: the peer is gone, or did not take it within SEND_TIMEOUT_S.
            trio.ClosedResourceError: the stream was cut.

        After a cancellation some of it may have been written.
        """
        try:
            with trio.fail_after(SEND_TIMEOUT_S):
                await self._stream.send_all(data)
        except trio.TooSlowError:
            self.at_break()
            raise trio.BrokenResourceError(f"the peer did not read a response within {SEND_TIMEOUT_S:g} s") from None
        except trio.BrokenResourceError:
            self.at_break()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        """As trio.SocketStream does."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """End this side; the peer may go on. Cancelling is safe."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the socket; at once, whatever is under way."""
        await self._stream.aclose()

    def cut(self) -> None:
        """Close the socket by a plain call: whoever waits on the stream gets trio.ClosedResourceError."""
        self._close()

    def dismiss(self, last: bytes) -> None:
        """Send last bytes and close the socket, all by a plain call, while nothing else is being sent."""
        farewell(self.socket.sock, last, self._close)


class TlsHandedOverStream(HandedOverStream):
    """The same with TLS, which hypercorn learns by asking as it would ask a trio.SSLStream."""

    @property
    def transport_stream(self) -> Self:
        """What has the ``socket``."""
        return self

    async def do_handshake(self) -> None:
        """Nothing: the listener has done it."""

    def selected_alpn_protocol(self) -> str:
        """The only protocol that is offered."""
        return "http/1.1"


def open_stream(sock: socket.socket, head: bytes, peer: tuple[Any, ...] | None) -> HandedOverStream:
    """A stream that owns ``sock`` (non-blocking), from which ``head`` was read; ``peer`` is the client's address."""
    if isinstance(sock, ssl.SSLSocket):
        transport = TlsTransport(sock)
        return TlsHandedOverStream(transport, transport.close, Addresses(sock, peer), head)
    trio_socket = trio.socket.from_stdlib_socket(sock)
    return HandedOverStream(trio.SocketStream(trio_socket), trio_socket.close, Addresses(sock, peer), head)
