"""Telling connections that they may have missed something: after parcels got lost, and while Redis is away."""

import random
from collections.abc import Callable, Collection
from typing import Final, Protocol

import trio

from gateway.edge.connection import Connection
from protocol.frames import Resync

RESYNC_SPREAD_S: Final = 1.0
"""Seconds over which the connections of a node are told to resync, so that their reads do not come all at once."""

RESYNC_BATCHES: Final = 20
"""Batches in which they are told."""

POLL_S: Final = 5.0
"""Seconds between two resyncs of each connection while Redis is away: deliveries by parcels between nodes are then
best effort, and reading the store is what delivers. With jitter."""


class Everybody(Protocol):
    """The connections of this node."""

    def connections(self) -> Collection[Connection]:
        """Those that are open now."""

    def push_surely(self, connections: Collection[Connection], push: Resync) -> None:
        """Send a push that must not be shed."""


class Resyncs:
    """Sends Resync to all connections of the node, coalesced.

    Attributes:
        rounds: times that everybody was told, ever.
    """

    def __init__(self, everybody: Everybody, degraded: Callable[[], bool]) -> None:
        self.rounds = 0
        self._everybody = everybody
        self._degraded = degraded
        self._wake = trio.Event()
        self._telling = False

    @property
    def pending(self) -> bool:
        """Whether somebody is still to be told."""
        return self._telling or self._wake.is_set()

    def everybody(self) -> None:
        """Have all who are connected now told soon."""
        self._wake.set()

    async def run(self) -> None:
        """Tell whoever is to be told until cancelled."""
        while True:
            pause_s = POLL_S * random.uniform(0.8, 1.2) if self._degraded() else POLL_S
            with trio.move_on_after(pause_s) as waited:
                await self._wake.wait()
            if waited.cancelled_caught and not self._degraded():
                continue
            self._wake = trio.Event()
            await self._tell()

    async def _tell(self) -> None:
        self.rounds += 1
        self._telling = True
        connections = list(self._everybody.connections())
        random.shuffle(connections)
        size = len(connections) // RESYNC_BATCHES + 1
        for start in range(0, len(connections), size):
            self._everybody.push_surely(connections[start : start + size], Resync())
            await trio.sleep(RESYNC_SPREAD_S / RESYNC_BATCHES)
        self._telling = False
