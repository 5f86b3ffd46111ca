"""Somebody in a conversation of two, who says something every few milliseconds and waits to be acknowledged."""

import contextlib
import os
import time

from bench.errors import BenchError
from bench.load.accounts import Door
from bench.load.connect import open_connections
from bench.load.messages import SendTemplate, count_acks

PAUSE_S = 0.005
"""Seconds from an acknowledgement to the next message: two hundred a second take little of anything."""

SILENCE_S = 20.0


class Neighbour:
    """Measures what a huge conversation beside it costs a small one, as a client sees it."""

    def __init__(self, door: Door, user: str, conversation_id: str) -> None:
        """Connect; where that is allowed, ahead of every other process on the load core."""
        with contextlib.suppress(PermissionError):  # then its own waiting for the core is part of the figure
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        [self._connection] = open_connections(door.host, door.port, [door.request(user)], frames=1)
        self._connection.settimeout(SILENCE_S)
        self._template = SendTemplate(conversation_id, user)
        self._number = 0

    def run(self, seconds: float) -> list[int]:
        """Chat for so long; the time from each message to its acknowledgement, nanoseconds."""
        until = time.monotonic() + seconds
        latencies = []
        while time.monotonic() < until:
            self._number += 1
            began_ns = time.perf_counter_ns()
            self._connection.sendall(self._template.make(self._number))
            self._await_ack()
            latencies.append(time.perf_counter_ns() - began_ns)
            time.sleep(PAUSE_S)
        return latencies

    def _await_ack(self) -> None:
        data = b""
        while not count_acks(data)[0]:
            chunk = self._connection.recv(4_096)
            if not chunk:
                raise BenchError("the node closed the neighbour's connection")
            data += chunk
