"""Silent connections, expired tokens and slow consumers are found by looking around, not by a timer each.

Once a second a fifth of the table is looked at, so that each connection's turn comes every REVOLUTION_TICKS; a long
table is walked in slices, and a crowd that is to be closed is closed in slices.
"""

from collections.abc import Callable, Collection

import trio

from gateway.config import Settings
from gateway.edge.connection import CLOSING, JSON, Connection, ConnectionTable
from gateway.edge.outgoing import encode_for
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

ACTIONS_PER_SLICE = 100
"""Connections closed or told between two checkpoints: about 1 ms, as closing one takes some 10 us."""

PAUSE_S = 1.0
"""Seconds of lateness that tell a pause of the process or the machine from a busy loop: heartbeats wait unread then."""


class Keepalive:
    """Ends connections that are silent, or whose token has run out.

    Attributes:
        on_tick: called once a second, with trio's time; for others with deadlines.
    """

    def __init__(self, settings: Settings, table: ConnectionTable, writer: Writer) -> None:
        self._idle_timeout_s = settings.idle_timeout_s
        self._table = table
        self._writer = writer
        self._next_fd = 0
        self._noticed: set[Connection] = set()
        self._due_s = 0.0
        self._judge_from_s = 0.0
        self.on_tick: list[Callable[[float], None]] = []

    @property
    def noticed(self) -> int:
        """Open connections that were told that their token runs out."""
        return len(self._noticed)

    async def run(self) -> None:
        """Look around for ever."""
        self._due_s = trio.current_time()
        while True:
            self._due_s += TICK_S
            await trio.sleep(TICK_S)
            now = self._table.now = trio.current_time()
            self._heed_pause(now)
            while self._writer.sweep(now):
                await trio.lowlevel.checkpoint()
            for call in self.on_tick:
                call(now)
            await self._look_around(now)

    async def _look_around(self, now: float) -> None:
        remaining = len(self._table.by_fd) // REVOLUTION_TICKS + 1
        while remaining > 0:
            remaining -= self.look(now, min(remaining, CONNECTIONS_PER_SLICE))
            await trio.lowlevel.checkpoint()
            self._heed_pause(trio.current_time())

    def _heed_pause(self, now: float) -> None:
        """After a pause everybody has a revolution to be heard before silence is judged: clients went on beating."""
        if now - self._due_s > PAUSE_S:
            self._judge_from_s = now + REVOLUTION_TICKS * TICK_S
        self._due_s = now

    @property
    def noticed_connections(self) -> Collection[Connection]:
        """Open connections that were told that their token runs out."""
        return self._noticed

    def restore(self, noticed: list[Connection], now: float) -> None:
        """Go on for another process: whom it told of a token's end, and whose heartbeats wait unread since then."""
        self._noticed.update(noticed)
        self._judge_from_s = now + REVOLUTION_TICKS * TICK_S

    def look(self, now: float, count: int) -> int:
        """Look at the next ``count`` cells of the table; from the end, go on at the beginning.

        Stops early, and goes on from there the next time, after ACTIONS_PER_SLICE closes and notices.

        Returns:
            cells done, of ``count``; those beyond the end of the table are done too.
        """
        table = self._table
        silent_since = now - self._idle_timeout_s if now >= self._judge_from_s else 0.0
        expiring = now + limits.TOKEN_EXPIRY_NOTICE_S + limits.TOKEN_LEEWAY_S + TICK_S * REVOLUTION_TICKS
        start = self._next_fd
        end = start + count
        heard, ends = table.heard_s, table.ends_s
        actions = 0
        for fd in range(start, min(end, len(table.by_fd))):
            connection = table.by_fd[fd]
            if connection is None:
                continue
            if heard[fd] < silent_since:
                message = f"nothing heard for {self._idle_timeout_s:g} s: send heartbeats"
                actions += self._end(connection, CloseCode.HEARTBEAT_TIMEOUT, message)
            elif ends[fd] < expiring:
                actions += self._near_end(connection, ends[fd] - now)
            if actions >= ACTIONS_PER_SLICE:
                end = fd + 1
                break
        self._next_fd = end if end < len(table.by_fd) else 0
        return end - start

    def _near_end(self, connection: Connection, remaining_s: float) -> bool:
        """Whether there was something to do for a connection whose token runs out soon."""
        if remaining_s <= 0:
            return self._end(connection, CloseCode.TOKEN_EXPIRED, "the token ran out: connect with a fresh one")
        if connection in self._noticed or connection.flags & CLOSING:
            return False
        self._noticed.add(connection)
        notice = TokenExpiring(max(0, int(remaining_s) - limits.TOKEN_LEEWAY_S))
        # Not a signal: those are shed by a full socket, and nobody would tell again.
        self._writer.write(connection, encode_for(notice, json=bool(connection.flags & JSON)))
        return True

    def _end(self, connection: Connection, code: CloseCode, reason: str) -> bool:
        """Close a connection, if it is not closing yet."""
        if connection.flags & CLOSING:
            return False
        self._writer.close(connection, code, reason)
        return True

    def forget(self, connection: Connection) -> None:
        """A connection is open no more, or has a fresh token: it will be told anew."""
        self._noticed.discard(connection)
