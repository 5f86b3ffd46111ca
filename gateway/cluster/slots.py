"""Which slot a conversation is in, and which node should own a slot. Pure functions."""

from collections.abc import Collection
from functools import lru_cache
from hashlib import blake2b
from zlib import crc32

from gateway.owner.members import id_of
from protocol.frames import Command, CreateConversation
from store.coordination import SLOTS

_MASK = SLOTS - 1
assert SLOTS & _MASK == 0, "SLOTS has to be a power of two"


def slot_of(conversation_id: str) -> int:
    """The slot of a conversation, 0 to SLOTS - 1; the same on every node, for ever."""
    return crc32(conversation_id.encode()) & _MASK


def slot_of_command(user: str, command: Command) -> int:
    """The slot of the conversation that a user's command is about. Raises Refused if it can be about none."""
    if isinstance(command, CreateConversation):
        return slot_of(id_of(user, command))
    return slot_of(command.conversation_id)  # type: ignore[union-attr]


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
