"""Faults for each process by itself, although all of them connect to the same proxies.

A driver connects to the addresses that Cassandra tells, which are the same for every node of ours. So a proxy asks the
kernel who is at the other end of a connection.
"""

import os
import sys
from pathlib import Path

import psutil

from faults.proxy import Address, Faults

_READS_MAX = 3
"""How often the kernel's list is read for one connection: a line may be missed while other connections come and go."""


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
    ends = [_shown_by_kernel(local), _shown_by_kernel(remote)]
    for _ in range(_READS_MAX):
        for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[1:3] == ends:
                return fields[9]
    return ""


def _shown_by_kernel(address: Address) -> str:
    """An address as /proc/net/tcp has it: hex, the four bytes read as a number of this machine."""
    numbers = bytes(map(int, address[0].split(".")))
    return f"{int.from_bytes(numbers, sys.byteorder):08X}:{address[1]:04X}"


def _family_of(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


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
