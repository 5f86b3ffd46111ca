"""Which generation of hints Redis holds, so that nobody trusts what was lost, or what came back from the past.

A generation is named by a key, by what Redis says of its process and its data's history, and by how much it dropped for
want of memory. A flush loses the key; a restart, a restored snapshot or a failover changes the rest. All nodes that are
connected to the same data therefore agree on the name.
"""

import secrets
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from typing import Final

import msgspec
import structlog
import trio

from gateway.cluster.ports import Identity, RedisPort
from gateway.cluster.redis_keys import GENERATION

POLL_S: Final = 1.0
"""Seconds between two looks at the key; invalidations tell of most changes at once."""

EVICTED_POLLS: Final = 5
"""Looks at the key after which an evicting Redis is asked how much it dropped. If anything, all connections of the node
resync: not more often than while Redis is away."""

log = structlog.get_logger(__name__)


class Generation:
    """Implements ``Generations`` on a connection to Redis.

    Attributes:
        on_new, on_away: see Generations.
        begun: generations that this node saw begin.
    """

    def __init__(self, port: RedisPort) -> None:
        """``port``: of its listeners this has to be the first."""
        self.on_new: list[Callable[[bool], None]] = []
        self.on_away: list[Callable[[], None]] = []
        self.begun = 0
        self._port = port
        self._identity: Identity | None = None
        self._current = ""
        self._last = ""
        self._away = True
        port.listeners.append(self)

    @property
    def current(self) -> str:
        """Name of the generation; empty while Redis is away, and for a moment while it is being asked."""
        return self._current

    def resume(self, current: str) -> None:
        """Go on with the hints of another process that has ended, for which ``current`` was valid (empty: none was).

        Call it when everybody listens. Who listens is told of what differs; while Redis is away, at its return.
        """
        if self._away:
            return
        if self._last != current:
            for notify in self.on_new:
                notify(True)

    async def run(self) -> None:
        """Look whether the generation is still the same, until cancelled."""
        polls = 0
        while True:
            await trio.sleep(POLL_S)
            if self._port.away:
                continue
            self._ask()
            polls += 1
            if self._identity is not None and self._identity.evicts and polls % EVICTED_POLLS == 0:
                self._port.submit([("INFO", "stats")], self._note_evictions)

    # --- RedisListener ----------------------------------------------------------------------------------------------

    def back(self, identity: Identity) -> None:
        """See RedisListener.back."""
        self._identity = identity
        self._ask()

    def lost(self) -> None:
        """See RedisListener.lost."""
        self._current = ""
        if not self._away:
            self._away = True
            for notify in self.on_away:
                notify()

    def invalidated(self, keys: Collection[str] | None) -> None:
        """See RedisListener.invalidated."""
        if keys is None or GENERATION in keys:
            self._current = ""
            self._ask()

    # --- Asking -----------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Name the generation if nobody has, and read its name."""
        self._port.submit([("SET", GENERATION, secrets.token_hex(8), "NX"), ("GET", GENERATION)], self._named)

    def _named(self, replies: Sequence[object] | None) -> None:
        if replies is None or self._identity is None:
            return
        if not isinstance(replies[1], bytes):
            # Deleted between the two: the next look names it.
            self._current = ""
            return
        identity = self._identity
        parts = (replies[1].decode(), identity.run_id, identity.replication_id, str(identity.evicted))
        current = blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
        self._current = current
        new, was_away = current != self._last, self._away
        self._last, self._away = current, False
        if new:
            self.begun += 1
            log.info("generation of hints begins", generation=current)
        if new or was_away:
            for notify in self.on_new:
                notify(new)

    def _note_evictions(self, replies: Sequence[object] | None) -> None:
        if replies is None or self._identity is None or not isinstance(replies[0], bytes):
            return
        for line in replies[0].decode().splitlines():
            name, _, value = line.partition(":")
            if name == "evicted_keys" and int(value) != self._identity.evicted:
                log.warning("redis dropped data for want of memory", keys=int(value) - self._identity.evicted)
                self._identity = msgspec.structs.replace(self._identity, evicted=int(value))
                self._ask()
