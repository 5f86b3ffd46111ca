"""Messages with descriptors over a Unix socket: blocking, with deadlines.

Each message is its length, the number of descriptors, and msgpack. Blocking, because what is handed over must not
change meanwhile: whoever uses this wants nothing else to run.
"""

import contextlib
import os
import socket
import struct
import time
from array import array
from collections.abc import Sequence
from typing import Final, TypeVar

from msgspec import DecodeError

from gateway.upgrade.messages import Failed, Message, decoder, encode

_HEAD: Final = struct.Struct(">IH")
_READ_BYTES: Final = 262_144
"""Bytes asked of the socket at once, however long a message is: memory is taken for what has come only."""

DESCRIPTORS_MAX: Final = 253
"""Descriptors that the kernel lets one message take along (SCM_MAX_FD)."""

M = TypeVar("M", bound=Message)


class HandOverFailed(Exception):
    """The other process said no, is gone, silent, or not understood. The message is fit for a log line."""


class Gone(HandOverFailed):
    """The other process has closed its end: it has ended."""


class Channel:
    """One end of the pair. Owns its socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @property
    def closed(self) -> bool:
        """Whether this end was closed."""
        return self.sock.fileno() < 0

    def close(self) -> None:
        """Close this end."""
        self.sock.close()

    def send(self, message: Message, descriptors: Sequence[int] = (), *, until_s: float) -> None:
        """Send a message; the other process gets copies of the descriptors. Blocks, until ``until_s`` at most.

        Args:
            message: what to send.
            descriptors: at most DESCRIPTORS_MAX; they stay open here.
            until_s: seconds of the monotonic clock.

        Raises:
            Gone: nobody has the other end.
            HandOverFailed: the other process did not take it in time.
        """
        body = encode(message)
        data = _HEAD.pack(len(body), len(descriptors)) + body
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        try:
            self._wait_until(until_s)
            sent = self.sock.sendmsg([data], rights)
            if sent < len(data):
                self._wait_until(until_s)
                self.sock.sendall(memoryview(data)[sent:])
        except (BrokenPipeError, ConnectionResetError):
            raise Gone("the other process has ended") from None
        except TimeoutError:
            raise HandOverFailed("the other process took too long to read") from None

    def receive(self, kind: type[M], *, until_s: float) -> tuple[M, list[int]]:
        """The next message, which has to be of that kind, and its descriptors (close-on-exec, now owned by the caller).

        Blocks, until ``until_s`` seconds of the monotonic clock at most.

        Raises:
            Gone: the other process has ended.
            HandOverFailed: it sent Failed, something else, or nothing in time.
        """
        descriptors: list[int] = []
        try:
            message = self._receive(descriptors, until_s)
            if isinstance(message, kind):
                return message, descriptors
        except BaseException:
            _close_all(descriptors)
            raise
        _close_all(descriptors)
        if isinstance(message, Failed):
            raise HandOverFailed(message.reason)
        raise HandOverFailed(f"the other process sent {type(message).__name__} instead of {kind.__name__}")

    def _receive(self, descriptors: list[int], until_s: float) -> Message:
        head = self._read(_HEAD.size, until_s, descriptors)
        size, count = _HEAD.unpack(head)
        body = self._read(size, until_s, None)
        if count != len(descriptors):
            # This process has no room for more: the kernel drops the rest.
            raise HandOverFailed(f"{len(descriptors)} of {count} descriptors arrived: raise the limit of open files")
        try:
            return decoder.decode(body)
        except DecodeError as error:
            raise HandOverFailed(f"a message of the other process cannot be read ({error})") from None

    def _read(self, size: int, until_s: float, descriptors: list[int] | None) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                self._wait_until(until_s)
                if descriptors is None:
                    piece = self.sock.recv(min(size - len(data), _READ_BYTES))
                else:
                    piece = self._receive_with_descriptors(size - len(data), descriptors)
            except TimeoutError:
                raise HandOverFailed("the other process was silent for too long") from None
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise Gone("the other process has ended")
            data += piece
        return bytes(data)

    def _receive_with_descriptors(self, size: int, descriptors: list[int]) -> bytes:
        room = socket.CMSG_SPACE(DESCRIPTORS_MAX * array("i").itemsize)
        piece, rights, _flags, _address = self.sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                descriptors.extend(numbers)
        return piece

    def _wait_until(self, until_s: float) -> None:
        """Let the next call of the socket block so long. A deadline that has passed leaves it one try."""
        self.sock.settimeout(max(until_s - time.monotonic(), 0.001))


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
