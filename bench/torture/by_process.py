"""Faults for each process by itself, although all of them connect to the same proxies.

A driver connects to the addresses that Cassandra tells, which are the same for every node of ours. So a proxy asks the
kernel who is at the other end of a connection.
"""

import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from bench.torture.proxy import Address, Faults

# <linux/sock_diag.h> and <linux/inet_diag.h>
_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_REQUEST: Final = 1
_ALL_STATES: Final = 0xFFFFFFFF
_NO_COOKIE: Final = (0xFFFFFFFF, 0xFFFFFFFF)
_HEADER: Final = struct.Struct("=IHHII")
_QUESTION: Final = struct.Struct("=BBBxI")
_ENDS: Final = struct.Struct("!HH4s12x4s12x")
_INODE_OFFSET: Final = _HEADER.size + 4 + _ENDS.size + 12 + 16  # behind states, ends, interface and cookie, and queues


class FaultsByProcess:
    """Finds the faults of a connection by the process that made it; to be given to a FaultProxy as its ``faults``.

    Attributes:
        others: the faults of all connections whose process, and its ancestors, are not known here.
    """

    def __init__(self) -> None:
        """Know no process yet."""
        self.others = Faults()
        self._faults: dict[int, Faults] = {}

    def watch(self, pid: int, faults: Faults) -> None:
        """Give connections that process ``pid`` and its descendants make from now on these faults.

        Call it right after the process was started, before it has connected.
        """
        self._faults[pid] = faults

    def forget(self, pid: int) -> None:
        """The process is gone; no error when it was not known."""
        self._faults.pop(pid, None)

    def __call__(self, client: Address, proxy: Address) -> Faults:
        """The faults of a connection between these two ends."""
        inode = _inode_of(client, proxy)
        for pid, faults in self._faults.items() if inode else ():
            if any(_has_socket(one, inode) for one in _family_of(pid)):
                return faults
        return self.others


def _inode_of(local: Address, remote: Address) -> str:
    """The kernel's number of the socket at the ``local`` end of an IPv4 connection; empty when that is closed."""
    return _asked_for(local, remote) or _listed(local, remote)


def _asked_for(local: Address, remote: Address) -> str:
    """Asked for by both ends, which is exact; empty when it is closed, and where the kernel does not tell."""
    ends = _ENDS.pack(local[1], remote[1], socket.inet_aton(local[0]), socket.inet_aton(remote[0]))
    question = _QUESTION.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, _ALL_STATES)
    question += ends + struct.pack("=III", 0, *_NO_COOKIE)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG) as kernel:
            kernel.send(_HEADER.pack(_HEADER.size + len(question), _BY_FAMILY, _REQUEST, 1, 0) + question)
            answer = kernel.recv(4_096)
    except OSError:
        return ""  # a kernel without this service
    if _HEADER.unpack_from(answer)[1] != _BY_FAMILY:
        return ""
    return str(struct.unpack_from("=I", answer, _INODE_OFFSET)[0])


def _listed(local: Address, remote: Address) -> str:
    """Looked for in the kernel's list, which may miss one while others come and go; empty when it is not there."""
    ends = [_shown_by_kernel(local), _shown_by_kernel(remote)]
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == ends:
            return fields[9]
    return ""


def _shown_by_kernel(address: Address) -> str:
    """An address as /proc/net/tcp has it: hex, the four bytes read as a number of this machine."""
    numbers = bytes(map(int, address[0].split(".")))
    return f"{int.from_bytes(numbers, sys.byteorder):08X}:{address[1]:04X}"


def _family_of(pid: int) -> Iterator[int]:
    """A process, then its descendants; fewer when one of them ends meanwhile."""
    yield pid
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    yield from (child.pid for child in children)


def _has_socket(pid: int, inode: str) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return False  # gone just now
    for name in names:
        try:
            if os.readlink(f"{folder}/{name}") == f"socket:[{inode}]":
                return True
        except OSError:
            continue  # closed just now
    return False
