"""Which versions of what nodes send each other a node understands, and whether two of them have one in common.

A node speaks the newest version that both know. So a cluster is upgraded node by node, as long as no step goes further
than what the older program and the newer one have in common; a node that is too far away refuses to start, and if it
lives all the same, it gets no slots.
"""

from typing import Final, NamedTuple

from gateway.cluster.parcels import NODE_PROTOCOL, NODE_PROTOCOL_OLDEST

_STEP: Final = 1_000


class Versions(NamedTuple):
    """From the oldest that is understood to the newest, which is spoken among those who know it."""

    oldest: int
    newest: int

    def __str__(self) -> str:
        return str(self.newest) if self.oldest == self.newest else f"{self.oldest} to {self.newest}"

    @property
    def packed(self) -> int:
        """As one number, for a lease."""
        return self.oldest * _STEP + self.newest

    def common(self, other: "Versions") -> int:
        """The version that two nodes speak with each other; 0: they have none."""
        newest = min(self.newest, other.newest)
        return newest if newest >= max(self.oldest, other.oldest) else 0


def versions_of(packed: int) -> Versions:
    """What a lease says; a single version is its own oldest."""
    oldest, newest = divmod(packed, _STEP)
    return Versions(oldest or newest, newest)


OWN: Final = Versions(NODE_PROTOCOL_OLDEST, NODE_PROTOCOL)
"""Of this program."""


def understood(packed: int) -> bool:
    """Whether this program has a version in common with a lease's node."""
    return OWN.common(versions_of(packed)) > 0
