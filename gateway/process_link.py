"""Between a supervisor and one of its nodes: a pair of sockets that both watch, so that neither is left alone.

==============  ==================  =========================================================================
from            message             meaning
==============  ==================  =========================================================================
supervisor      settings, as JSON   the first message: what the node is to run with
node            ``ready ADDRESS``   it accepts connections; ADDRESS is its own, beside the port that all share
supervisor      ``drain``           finish, send the clients away, exit
supervisor      ``end``             end at once
supervisor      end of stream       the supervisor is gone: drain, nobody would restart this node
==============  ==================  =========================================================================

Orders do not travel as signals: a terminal and systemd send those to every process of a group, and a second one would
cut the drain short. Settings do not travel as options, which everybody on the machine can read.
"""

import errno
import os
import socket
from typing import Any, Final, Self

import msgspec
import trio

from gateway.config import Settings

DRAIN: Final = b"drain"
END: Final = b"end"
READY: Final = b"ready "

MESSAGE_BYTES_MAX: Final = 128 * 1024
"""Bytes of one message: settings with long lists fit, and so does the message in the kernel's buffer (208 KiB)."""


class NodeEnd:
    """The node's end of the link."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes over a socket of one of the pairs that ``make_pair`` makes."""
        self._sock = sock

    @classmethod
    def inherited(cls, fd: int) -> Self:
        """The end that this process was started with. Raises OSError if ``fd`` is none."""
        os.set_inheritable(fd, False)
        return cls(socket.socket(fileno=fd))

    def receive_settings(self) -> Settings:
        """What to run with; waits for it. Raises EOFError when the supervisor is gone already."""
        data = self._sock.recv(MESSAGE_BYTES_MAX)
        if not data:
            raise EOFError("the supervisor is gone")
        self._sock.setblocking(False)
        return msgspec.json.decode(data, type=Settings, dec_hook=_decode)

    def say_ready(self, address: str) -> None:
        """Tell that this node accepts connections; a supervisor that is gone shows as an order."""
        _send(self._sock, READY + address.encode())

    async def receive_order(self) -> bytes:
        """The next order; empty when the supervisor is gone. A cancellation loses nothing."""
        return await _receive(self._sock)


class SupervisorEnd:
    """The supervisor's end of one node's link.

    Attributes:
        ready: set when the node accepts connections.
        address: the node's own address, known from then on.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Takes over a socket of one of the pairs that ``make_pair`` makes."""
        sock.setblocking(False)
        self._sock = sock
        self.ready = trio.Event()
        self.address = ""

    def send_settings(self, settings: Settings) -> None:
        """The first message. Raises OSError when it is too long."""
        data = msgspec.json.encode(settings, enc_hook=str)
        if len(data) > MESSAGE_BYTES_MAX:
            reason = f"settings of {len(data)} bytes do not fit {MESSAGE_BYTES_MAX}: shorten lists (allowed_origins)"
            raise OSError(errno.EMSGSIZE, reason)
        _send(self._sock, data)

    def order(self, order: bytes) -> None:
        """Send DRAIN or END; a node that is gone needs none."""
        _send(self._sock, order)

    async def listen(self) -> None:
        """Note what the node says, until it ends. A cancellation loses nothing."""
        while message := await _receive(self._sock):
            if message.startswith(READY):
                self.address = message.removeprefix(READY).decode()
                self.ready.set()

    def close(self) -> None:
        """The node has ended, or is to notice that this end is gone."""
        self._sock.close()


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that keep messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _send(sock: socket.socket, message: bytes) -> None:
    try:
        sock.send(message)
    except (BrokenPipeError, ConnectionResetError):
        return  # the other end is gone, which its reader or whoever waits for the process notices


async def _receive(sock: socket.socket) -> bytes:
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            return sock.recv(MESSAGE_BYTES_MAX)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            return b""  # ended with a message of ours unread


def _decode(kind: type, value: Any) -> Any:
    return kind(value)
