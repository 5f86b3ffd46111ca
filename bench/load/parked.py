"""Idle connections: opened, counted, asked for a sign of life, and closed. Used by density and by every crowd."""

import os
import select
import socket
from collections.abc import Callable

from bench.errors import BenchError
from bench.load.accounts import CLOSE_FRAME, PING, PONG_BYTES, Door, user_names
from bench.load.connect import close_politely, open_connections
from bench.machine import Busy, Cores, Meter

PROOF_TIMEOUT_S = 60.0
"""Seconds in which every connection must have received what it was sent."""


class Parked:
    """Connections that do nothing. Each call returns when it is done."""

    def __init__(self, door: Door, cores: Cores, first_address: int = 0) -> None:
        """Nothing is opened yet; ``first_address``: which of the 127.x addresses the first ones come from."""
        self._door, self._cores = door, cores
        self._requests: list[bytes] = []
        self._connections: list[socket.socket] = []
        self._first_address = first_address

    def prepare(self, count: int, wave: str) -> list[str]:
        """Make the users, tokens and handshakes of the next ``open``; returns the users."""
        users = user_names(count, wave)
        self._requests = self._door.requests(users)
        return users

    def open(self) -> Busy:
        """Connect all that was prepared; how busy that made everybody."""
        meter = Meter(self._door.pid, os.getpid(), cores=self._cores)
        opened = open_connections(
            self._door.host,
            self._door.port,
            self._requests,
            frames=self._door.welcome_frames,
            first_address=self._first_address,
        )
        self._first_address += 10
        self._connections += opened
        return meter.stop()

    def close(self) -> None:
        """All leave, with a close frame."""
        close_politely(self._connections, CLOSE_FRAME)
        self._connections = []

    def prove_echo(self) -> None:
        """Each connection sends the smallest frame and gets its answer: a node's pong, a peer's echo."""
        for connection in self._connections:
            connection.send(PING)
        self._await_all(lambda data: len(data) >= PONG_BYTES)

    def prove_push(self, marker: bytes) -> None:
        """Wait until a push with ``marker`` in it has come to every connection, whatever came before it."""
        self._await_all(lambda data: marker in data)

    def _await_all(self, complete: Callable[[bytes], bool]) -> None:
        """Read until what each connection has received is complete. Raises BenchError naming how many lack."""
        missing = {connection.fileno(): b"" for connection in self._connections}
        read = {connection.fileno(): connection.recv for connection in self._connections}
        with select.epoll() as epoll:
            for fd in missing:
                epoll.register(fd, select.EPOLLIN)
            while missing:
                ready = epoll.poll(PROOF_TIMEOUT_S)
                if not ready:
                    raise BenchError(f"{len(missing)} of {len(read)} parked connections did not get what was sent")
                for fd, _events in ready:
                    chunk = read[fd](65_536)
                    if not chunk:
                        raise BenchError("a parked connection was closed by the server")
                    data = missing.get(fd, b"") + chunk
                    if complete(data):
                        missing.pop(fd, None)
                    elif fd in missing:
                        missing[fd] = data
