"""Runs ``tidegate`` with a wall clock that may turn while it runs: ``python -m bench.torture.turned_clock serve …``.

What Python code reads by ``time.time`` and ``time.time_ns`` is turned, that of the Cassandra driver, too; monotonic
clocks are not, just as when somebody sets a machine's clock. (libfaketime, which turns it for everything, makes sleep
fail in Python 3.11, and with it the driver.)
"""

import mmap
import os
import struct
import time
from pathlib import Path
from typing import Final

VARIABLE: Final = "TORTURE_CLOCK"
"""Names the file that tells how far the clock is turned."""

_OFFSET: Final = struct.Struct("=d")


def turn(path: Path, seconds: float) -> None:
    """Turn the clocks of all processes that were told ``path``, at once; the file is made if it is missing."""
    if not path.exists():
        path.write_bytes(_OFFSET.pack(0))
    with path.open("r+b") as file:
        file.write(_OFFSET.pack(seconds))


def install(path: Path) -> None:
    """From now on this process's wall clock is turned as the file says."""
    with path.open("rb") as file:
        shared = mmap.mmap(file.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)
    true_time, true_time_ns = time.time, time.time_ns

    def turned_time() -> float:
        return true_time() + float(_OFFSET.unpack_from(shared)[0])

    def turned_time_ns() -> int:
        return true_time_ns() + int(_OFFSET.unpack_from(shared)[0] * 1e9)

    time.time, time.time_ns = turned_time, turned_time_ns


if __name__ == "__main__":
    install(Path(os.environ[VARIABLE]))
    from gateway.cli.main import main

    main()
