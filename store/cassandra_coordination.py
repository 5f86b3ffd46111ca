"""Leases and the slot table in Cassandra: each change a lightweight transaction whose outcome is found out.

A transaction without an answer is repeated, the very same one, until the row tells: it has the nonce (or the state)
that was to be written, or it has changed otherwise, and then it never will be applied.
"""

import secrets
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog
import trio

from store.coordination import SLOTS, LeaseRecord, Slot, SlotTable
from store.interface import NotWritten, OutcomeUnknown, StoreError, Unavailable
from store.tables import CoordinationTables, SlotsRow

ATTEMPTS_MAX: Final = 4
"""Times that a transaction of unknown outcome is tried before a call gives up."""

REPEAT_S: Final = 0.1
"""Seconds before it is tried again."""

log = structlog.get_logger(__name__)

_decode: Final = msgspec.msgpack.Decoder(tuple[Slot, ...]).decode
_encode: Final = msgspec.msgpack.Encoder().encode


class CassandraCoordination:
    """Implements ``store.coordination.Coordination``."""

    def __init__(self, tables: CoordinationTables) -> None:
        """Use these tables, which run already."""
        self._tables = tables

    async def leases(self) -> list[LeaseRecord]:
        """See ``Coordination.leases``."""
        return await self._tables.leases()

    async def take_lease(self, lease: LeaseRecord) -> bool:
        """See ``Coordination.take_lease``. It is tried once: a second try could come when the row was removed again."""

        async def taken() -> bool | None:
            row = await self._tables.lease(lease.incarnation)
            return None if row is None else row.nonce == lease.nonce

        return await _change(lambda: self._tables.insert_lease(lease), taken, attempts_max=1)

    async def renew_lease(self, lease: LeaseRecord, nonce: int) -> bool:
        """See ``Coordination.renew_lease``."""

        async def renewed() -> bool | None:
            row = await self._tables.lease(lease.incarnation)
            if row is not None and row.nonce == lease.nonce:
                return True  # it may have been marked dead since: the next renewal learns it
            return None if row is not None and row.nonce == nonce and row.alive else False

        return await _change(lambda: self._tables.replace_lease(lease, nonce), renewed)

    async def mark_dead(self, incarnation: str, nonce: int) -> bool:
        """See ``Coordination.mark_dead``."""

        async def marked() -> bool | None:
            row = await self._tables.lease(incarnation)
            if row is None or row.nonce != nonce:
                return False
            return None if row.alive else True

        return await _change(lambda: self._tables.mark_lease_dead(incarnation, nonce), marked)

    async def remove_lease(self, incarnation: str) -> bool:
        """See ``Coordination.remove_lease``."""

        async def removed() -> bool | None:
            row = await self._tables.lease(incarnation)
            if row is None:
                return True
            return False if row.alive else None

        return await _change(lambda: self._tables.delete_lease(incarnation), removed)

    async def slot_table(self) -> SlotTable:
        """See ``Coordination.slot_table``."""
        row = await self._tables.slots()
        if row is None:
            return SlotTable(0, (Slot(),) * SLOTS)
        return SlotTable(row.version, _decode(row.table))

    async def change_slots(self, version: int, slots: tuple[Slot, ...]) -> bool:
        """See ``Coordination.change_slots``."""
        assert len(slots) == SLOTS, len(slots)
        row = SlotsRow(version + 1, secrets.token_hex(12), _encode(slots))

        async def changed() -> bool | None:
            found = await self._tables.slots()
            if found is None or found.version <= version:
                return None
            if found.version > row.version:
                raise Unavailable("the slot table has moved on: it cannot be told any more whether the change was one")
            return found.nonce == row.nonce

        if version:
            return await _change(lambda: self._tables.replace_slots(row, version), changed)
        return await _change(lambda: self._tables.insert_slots(row), changed)


async def _change(
    change: Callable[[], Awaitable[bool]], look: Callable[[], Awaitable[bool | None]], attempts_max: int = ATTEMPTS_MAX
) -> bool:
    """Run a transaction until it is known whether it was applied.

    Args:
        change: runs it; True: applied, False: its condition did not hold.
        look: whether it was applied by what the row says; None: it may still be.
        attempts_max: times that it is run.

    Raises Unavailable: it stays unknown.
    """
    unknown: StoreError | None = None
    for attempt in range(attempts_max):
        if attempt:
            await trio.sleep(REPEAT_S)
        try:
            if await change():
                return True
            if unknown is None:
                return False
        except (NotWritten, OutcomeUnknown) as error:
            unknown = error
        try:
            known = await look()
        except Unavailable as error:
            if attempt == attempts_max - 1:
                raise
            unknown = error
            continue
        if known is not None:
            log.info("transaction of unknown outcome", applied=known, error=str(unknown) if unknown else "")
            return known
    raise Unavailable(f"it is not known whether a row was changed ({unknown})")
