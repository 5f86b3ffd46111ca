"""A socket whose first bytes were already read by somebody else, as a trio stream."""

import socket
from collections.abc import Awaitable, Callable
from typing import Final

import trio

SEND_TIMEOUT_S: Final = 30.0
"""Seconds that one response may take to leave: a client that reads slower than some 10 KB/s is cut off. hypercorn
shields its writes from cancellation, so nothing else would ever end them."""


async def _nothing() -> None:
    """What happens at the end of a stream that nobody watches."""


class HandedOverStream(trio.abc.HalfCloseableStream):
    """A stream that gives ``head`` first and then what comes from the socket. Owns the socket.

    Attributes:
        socket: the trio socket (hypercorn asks it for both addresses).
        ended: whether the peer has ended its side.
        at_end: awaited when it has, before the reader learns of it.
        at_break: called when the peer is gone, or took a response too slowly: nothing can be sent any more.
    """

    def __init__(self, sock: socket.socket, head: bytes) -> None:
        self.socket = trio.socket.from_stdlib_socket(sock)
        self.ended = False
        self.at_end: Callable[[], Awaitable[None]] = _nothing
        self.at_break: Callable[[], None] = self.cut
        self._stream = trio.SocketStream(self.socket)
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
        self.socket.close()
