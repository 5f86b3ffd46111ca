"""Silent connections, expired tokens and slow consumers are found by looking around, not by a timer each.

Once a second a fifth of the table is looked at, so that each connection's turn comes every REVOLUTION_S; a long table
is walked in slices.
"""

from collections.abc import Callable

import trio

from gateway.config import Settings
from gateway.edge.connection import CLOSING, Connection, ConnectionTable
from gateway.edge.hub import Hub
from gateway.edge.writer import Writer
from protocol import limits
from protocol.errors import CloseCode
from protocol.frames import TokenExpiring

TICK_S = 1.0
"""Seconds between two looks."""

REVOLUTION_TICKS = 5
"""Ticks in which every connection is looked at once: deadlines are kept to within 5 s."""

CONNECTIONS_PER_SLICE = 5_000
"""Table cells looked at between two checkpoints: about 0.5 ms."""


class Keepalive:
    """Ends connections that are silent, or whose token has run out.

    Attributes:
        on_tick: called once a second, with trio's time; for others with deadlines.
    """

    def __init__(self, settings: Settings, table: ConnectionTable, writer: Writer, hub: Hub) -> None:
        self._idle_timeout_s = settings.idle_timeout_s
        self._table = table
        self._writer = writer
        self._hub = hub
        self._next_fd = 0
        self._noticed: set[Connection] = set()
        self.on_tick: list[Callable[[float], None]] = []

    async def run(self) -> None:
        """Look around for ever."""
        while True:
            await trio.sleep(TICK_S)
            now = self._table.now = trio.current_time()
            self._writer.sweep(now)
            for call in self.on_tick:
                call(now)
            await self._look_around(now)

    async def _look_around(self, now: float) -> None:
        remaining = len(self._table.by_fd) // REVOLUTION_TICKS + 1
        while remaining > 0:
            count = min(remaining, CONNECTIONS_PER_SLICE)
            self.look(now, count)
            remaining -= count
            await trio.lowlevel.checkpoint()

    def look(self, now: float, count: int) -> None:
        """Look at the next ``count`` cells of the table; from the end, go on at the beginning."""
        table = self._table
        silent_since = now - self._idle_timeout_s
        expiring = now + limits.TOKEN_EXPIRY_NOTICE_S + limits.TOKEN_LEEWAY_S + TICK_S * REVOLUTION_TICKS
        start = self._next_fd
        end = start + count
        self._next_fd = end if end < len(table.by_fd) else 0
        heard, ends = table.heard_s, table.ends_s
        for fd in range(start, min(end, len(table.by_fd))):
            connection = table.by_fd[fd]
            if connection is None:
                continue
            if heard[fd] < silent_since:
                message = f"nothing heard for {self._idle_timeout_s:g} s: send heartbeats"
                self._writer.close(connection, CloseCode.HEARTBEAT_TIMEOUT, message)
            elif ends[fd] < expiring:
                self._near_end(connection, ends[fd] - now)

    def _near_end(self, connection: Connection, remaining_s: float) -> None:
        if remaining_s <= 0:
            self._writer.close(connection, CloseCode.TOKEN_EXPIRED, "the token ran out: connect with a fresh one")
            self._noticed.discard(connection)
        elif connection not in self._noticed and not connection.flags & CLOSING:
            self._noticed.add(connection)
            expires_in_s = max(0, int(remaining_s) - limits.TOKEN_LEEWAY_S)
            self._hub.signal_connections((connection,), TokenExpiring(expires_in_s))

    def forget(self, connection: Connection) -> None:
        """A connection is open no more, or has a fresh token: it will be told anew."""
        self._noticed.discard(connection)
