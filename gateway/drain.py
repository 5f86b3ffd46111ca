"""Draining: clients leave in batches, each told when to come back, and not before what they sent is answered.

Whoever leaves comes back at once, so that others (or this node's successor) meet a crowd. How wide it has to be spread
depends on its size, and is done in the way that costs the clients least:

- Where other nodes take the clients (``elsewhere``), batches leave one after the other over that time. Whoever waits
  for its turn is served meanwhile, and whoever leaves may connect again at once.
- Where all of them have to wait for this node's successor, all leave at once, and are told different times to come
  back.
"""

from collections import deque
from collections.abc import Callable, Sequence
from math import ceil
from random import Random
from typing import Final

import trio
from msgspec import Struct

from gateway.edge.connection import Connection, ConnectionTable
from gateway.edge.hub import Hub
from gateway.edge.writer import Writer
from protocol.errors import CloseCode
from protocol.frames import GoAway

RECONNECTS_PER_S: Final = 2_000
"""Connections a second that come back to others: with handshake, first sync and TLS at the load balancer about a fifth
of what two cores can do beside their other work."""

BATCH: Final = 100
"""Connections told, or closed, between two checkpoints: about a millisecond."""

BATCH_PAUSE_S: Final = 0.01
"""Seconds from one batch to the next where all leave at once: others are served in between."""

SPREAD_SHARE: Final = 0.5
"""Share of the time at hand over which turns are spread at most: the rest is for answers and the last handshakes."""

NOTICE_S: Final = 0.2
"""Seconds from the notice to the close at least: what was on its way when it came is received and answered."""

NOTICE_SHARE: Final = 0.05
"""Share of the time at hand that this may take at most."""

SETTLE_S: Final = 5.0
"""Seconds from the notice to the close at most, answered or not: clients repeat what was not, with the same id."""

SETTLE_SHARE: Final = 0.25
"""Share of the time at hand that this may take at most."""

STAY_AWAY_S: Final = 0.5
"""Seconds that clients are told to stay away: at most, where others take them; at least, where this node's successor
does, because a restart takes that long."""

TICK_S: Final = 0.01
"""Seconds between two looks at whose turn it is."""

REASON: Final = "the node restarts: come back"


class Plan(Struct, frozen=True):
    """When connections leave, in seconds.

    Attributes:
        turn_s: from one batch's notice to the next one's.
        notice_s: from a notice to its close, at least.
        settle_s: from a notice to its close, at most.
        away_min_s: the shortest time that clients are told to stay away.
        away_max_s: the longest.
    """

    turn_s: float
    notice_s: float
    settle_s: float
    away_min_s: float
    away_max_s: float


def make_plan(connections: int, within_s: float, *, elsewhere: bool) -> Plan:
    """How so many connections leave within the time at hand; ``elsewhere``: other nodes take them at once."""
    batches = max(1, ceil(connections / BATCH))
    longest_s = within_s * SPREAD_SHARE
    spread_s = connections / RECONNECTS_PER_S
    leaving_s = spread_s if elsewhere else batches * BATCH_PAUSE_S
    return Plan(
        turn_s=min(leaving_s, longest_s) / batches,
        notice_s=min(NOTICE_S, within_s * NOTICE_SHARE),
        settle_s=min(SETTLE_S, within_s * SETTLE_SHARE),
        away_min_s=0.0 if elsewhere else STAY_AWAY_S,
        away_max_s=STAY_AWAY_S if elsewhere else STAY_AWAY_S + spread_s,
    )


class Drain:
    """Closes all connections of a node that takes no new ones."""

    def __init__(
        self,
        table: ConnectionTable,
        hub: Hub,
        writer: Writer,
        answered: Callable[[], bool],
        *,
        elsewhere: bool,
        random: Random | None = None,
    ) -> None:
        """Nothing happens yet.

        Args:
            table: the connections.
            hub: tells them.
            writer: closes them.
            answered: whether everything that this node accepted has been answered.
            elsewhere: whether other nodes take the clients while this one still runs.
            random: draws the times that clients are told; for tests.
        """
        self._table = table
        self._hub = hub
        self._writer = writer
        self._answered = answered
        self._elsewhere = elsewhere
        self._random = random or Random()

    async def run(self, within_s: float) -> int:
        """Close every connection, politely as far as time goes; returns how many did not go and were cut.

        Takes at most ``within_s`` seconds. A cancellation leaves the rest open.
        """
        everyone = self._present()
        plan = make_plan(len(everyone), within_s, elsewhere=self._elsewhere)
        with trio.move_on_after(within_s):
            await self._send_away(everyone, plan)
            with trio.move_on_after(plan.settle_s):
                while not self._answered():  # noqa: ASYNC110 - callers without a connection; looked at while draining only
                    await trio.sleep(TICK_S)
            while self._table.count:  # noqa: ASYNC110 - the last moments of a node are no place for another event
                await trio.sleep(TICK_S)
        rest = self._present()
        for batch in _batches(rest):
            self._close(batch)
            for connection in batch:
                self._writer.abort(connection)
        return len(rest)

    def _present(self) -> list[Connection]:
        return [connection for connection in self._table.by_fd if connection is not None]

    async def _send_away(self, everyone: Sequence[Connection], plan: Plan) -> None:
        """Tell batch after batch, and close each when it is answered, or its time is up."""
        waiting = deque(_batches(everyone))
        told: deque[tuple[float, Sequence[Connection]]] = deque()
        turn = trio.current_time()
        while waiting or told:
            now = trio.current_time()
            while waiting and turn <= now:
                told.append((now, waiting[0]))
                self._tell(waiting.popleft(), plan)
                turn += plan.turn_s
                await trio.lowlevel.checkpoint()
            while told and self._may_close(now - told[0][0], plan):
                self._close(told.popleft()[1])
                await trio.lowlevel.checkpoint()
            await trio.sleep(TICK_S)

    def _tell(self, batch: Sequence[Connection], plan: Plan) -> None:
        away_s = self._random.uniform(plan.away_min_s, plan.away_max_s)
        self._hub.signal_connections(batch, GoAway(int(away_s * 1000)))

    def _may_close(self, told_s: float, plan: Plan) -> bool:
        """Whether those who were told so long ago may be closed."""
        return told_s >= plan.settle_s or (told_s >= plan.notice_s and self._answered())

    def _close(self, batch: Sequence[Connection]) -> None:
        for connection in batch:
            self._writer.close(connection, CloseCode.SERVICE_RESTART, REASON)


def _batches(connections: Sequence[Connection]) -> list[Sequence[Connection]]:
    return [connections[start : start + BATCH] for start in range(0, len(connections), BATCH)]
