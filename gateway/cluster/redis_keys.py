"""The names of everything that tidegate keeps in Redis.

All have one hash tag, ``{tidegate}``, so that in a Redis Cluster they are on one shard: the order between commands and
invalidations, which deliveries rely on, only holds on one connection. A Redis Cluster therefore makes the hints more
available, not larger: one shard has to carry them all.
"""

from typing import Final

PREFIX: Final = "{tidegate}:"
"""Begins with the hash tag; whoever shares a Redis with others recognises tidegate's keys by it."""

GENERATION: Final = f"{PREFIX}generation"
"""Names the generation of hints, together with what Redis says of itself."""

PROBE: Final = f"{PREFIX}probe"
"""Written at each connect, to learn whether this Redis takes writes at all."""

SESSIONS: Final = f"{PREFIX}sessions:"
"""Begins the key of a user's place: a set of incarnations."""


def sessions(user: str) -> str:
    """Where a user is connected."""
    return SESSIONS + user


def inbox(incarnation: str) -> str:
    """The stream of parcels for an incarnation."""
    return f"{PREFIX}inbox:{incarnation}"


def heads(incarnation: str) -> str:
    """The hash of heads that an owner wrote."""
    return f"{PREFIX}heads:{incarnation}"
