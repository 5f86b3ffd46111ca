"""Notices nodes that live and are not heard of: their parcels get lost where no number can show it.

Two nodes can both reach a Redis and yet not the same one, when a Sentinel or an operator has made two primaries of
one. Their leases, which are in Cassandra, go on being renewed. Without this, each would think that the other is silent
because it has nothing to say.

Who is simply dead is left to the watch. Renewals of such a node may still be seen after its last parcel: those that it
made before and that no look at the leases had found yet, those of the time between its last parcel and its end, and
one that was under way then. So only those count that are seen later than all of these, but for the one under way.
"""

from collections.abc import Mapping
from typing import Final

import trio
from msgspec import Struct

from gateway.cluster.joining import RENEWALS_OF_THE_LIVING
from store.coordination import LeaseRecord

SILENCE_S: Final = 8.0
"""Seconds without a parcel: four empty ones of ``links`` would have come."""

RENEWALS_COUNT_AFTER_S: Final = SILENCE_S / 2
"""Seconds without a parcel after which renewals are counted. Who is dead has been so for most of that time, because an
empty parcel leaves every two seconds, and a look at the leases every second has found what it had renewed before."""


class _Silence(Struct):
    """Since when a node was not heard of, the renewal that its lease had last, and how many were seen that count."""

    since_s: float
    nonce: int
    renewals: int = 0


class Silences:
    """Knows since when each living node was not heard of."""

    def __init__(self, incarnation: str) -> None:
        """``incarnation``: this node's own."""
        self._incarnation = incarnation
        self._silences: dict[str, _Silence] = {}

    def look(self, live: Mapping[str, LeaseRecord], heard_s: Mapping[str, float]) -> list[str]:
        """Those who renewed their lease and yet were silent for ``SILENCE_S``; each again after as long.

        Args:
            live: the living nodes.
            heard_s: when each node was heard of for the last time, where it ever was.
        """
        now_s = trio.current_time()
        silences: dict[str, _Silence] = {}
        silent = []
        for incarnation, row in live.items():
            if incarnation == self._incarnation:
                continue
            silence = self._silences.get(incarnation) or _Silence(now_s, row.nonce)
            if heard_s.get(incarnation, -1.0) > silence.since_s:
                silence = _Silence(heard_s[incarnation], row.nonce)
            if row.nonce != silence.nonce:
                silence.nonce = row.nonce
                silence.renewals += now_s - silence.since_s >= RENEWALS_COUNT_AFTER_S
            if now_s - silence.since_s >= SILENCE_S and silence.renewals >= RENEWALS_OF_THE_LIVING:
                silent.append(incarnation)
                silence = _Silence(now_s, row.nonce)
            silences[incarnation] = silence
        self._silences = silences
        return silent

    def begin_anew(self) -> None:
        """Count from the next look: just now nothing can be heard of anybody."""
        self._silences.clear()
