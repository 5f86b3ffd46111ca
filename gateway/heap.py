"""How the process's heap gives memory back: what a crowd of connections needed for a moment must not stay for ever; and
how often Python's collector looks for what counting references does not find, while everybody waits.
"""

import ctypes
import gc
from typing import Final

import structlog

MAPPED_BYTES: Final = 49_152
"""Bytes from which on a block is mapped by itself and unmapped when it is freed, so that it leaves no hole in the heap.

It is above what one read of a connection asks for (``READ_BYTES``), because mapping costs two system calls and a page
fault for each 4 KiB. glibc would begin at 128 KiB and raise that by itself to the largest block ever freed, which is
some megabytes after a crowd (mallopt(3), M_MMAP_THRESHOLD).
"""

TRIM_BYTES: Final = 65_536
"""Free bytes at the end of the heap that go back to the system (mallopt(3), M_TRIM_THRESHOLD)."""

COLLECT_AFTER: Final = (4_000, 5, 20)
"""Objects by which the youngest generation grows until it is collected, and collections of each generation until one
of the next (gc.set_threshold). A commit's worth of sends is some thousand objects that all end by themselves a moment
later: with Python's 700 they were looked at several times, and half of those looks led to one of everything. (Measured
with two nodes at 4,600 sends a second: 4 instead of 7 % of the processor's time, and in 40 seconds 2 pauses of 45 ms
instead of 13; a pause of the youngest generation takes 2 ms instead of 0.3.)"""

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3

log = structlog.get_logger(__name__)


def give_back_large_blocks() -> None:
    """Call it first in a process that holds connections. A C library other than glibc may refuse, which is logged."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES) and mallopt(_M_TRIM_THRESHOLD, TRIM_BYTES)):
        log.info("the C library cannot be told when to give memory back")


def collect_less_often() -> None:
    """Call it first in a process that handles many sends at once."""
    gc.set_threshold(*COLLECT_AFTER)
