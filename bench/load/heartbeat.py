"""One connection that asks for a sign of life every few milliseconds, and how late it comes."""

import contextlib
import os
import time

from bench.load.accounts import PING, PONG_BYTES, Door
from bench.load.connect import open_connections
from bench.load.setup import receive_exactly

INTERVAL_S = 0.002
"""Seconds between two pings."""

SILENCE_S = 20.0


class Heartbeat:
    """Measures a loop from outside: what waits for it longest, as a client sees it."""

    def __init__(self, door: Door) -> None:
        """Connect; where that is allowed, ahead of every other process on the load core."""
        with contextlib.suppress(PermissionError):  # then its own waiting for the core is part of the figure
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        [self._connection] = open_connections(door.host, door.port, [door.request("bench-heartbeat")], frames=1)
        self._connection.settimeout(SILENCE_S)

    def run(self, seconds: float) -> list[int]:
        """Ping for so long; the time of each roundtrip, nanoseconds."""
        until = time.monotonic() + seconds
        latencies = []
        while time.monotonic() < until:
            began_ns = time.perf_counter_ns()
            self._connection.send(PING)
            receive_exactly(self._connection, PONG_BYTES)
            latencies.append(time.perf_counter_ns() - began_ns)
            time.sleep(INTERVAL_S)
        return latencies
