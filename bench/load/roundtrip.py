"""Closed-loop echo: some connections that always have one small command under way, among a parked crowd."""

import os
import select
import time

from bench.errors import BenchError
from bench.load.accounts import PING, PONG_BYTES, Door, user_names
from bench.load.connect import open_connections
from bench.machine import Busy, Cores, Meter

SETTLE_S = 0.3
"""Seconds of load before a window begins."""

SILENCE_S = 10.0


class Roundtrips:
    """The crowd and the busy ones of one server."""

    def __init__(self, door: Door, cores: Cores, parked: int, busy: int) -> None:
        """Connect all of them."""
        self._door, self._cores = door, cores
        users = user_names(parked + busy, "roundtrip")
        connections = open_connections(door.host, door.port, door.requests(users), frames=door.welcome_frames)
        self._parked = connections[:parked]
        self._busy = connections[parked:]
        self._epoll = select.epoll()
        for connection in self._busy:
            self._epoll.register(connection, select.EPOLLIN)

    def run(self, seconds: float) -> tuple[int, Busy]:
        """Keep every busy connection in a roundtrip for so long; roundtrips made, and how busy that was."""
        for connection in self._busy:
            connection.send(PING)
        self._spin(time.perf_counter_ns() + int(SETTLE_S * 1e9))
        meter = Meter(self._door.pid, os.getpid(), cores=self._cores)
        made = self._spin(time.perf_counter_ns() + int(seconds * 1e9))
        busy = meter.stop()
        self._finish()
        return made, busy

    def check_parked(self) -> None:
        """Raises BenchError when one of the crowd was closed or written to meanwhile."""
        with select.epoll() as epoll:
            for connection in self._parked:
                epoll.register(connection, select.EPOLLIN)
            disturbed = len(epoll.poll(0, len(self._parked)) if self._parked else ())
        if disturbed:
            raise BenchError(f"{disturbed} of {len(self._parked)} parked connections were closed or written to")

    def _spin(self, until_ns: int) -> int:
        made = 0
        poll, read, write, now = self._epoll.poll, os.read, os.write, time.perf_counter_ns
        while now() < until_ns:
            ready = poll(SILENCE_S)
            for fd, _events in ready:
                if len(read(fd, 64)) != PONG_BYTES:
                    raise BenchError("a busy connection was closed or got something else than its reply")
                write(fd, PING)
            if not ready:
                raise BenchError(f"no reply for {SILENCE_S:g} s")
            made += len(ready)
        return made

    def _finish(self) -> None:
        """Take the replies that are still under way."""
        missing = len(self._busy)
        while missing:
            ready = self._epoll.poll(SILENCE_S)
            if not ready:
                raise BenchError(f"{missing} replies did not come for {SILENCE_S:g} s")
            for fd, _events in ready:
                missing -= len(os.read(fd, 64)) == PONG_BYTES
