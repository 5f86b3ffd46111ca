"""How the process's heap gives memory back: what a crowd of connections needed for a moment must not stay for ever."""

import ctypes
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

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3

log = structlog.get_logger(__name__)


def give_back_large_blocks() -> None:
    """Call it first in a process that holds connections. A C library other than glibc may refuse, which is logged."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES) and mallopt(_M_TRIM_THRESHOLD, TRIM_BYTES)):
        log.info("the C library cannot be told when to give memory back")
