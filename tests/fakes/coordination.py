"""An in-memory Coordination that several nodes share, with an outage and answers that get lost.

It takes its time by the virtual clock of the test (MockClock).
"""

from collections.abc import Callable

import trio
from msgspec.structs import replace

from store.coordination import SLOTS, LeaseRecord, Slot, SlotTable
from store.interface import Unavailable


class MemoryCoordination:
    """Implements ``store.coordination.Coordination``; every call takes ``delay_s`` of the virtual clock.

    Attributes:
        away: whether every call fails.
        lose_answer: asked after each change that was applied; True loses its answer.
        changes: slot table changes that were applied.
    """

    def __init__(self, delay_s: float = 0.01) -> None:
        self.delay_s = delay_s
        self.away = False
        self.lose_answer: Callable[[str], bool] = lambda _what: False
        self.rows: dict[str, LeaseRecord] = {}
        self.table = SlotTable(0, (Slot(),) * SLOTS)
        self.changes = 0

    async def _pass(self) -> None:
        await trio.sleep(self.delay_s)
        if self.away:
            raise Unavailable("no quorum")

    async def _answer(self, what: str, applied: bool) -> bool:
        if applied and self.lose_answer(what):
            raise Unavailable(f"{what}: the answer got lost")
        await trio.sleep(self.delay_s)
        return applied

    async def leases(self) -> list[LeaseRecord]:
        await self._pass()
        return list(self.rows.values())

    async def take_lease(self, lease: LeaseRecord) -> bool:
        await self._pass()
        applied = lease.incarnation not in self.rows
        if applied:
            self.rows[lease.incarnation] = lease
        return await self._answer("take", applied)

    async def renew_lease(self, lease: LeaseRecord, nonce: int) -> bool:
        await self._pass()
        row = self.rows.get(lease.incarnation)
        applied = row is not None and row.alive and row.nonce == nonce
        if applied:
            self.rows[lease.incarnation] = lease
        return await self._answer("renew", applied)

    async def mark_dead(self, incarnation: str, nonce: int) -> bool:
        await self._pass()
        row = self.rows.get(incarnation)
        applied = row is not None and row.nonce == nonce
        if applied:
            assert row is not None
            self.rows[incarnation] = replace(row, alive=False)
        return await self._answer("mark", applied)

    async def remove_lease(self, incarnation: str) -> bool:
        await self._pass()
        row = self.rows.get(incarnation)
        applied = row is not None and not row.alive
        if applied:
            del self.rows[incarnation]
        return await self._answer("remove", applied)

    async def slot_table(self) -> SlotTable:
        await self._pass()
        return self.table

    async def change_slots(self, version: int, slots: tuple[Slot, ...]) -> bool:
        await self._pass()
        applied = self.table.version == version
        if applied:
            self.table = SlotTable(version + 1, slots)
            self.changes += 1
        return await self._answer("slots", applied)
