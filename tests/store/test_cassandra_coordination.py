"""Leases and slots: each change is applied or not, and its caller learns which, whatever answers are lost."""

from collections import deque

import pytest

from store.cassandra_coordination import CassandraCoordination
from store.coordination import SLOTS, LeaseRecord, Slot, SlotTable
from store.interface import Unavailable
from tests.fakes.memory_tables import MemoryTables


def lease(nonce: int, incarnation: str = "n1:a", alive: bool = True) -> LeaseRecord:
    return LeaseRecord(incarnation, "n1", nonce, alive, "127.0.0.1:1", True, False, 1, "datacenter1")


SLOTS_1 = (Slot("n1:a", 1),) * SLOTS
SLOTS_2 = (Slot("n2:b", 2),) * SLOTS

METHODS = ["replace_lease", "mark_lease_dead", "delete_lease", "insert_slots", "replace_slots"]


@pytest.fixture
def tables():
    return MemoryTables()


@pytest.fixture
def coordination(tables):
    return CassandraCoordination(tables)


async def live(coordination):
    """One life of a lease, and two states of the slots."""
    assert await coordination.slot_table() == SlotTable(0, (Slot(),) * SLOTS)
    assert await coordination.take_lease(lease(1))
    assert await coordination.renew_lease(lease(2), 1)
    assert not await coordination.renew_lease(lease(3), 1)
    assert not await coordination.remove_lease("n1:a")
    assert not await coordination.mark_dead("n1:a", 1)
    assert await coordination.mark_dead("n1:a", 2)
    assert not await coordination.renew_lease(lease(3), 2)
    assert await coordination.leases() == [lease(2, alive=False)]
    assert await coordination.remove_lease("n1:a")
    assert await coordination.leases() == []
    assert await coordination.change_slots(0, SLOTS_1)
    assert not await coordination.change_slots(0, SLOTS_2)
    assert await coordination.change_slots(1, SLOTS_2)
    assert not await coordination.change_slots(1, SLOTS_1)
    assert await coordination.slot_table() == SlotTable(2, SLOTS_2)


async def test_changes_are_applied_on_what_they_name_only(coordination):
    await live(coordination)


@pytest.mark.parametrize("verdict", ["lost", "unknown", "refused", "late"])
@pytest.mark.parametrize("method", METHODS)
async def test_the_same_happens_when_an_answer_is_missing(coordination, tables, method, verdict, autojump_clock):
    tables.verdicts[method] = deque([verdict])
    await live(coordination)
    before = (dict(tables.lease_rows), tables.slots_row)
    tables.arrive()
    assert (tables.lease_rows, tables.slots_row) == before  # what arrives late finds another nonce


async def test_what_stays_unknown_is_said(coordination, tables, autojump_clock):
    await coordination.take_lease(lease(1))
    tables.verdicts["replace_lease"] = deque(["unknown"] * 9)
    with pytest.raises(Unavailable, match="not known whether"):
        await coordination.renew_lease(lease(2), 1)


@pytest.mark.parametrize("verdict", ["unknown", "refused", "late"])
async def test_a_lease_is_entered_once_with_one_nonce(coordination, tables, verdict, autojump_clock):
    """Entered again, it could come back when the row was removed, and be taken for alive."""
    tables.verdicts["insert_lease"] = deque([verdict])
    with pytest.raises(Unavailable, match="not known whether"):
        await coordination.take_lease(lease(1))
    assert tables.calls.count("insert_lease") == 1


async def test_a_lease_whose_entry_was_not_answered_is_found(coordination, tables, autojump_clock):
    tables.verdicts["insert_lease"] = deque(["lost"])
    assert await coordination.take_lease(lease(1))


async def test_a_table_that_moved_on_after_a_lost_answer_is_no_answer(coordination, tables, autojump_clock):
    await coordination.change_slots(0, SLOTS_1)
    tables.verdicts["replace_slots"] = deque(["lost", "", ""])
    apply = tables.slots

    async def moved_on():
        tables.slots = apply
        await CassandraCoordination(tables).change_slots(2, SLOTS_1)
        return await apply()

    tables.slots = moved_on
    with pytest.raises(Unavailable, match="moved on"):
        await coordination.change_slots(1, SLOTS_2)
