"""What nodes agree on: who is alive (leases) and who owns which slot. Only ever changed by lightweight transactions.

A *lease* belongs to an *incarnation*: one life of one node process. Its nonce changes with every renewal; whoever sees
it stand still long enough may mark the row dead, on that very nonce, so that this incarnation can never renew again.
The *slot table* is one row: an owner, an epoch and perhaps a next owner for each slot, changed on its version.
``tests/model`` checks why that is enough; none of these rows ever expires by itself.
"""

from typing import Final, Protocol

from msgspec import Struct

SLOTS: Final = 1024
"""Groups of conversations that move together: enough to spread evenly over some hundred nodes, few enough for a row."""


class LeaseRecord(Struct, frozen=True):
    """One incarnation as the others see it.

    Attributes:
        incarnation: unique name of this life of a node, ``name:random``.
        node: the node's name, chosen by its operator.
        nonce: changes with every renewal; never the same value twice in an incarnation.
        alive: False once it was marked dead; it stays so.
        address: where other nodes reach it, ``host:port``.
        owns: whether it takes slots (the owner role).
        draining: whether it gives its slots away.
        protocol: versions of the protocol between nodes that it speaks, as one number.
        datacenter: whose replicas alone it asks; empty: it asks those of all, or is of a tidegate that does not say.
    """

    incarnation: str
    node: str
    nonce: int
    alive: bool
    address: str
    owns: bool
    draining: bool
    protocol: int
    datacenter: str = ""


class Slot(Struct, frozen=True, array_like=True, gc=False):
    """Who owns a slot. An empty owner: nobody yet. ``next_owner``: to whom the owner is handing it over, or empty."""

    owner: str = ""
    epoch: int = 0
    next_owner: str = ""


class SlotTable(Struct, frozen=True):
    """All slots (exactly SLOTS) and the version that a change has to name."""

    version: int
    slots: tuple[Slot, ...]


class Coordination(Protocol):
    """The rows that nodes agree by. Every change either applied or it did not: an unknown outcome is found out.

    All methods raise ``store.interface.Unavailable`` when that cannot be found out in time (no quorum): the caller
    then knows nothing. After a cancellation a change may or may not have happened.
    """

    async def leases(self) -> list[LeaseRecord]:
        """All leases, dead ones included, in no order; what a change before this call applied is in it."""

    async def take_lease(self, lease: LeaseRecord) -> bool:
        """Enter a new incarnation; False if there is one of that name (which never happens by chance).

        It may be applied at any later time when Unavailable is raised, so each try needs another nonce.
        """

    async def renew_lease(self, lease: LeaseRecord, nonce: int) -> bool:
        """Replace the row of ``lease.incarnation`` if it is alive and has ``nonce``; False: it does not."""

    async def mark_dead(self, incarnation: str, nonce: int) -> bool:
        """Mark an incarnation dead for ever if its nonce still is ``nonce``; False: it has renewed or is gone."""

    async def remove_lease(self, incarnation: str) -> bool:
        """Delete the row of a dead incarnation; False if it is alive. For rows that no slot refers to any more."""

    async def slot_table(self) -> SlotTable:
        """The table; version 0 and nobody's slots before anybody wrote it."""

    async def change_slots(self, version: int, slots: tuple[Slot, ...]) -> bool:
        """Replace all slots if the table still has ``version``, which then is one higher; False: it has changed."""
