"""Which slot a conversation is in, and which node should own a slot. Pure functions."""

from collections.abc import Collection
from functools import lru_cache
from hashlib import blake2b
from zlib import crc32

from store.coordination import SLOTS

_MASK = SLOTS - 1
assert SLOTS & _MASK == 0, "SLOTS has to be a power of two"


def slot_of(conversation_id: str) -> int:
    """The slot of a conversation, 0 to SLOTS - 1; the same on every node, for ever."""
    return crc32(conversation_id.encode()) & _MASK


def rightful_owners(nodes: Collection[str]) -> tuple[str, ...]:
    """For each slot the name of the node that should own it; empty strings if there is no node.

    Rendezvous hashing (Thaler and Ravishankar, 1998): each node's weight for a slot is a hash of both, the highest
    wins. A node that comes or goes moves its own share of the slots and no other.
    """
    return _rightful_owners(frozenset(nodes))


@lru_cache(maxsize=8)
def _rightful_owners(nodes: frozenset[str]) -> tuple[str, ...]:
    if not nodes:
        return ("",) * SLOTS
    return tuple(max(nodes, key=lambda node: (_weight(node, slot), node)) for slot in range(SLOTS))


@lru_cache(maxsize=64 * SLOTS)
def _weight(node: str, slot: int) -> bytes:
    return blake2b(slot.to_bytes(2, "big") + node.encode(), digest_size=8).digest()
