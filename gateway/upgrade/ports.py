"""What a node owns besides its connections, and hands over with them."""

from typing import Protocol

from store.embedded import EmbeddedStore


class Estate(Protocol):
    """The right to be the one who writes: the store's lock on one node, its lease and slots in a cluster.

    Attributes:
        kind: the kind of store, as the setting ``store`` names it.
    """

    kind: str

    def objection(self) -> str:
        """Why now is no moment to hand over, in words for an operator; empty where there is no reason."""

    @property
    def quiet(self) -> bool:
        """Whether nothing of it is under way, so that a successor finds it as it stays."""

    def descriptors(self) -> list[int]:
        """Descriptors that the successor needs; at most 16."""

    def state(self) -> bytes:
        """What else the successor has to know."""


class EmbeddedEstate:
    """The embedded store: both processes can hold the descriptor of its directory's lock, so nobody comes between."""

    kind = "embedded"

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store

    def objection(self) -> str:
        """See Estate.objection."""
        return "" if self._store.writable else f"the store is in trouble ({self._store.trouble}): put that right first"

    @property
    def quiet(self) -> bool:
        """See Estate.quiet."""
        return self._store.quiet

    def descriptors(self) -> list[int]:
        """The directory's lock."""
        return [self._store.lock_descriptor]

    def state(self) -> bytes:
        """Nothing: all is in the directory."""
        return b""
