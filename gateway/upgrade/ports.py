"""What a node owns besides its connections, and hands over with them."""

from typing import Final, Protocol

from store.embedded import EmbeddedStore

HAND_OVER_TIMEOUT_S: Final = 10.0
"""Seconds that the event loop stands still at most. A million connections take about five."""


class Estate(Protocol):
    """The right to be the one who writes: the store's lock on one node, its lease and slots in a cluster.

    Attributes:
        kind: the kind of store, as the setting ``store`` names it.
        stand_still_max_s: seconds that a hand-over may stand still at most.
    """

    kind: str
    stand_still_max_s: float

    def same(self) -> dict[str, str]:
        """Settings which a successor has to have, too, as text by name."""

    def offer(self) -> tuple[bytes, list[int]]:
        """What a successor has to know to get ready, and descriptors that go along; at most 16."""

    def objection(self) -> str:
        """Why now is no moment to hand over, in words for an operator; empty where there is no reason."""

    @property
    def busy(self) -> str:
        """What of it is under way, in words; empty: nothing, so that a successor finds it as it stays."""

    def rest(self) -> None:
        """Nothing is read from connections any more: come to rest, too. Called again and again."""

    def resume(self) -> None:
        """Go on as before, whatever of the rest was reached."""

    def descriptors(self) -> list[int]:
        """Descriptors that the successor needs; at most 16."""

    def state(self) -> bytes:
        """What else the successor has to know, once nothing is under way."""


class EmbeddedEstate:
    """The embedded store: both processes can hold the descriptor of its directory's lock, so nobody comes between."""

    kind = "embedded"
    stand_still_max_s = HAND_OVER_TIMEOUT_S

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store

    def objection(self) -> str:
        """See Estate.objection."""
        return "" if self._store.writable else f"the store is in trouble ({self._store.trouble}): put that right first"

    def same(self) -> dict[str, str]:
        """Nothing but the data directory, which every successor has to have."""
        return {}

    def offer(self) -> tuple[bytes, list[int]]:
        """Nothing: a successor looks at the directory."""
        return b"", []

    @property
    def busy(self) -> str:
        """See Estate.busy."""
        return "" if self._store.quiet else "the store's own work"

    def rest(self) -> None:
        """See Estate.rest. The store rests by itself when nobody asks it for anything."""

    def resume(self) -> None:
        """See Estate.resume."""

    def descriptors(self) -> list[int]:
        """The directory's lock."""
        return [self._store.lock_descriptor]

    def state(self) -> bytes:
        """Nothing: all is in the directory."""
        return b""
