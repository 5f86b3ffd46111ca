"""Where ``tidegate upgrade`` reaches a node: a Unix socket named after its process, and lines of JSON on it.

The name is in Linux's abstract namespace, so that it ends with the process and needs no directory. Names there have no
permissions: each side asks the kernel who the other is.
"""

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

_CREDENTIALS: Final = struct.Struct("3i")
_NAME: Final = "tidegate-node-"
_PROC: Final = Path("/proc")
"""Where the kernel tells of processes and sockets: see proc(5)."""

_LISTENING: Final = 0x1_0000
"""The flag of a socket that listens (the kernel's __SO_ACCEPTCON)."""

REQUEST: Final = b"upgrade\n"
LINE_BYTES_MAX: Final = 4_096
"""Bytes read of a request, which has one line: more than any that is understood."""


class Progress(Struct, tag="progress"):
    """The upgrade has reached a state."""

    state: str


class Succeeded(Struct, tag="succeeded"):
    """A successor has taken over.

    Attributes:
        pid: its process.
        connections: how many it has from this one.
        paused_ms: milliseconds in which nothing was read.
        stood_still_ms: those of them in which the event loop stood still; before, what was read was answered.
    """

    pid: int
    connections: int
    paused_ms: float
    stood_still_ms: float


class Refused(Struct, tag="failed"):
    """The node goes on as before.

    Attributes:
        reason: why.
        successor: the process that was to take over, where a supervisor had given it; 0: none had, or it is not said.
    """

    reason: str
    successor: int = 0


class Several(Struct, tag="several"):
    """What became of each of several processes behind one port; their supervisor itself is upgraded.

    Attributes:
        nodes: by name.
    """

    nodes: dict[str, Succeeded | Refused]


Line = Progress | Succeeded | Refused | Several

_encode: Final = msgspec.json.Encoder().encode
_decode: Final[msgspec.json.Decoder[Line]] = msgspec.json.Decoder(Line)


class PeerUnknown(Exception):
    """The other end is not who it has to be."""


class UpgradeFailed(Exception):
    """No successor took over, and this process goes on; the message says why."""


class UpgradeRefused(Exception):
    """The node said no, or tried and goes on as before. The message is its reason."""


def address_of(pid: int) -> str:
    """The address of a node's control socket."""
    return f"\0{_NAME}{pid}"


def running_pids() -> list[int]:
    """Processes that can be asked for an upgrade, in this network namespace: nodes, and supervisors of several nodes.

    Nodes that have a supervisor are left out: it upgrades them. Raises OSError: the kernel does not tell.
    """
    found = set()
    for line in (_PROC / "net" / "unix").read_text(errors="replace").splitlines()[1:]:
        _number, _references, _protocol, flags, _kind, _state, _inode, *name = line.split(maxsplit=7)
        pid = name[0].removeprefix(f"@{_NAME}") if name else ""
        if int(flags, 16) & _LISTENING and pid.isdecimal():
            found.add(int(pid))
    return sorted(pid for pid in found if _parent(pid) not in found)


def _parent(pid: int) -> int | None:
    """Who started a process; None if it has ended, or is of another process namespace."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    _state, parent, *_ = stat.rpartition(")")[2].split()  # behind its name, which may have anything in it
    return int(parent)


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Process and user id at the other end of a Unix socket, as they were when it connected or listened."""
    pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def listen_for_control() -> socket.socket:
    """This process's control socket, not blocking. Raises OSError: another process has taken its name."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(address_of(os.getpid()))
        sock.listen(4)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def may_ask(sock: socket.socket) -> bool:
    """Whether the user at the other end may order this process about: the same one, or root."""
    return peer_of(sock)[1] in (0, os.geteuid())


def encode_line(line: Line) -> bytes:
    """One line."""
    return _encode(line) + b"\n"


def decode_line(text: bytes) -> Line:
    """The reverse. Raises DecodeError."""
    return _decode.decode(text)


def ask(pid: int, tell: Callable[[str], None], timeout_s: float) -> Succeeded | Several:
    """Have process ``pid`` upgrade itself, and wait for the outcome; ``tell`` is called with each state. Blocks.

    Raises:
        ConnectionError: there is no such node, or it ended without a word.
        PeerUnknown: somebody else has its name.
        TimeoutError: no outcome in time; the upgrade may still be under way.
        UpgradeRefused: it goes on as before.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect(address_of(pid))
        if peer_of(sock)[0] != pid:
            raise PeerUnknown(f"process {peer_of(sock)[0]} has the name of process {pid}")
        sock.sendall(REQUEST)
        with sock.makefile("rb") as lines:
            for text in lines:
                line = decode_line(text)
                if isinstance(line, Progress):
                    tell(line.state)
                elif isinstance(line, Refused):
                    raise UpgradeRefused(line.reason)
                else:
                    return line
    raise ConnectionResetError("the node ended without saying what became of the upgrade; its log says why")
