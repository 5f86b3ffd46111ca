"""Notices nodes that live and are not heard of: their parcels get lost where no number can show it.

Two nodes can both reach a Redis and yet not the same one, when a Sentinel or an operator has made two primaries of
one. Their leases, which are in Cassandra, go on being renewed. Without this, each would think that the other is silent
because it has nothing to say.
"""

from collections.abc import Mapping
from typing import Final

import trio

from store.coordination import LeaseRecord

SILENCE_S: Final = 8.0
"""Seconds without a parcel: four empty ones of ``links`` would have come."""


class Silences:
    """Knows since when each living node was not heard of."""

    def __init__(self, incarnation: str) -> None:
        """``incarnation``: this node's own."""
        self._incarnation = incarnation
        self._since: dict[str, tuple[float, int]] = {}  # and the renewal that its lease had then

    def look(self, live: Mapping[str, LeaseRecord], heard_s: Mapping[str, float]) -> list[str]:
        """Those who renewed their lease and yet were silent for ``SILENCE_S``; each again after as long.

        Args:
            live: the living nodes.
            heard_s: when each node was heard of for the last time, where it ever was.
        """
        now_s = trio.current_time()
        since: dict[str, tuple[float, int]] = {}
        silent = []
        for incarnation, row in live.items():
            if incarnation == self._incarnation:
                continue
            since_s, nonce = self._since.get(incarnation, (now_s, row.nonce))
            if heard_s.get(incarnation, -1.0) > since_s:
                since_s, nonce = heard_s[incarnation], row.nonce
            elif now_s - since_s >= SILENCE_S and row.nonce != nonce:
                silent.append(incarnation)
                since_s, nonce = now_s, row.nonce
            since[incarnation] = (since_s, nonce)
        self._since = since
        return silent

    def begin_anew(self) -> None:
        """Count from the next look: just now nothing can be heard of anybody."""
        self._since.clear()
