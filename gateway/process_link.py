"""Between a supervisor and one of its nodes: a pair of sockets that both watch, so that neither is left alone.

==============  ==================  =========================================================================
from            message             meaning
==============  ==================  =========================================================================
supervisor      settings, as JSON   the first message: what the node is to run with
node            ``ready ADDRESS``   it accepts connections; ADDRESS is its own, beside the port that all share
supervisor      ``upgrade PID``     hand over to process PID; its channel (``gateway.upgrade``) and pidfd come along
node            ``upgrade LINE``    how that goes, as ``gateway.upgrade.control`` has it
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
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

import msgspec
import structlog
import trio
from msgspec import DecodeError, Struct

from gateway.config import Settings
from gateway.upgrade import control

DRAIN: Final = b"drain"
END: Final = b"end"
READY: Final = b"ready "
UPGRADE: Final = b"upgrade "

MESSAGE_BYTES_MAX: Final = 128 * 1024
"""Bytes of one message: settings with long lists fit, and so does the message in the kernel's buffer (208 KiB)."""


HANDED_MAX: Final = 2
"""Descriptors that come along with a message: those of ``upgrade PID``."""

_RIGHTS_BYTES: Final = socket.CMSG_SPACE(HANDED_MAX * array("i").itemsize)

log = structlog.get_logger(__name__)


class HandOver(Struct):
    """The order to hand over. Its descriptors belong to whoever receives it.

    Attributes:
        pid: the process that is to take over.
        channel: descriptor of the channel to it.
        pidfd: descriptor that stands for it, as pidfd_open(2) gives it.
    """

    pid: int
    channel: int
    pidfd: int


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

    def say_upgrade(self, line: bytes) -> None:
        """Tell how an upgrade goes."""
        _send(self._sock, UPGRADE + line)

    async def receive_order(self) -> bytes | HandOver:
        """The next order; empty when the supervisor is gone. A cancellation loses nothing."""
        while True:
            message, handed = await _receive(self._sock)
            if not message.startswith(UPGRADE):
                return message
            pid = int(message.removeprefix(UPGRADE))
            if len(handed) == HANDED_MAX:
                return HandOver(pid, *handed)
            for descriptor in handed:
                os.close(descriptor)
            reason = f"{len(handed)} of {HANDED_MAX} descriptors arrived: raise the limit of open files"
            self.say_upgrade(control.encode_line(control.Refused(reason, pid)))


class SupervisorEnd:
    """The supervisor's end of one node's link.

    Attributes:
        ready: set when the node accepts connections.
        address: the node's own address, known from then on.
        on_line: called with what it says of an upgrade.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Takes over a socket of one of the pairs that ``make_pair`` makes."""
        sock.setblocking(False)
        self._sock = sock
        self.ready = trio.Event()
        self.address = ""
        self.on_line: Callable[[control.Line], None] = lambda _line: None

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

    def hand_over(self, pid: int, channel: socket.socket, pidfd: int) -> None:
        """Order to hand over to process ``pid``; a node that is gone needs no order."""
        if self._sock.fileno() >= 0:
            _send(self._sock, UPGRADE + b"%d" % pid, (channel.fileno(), pidfd))

    @property
    def fd(self) -> int:
        """The descriptor of this end."""
        return self._sock.fileno()

    async def listen(self) -> None:
        """Note what the node says, until it ends. A cancellation loses nothing."""
        while message := (await _receive(self._sock))[0]:
            if message.startswith(READY):
                self.address = message.removeprefix(READY).decode()
                self.ready.set()
            elif message.startswith(UPGRADE):
                self._heard(message.removeprefix(UPGRADE))

    def _heard(self, text: bytes) -> None:
        try:
            line = control.decode_line(text)
        except DecodeError as error:
            log.error("what a node said of its upgrade cannot be read", error=str(error))
        else:
            self.on_line(line)

    def close(self) -> None:
        """The node has ended, or is to notice that this end is gone."""
        self._sock.close()


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that keep messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _send(sock: socket.socket, message: bytes, descriptors: Sequence[int] = ()) -> None:
    try:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        sock.sendmsg([message], rights)
    except (BrokenPipeError, ConnectionResetError):
        return  # the other end is gone, which its reader or whoever waits for the process notices


async def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """The next message, and descriptors that came along."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            message, rights, _, _ = sock.recvmsg(MESSAGE_BYTES_MAX, _RIGHTS_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            return b"", []  # ended with a message of ours unread
        handed = array("i")
        for _level, _kind, data in rights:
            handed.frombytes(data[: len(data) - len(data) % handed.itemsize])
        return message, list(handed)


def _decode(kind: type, value: Any) -> Any:
    return kind(value)
