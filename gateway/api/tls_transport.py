"""A TLS socket whose handshake was done by somebody else, as a trio stream."""

import socket
import ssl

import trio

RECEIVE_BYTES = 65_536
"""Bytes asked for at once when the caller names no number."""


class TlsTransport(trio.abc.HalfCloseableStream):
    """Bytes over a non-blocking TLS socket that says BlockingIOError when it would block. Owns the socket.

    One task may receive while another one sends.
    """

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, empty at the end; perhaps more than ``max_bytes``, at most one record.

        Raises trio.BrokenResourceError or trio.ClosedResourceError. Cancelling loses nothing.
        """
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self._sock.recv(max_bytes or RECEIVE_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
            except OSError as error:
                raise self._gone(error) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write everything. Raises as ``receive_some`` does. After a cancellation some of it may have been written."""
        await trio.lowlevel.checkpoint()
        rest = bytes(data)
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)
            except OSError as error:
                raise self._gone(error) from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket has room. Raises trio.ClosedResourceError. Cancelling is safe."""
        await trio.lowlevel.wait_writable(self._sock)

    async def send_eof(self) -> None:
        """End this side; the peer may go on. Cancelling is safe."""
        await trio.lowlevel.checkpoint()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self._gone(error) from error

    async def aclose(self) -> None:
        """Close the socket; at once, whatever is under way."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close the socket by a plain call: whoever waits on it gets trio.ClosedResourceError."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    def _gone(self, error: OSError) -> Exception:
        if self._sock.fileno() < 0:
            return trio.ClosedResourceError("the stream was closed")
        return trio.BrokenResourceError(f"the connection broke: {error}")
