"""The cluster's store when answers are missing, when buckets end, and when two owners meet; on tables in memory."""

from collections import deque
from itertools import product

import pytest
import trio

from protocol.codec import decode_entry
from protocol.frames import ConversationKind, EntryKind
from store import cassandra_append
from store.cassandra import CassandraStore
from store.entries import Append
from store.interface import NotWritten, OutcomeUnknown, StaleEpoch, Unavailable
from store.segments import WINDOW_ENTRIES
from tests.fakes.memory_tables import MemoryTables
from tests.store.conformance import EVERYTHING, find, make, seqs
from tests.store.entries import append, created, entry, record
from tests.store.outcomes import Outcomes, append_all


@pytest.fixture
def tables():
    return MemoryTables()


@pytest.fixture
def nobody():
    """Conversations and epochs that no store may speak for."""
    return set()


@pytest.fixture
async def stores(tables, nobody):
    """Two stores on the same tables, as two nodes have them."""
    made = [CassandraStore(tables, lambda _conversation_id, epoch: epoch not in nobody) for _ in range(2)]
    async with trio.open_nursery() as nursery:
        for each in made:
            await nursery.start(each.run)
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture
def store(stores):
    return stores[0]


async def test_an_append_costs_one_write(store, tables):
    await make(store)
    await store.take_over("g1", 1, 10)
    tables.calls.clear()
    assert await append_all(store, append("g1", 2)) == [None]
    assert tables.calls == ["write_entries"]


@pytest.mark.parametrize("verdict", ["lost", "unknown", "late"])
async def test_rows_without_an_answer_are_unknown_and_may_be_appended_again(store, tables, verdict):
    await make(store)
    tables.verdicts["write_entries"] = deque([verdict])
    sent = append("g1", 2)
    [error] = await append_all(store, sent)
    assert isinstance(error, OutcomeUnknown)
    assert not store.writable
    assert await append_all(store, sent) == [None]
    tables.arrive()
    assert await seqs(store) == [1, 2]
    assert store.writable


async def test_a_seq_in_doubt_is_never_given_to_another_entry(store, tables):
    await make(store)
    tables.verdicts["write_entries"] = deque(["late"])
    await append_all(store, append("g1", 2))
    [error] = await append_all(store, append("g1", 2, body="other"))
    assert isinstance(error, NotWritten)
    with pytest.raises(Unavailable, match="appended again first"):
        await store.take_over("g1", 1, 10)
    assert (await store.take_over("g1", 2, 10)).head_seq == 1


async def test_a_seq_that_was_surely_not_written_is_free_again(store, tables):
    await make(store)
    tables.verdicts["write_entries"] = deque(["refused"])
    [error] = await append_all(store, append("g1", 2))
    assert isinstance(error, NotWritten)
    assert await append_all(store, append("g1", 2, body="other")) == [None]


async def test_outcomes_come_in_order_however_the_answers_do(store, tables):
    await make(store)
    await store.take_over("g1", 1, 10)
    tables.held = True
    outcomes = Outcomes()
    for seq in (2, 3, 4):
        store.append([append("g1", seq)], outcomes)
    tables.answer(2)
    tables.answer(1)
    assert outcomes.all == []
    assert await seqs(store) == [1]  # nothing behind a gap is shown
    tables.answer()
    assert [each.entries[0].entry.seq for each, _ in outcomes.all] == [2, 3, 4]
    assert await seqs(store) == [1, 2, 3, 4]


async def test_behind_a_failed_append_nothing_is_taken_until_it_is_brought_again(store, tables):
    await make(store)
    await store.take_over("g1", 1, 10)
    tables.held = True
    outcomes = Outcomes()
    batch = [append("g1", seq) for seq in (2, 3)]
    store.append(batch, outcomes)
    tables.verdicts["write_entries"] = deque(["unknown"])
    tables.answer()
    assert [type(error) for error in outcomes.errors] == [OutcomeUnknown, type(None)]
    tables.held = False
    [error] = await append_all(store, append("g1", 4))
    assert isinstance(error, NotWritten)
    assert await append_all(store, *batch, append("g1", 4)) == [None] * 3
    assert await seqs(store) == [1, 2, 3, 4]


async def test_no_row_goes_further_than_a_window_above_the_head(store, tables):
    await make(store)
    await store.take_over("g1", 1, 10)
    tables.held = True
    outcomes = Outcomes()
    store.append([append("g1", *range(2, 2 * WINDOW_ENTRIES + 2))], outcomes)
    assert tables.queued == 1
    tables.answer()
    assert max(seq for seq, _ in tables.logs["g1", 0]) == 1 + WINDOW_ENTRIES
    assert outcomes.all == []
    tables.answer()
    assert outcomes.errors == [None]


async def test_a_full_bucket_is_followed_by_the_next_and_seqs_run_on(store, tables, monkeypatch):
    monkeypatch.setattr(cassandra_append, "BUCKET_BYTES_MAX", 500)
    await make(store)
    for seq in range(2, 40):
        assert await append_all(store, append("g1", seq)) == [None]
    row = tables.conversations["g1"]
    assert [segment.bucket for segment in row.segments] == list(range(len(row.segments)))
    assert len(row.segments) == 3
    assert await seqs(store) == list(range(1, 40))
    assert await seqs(store, limit=7, newest=True, before_seq=30) == list(range(23, 30))
    assert await find(store, "c3") == entry(3)
    loaded = await store.take_over("g1", 2, 30)
    assert [stored.entry.seq for stored in loaded.tail] == list(range(10, 40))


async def test_an_old_bucket_is_followed_by_the_next(store, tables, monkeypatch):
    monkeypatch.setattr(cassandra_append, "BUCKET_AGE_US", 5)
    await make(store)
    for seq in range(2, 12):
        assert await append_all(store, append("g1", seq)) == [None]
    assert [segment.first_seq for segment in tables.conversations["g1"].segments] == [1, 6, 11]


@pytest.mark.parametrize("verdict", ["lost", "unknown", "late"])
async def test_a_bucket_is_opened_once_whatever_answer_is_lost(store, tables, monkeypatch, verdict):
    monkeypatch.setattr(cassandra_append, "BUCKET_AGE_US", 5)
    await make(store)
    tables.verdicts["change_segments"] = deque([verdict])
    for seq in range(2, 9):
        assert await append_all(store, append("g1", seq)) == [None]
    tables.arrive()
    assert [segment.first_seq for segment in tables.conversations["g1"].segments] == [1, 6]
    assert await seqs(store) == list(range(1, 9))


async def test_while_it_is_unknown_whether_a_bucket_is_open_nothing_is_appended(store, tables, monkeypatch):
    monkeypatch.setattr(cassandra_append, "BUCKET_AGE_US", 5)
    await make(store)
    tables.verdicts["change_segments"] = deque(["late"] + ["unknown"] * 3)
    errors = [(await append_all(store, append("g1", seq)))[0] for seq in range(2, 7)]
    assert [type(error) for error in errors] == [type(None)] * 4 + [NotWritten]
    tables.arrive()
    assert await append_all(store, append("g1", 6)) == [None]
    assert await seqs(store) == [1, 2, 3, 4, 5, 6]
    assert await seqs(CassandraStore(tables, lambda _c, _e: True)) == [1, 2, 3, 4, 5, 6]


async def test_a_bucket_of_which_it_is_unknown_whether_it_is_open_is_opened_though_nobody_appends(
    store, tables, monkeypatch, autojump_clock
):
    monkeypatch.setattr(cassandra_append, "BUCKET_AGE_US", 5)
    await make(store)
    assert await append_all(store, append("g1", 2, 3, 4, 5)) == [None]
    tables.verdicts["change_segments"] = deque(["unknown"] * 12)
    [error] = await append_all(store, append("g1", 6))
    assert isinstance(error, NotWritten)
    assert not store.quiet
    await trio.sleep(10)
    assert store.quiet, "a successor may read the row now"
    assert store.writable
    assert [segment.first_seq for segment in tables.conversations["g1"].segments] == [1, 6]


@pytest.mark.parametrize("verdict", ["lost", "unknown", "late"])
async def test_a_takeover_finds_out_what_became_of_its_segment(stores, tables, verdict):
    await make(stores[0])
    tables.verdicts["change_segments"] = deque([verdict])
    assert (await stores[1].take_over("g1", 2, 10)).head_seq == 1
    tables.arrive()
    assert [segment.epoch for segment in tables.conversations["g1"].segments] == [1, 2]


async def test_late_rows_of_a_former_owner_count_for_nobody(stores, tables):
    old, new = stores
    await make(old)
    await old.take_over("g1", 1, 10)
    tables.held = True
    outcomes = Outcomes()
    old.append([append("g1", 2, 3, body="late")], outcomes)
    tables.held = False
    await new.take_over("g1", 2, 10)
    tables.answer()
    assert outcomes.errors == [None]  # durable, and not to be acknowledged: its owner may not speak any more
    assert await append_all(new, append("g1", 2, epoch=2, body="new")) == [None]
    shown = await new.read("g1", **EVERYTHING)
    assert [decode_entry(each).body for each in shown][1:] == ["new"]
    with pytest.raises(StaleEpoch):
        await old.take_over("g1", 1, 10)


async def test_rows_that_a_former_owner_left_with_a_gap_are_not_taken_over(stores, tables):
    old, new = stores
    await make(old)
    await old.take_over("g1", 1, 10)
    tables.held = True
    old.append([append("g1", 2)], Outcomes())
    old.append([append("g1", 3)], Outcomes())
    tables.answer(1)
    assert (await new.take_over("g1", 2, 10)).head_seq == 1
    tables.answer()


async def test_who_may_not_speak_writes_no_members(store, tables, nobody):
    await make(store)
    await store.take_over("g1", 1, 10)
    added = Append("g1", 1, [entry(2, kind=EntryKind.MEMBERS_ADDED, users=["carol"])])
    nobody.add(1)
    [error] = await append_all(store, added)
    assert isinstance(error, OutcomeUnknown)
    assert await store.memberships("carol") == []


async def test_member_rows_that_were_not_written_are_written_by_the_next_owner(stores, tables):
    old, new = stores
    await make(old)
    tables.verdicts["write"] = deque(["unknown"])
    added = Append("g1", 1, [entry(2, kind=EntryKind.MEMBERS_ADDED, users=["carol", "dave"])])
    [error] = await append_all(old, added)
    assert isinstance(error, OutcomeUnknown)
    loaded = await new.take_over("g1", 2, 10)
    assert list(loaded.members) == ["alice", "bob", "carol", "dave"]
    [carols] = await new.memberships("carol")
    assert carols.member_count == 4


@pytest.mark.parametrize("written", list(product((False, True), repeat=3)))
@pytest.mark.parametrize("kind", [EntryKind.MEMBERS_ADDED, EntryKind.MEMBERS_REMOVED])
async def test_whatever_was_written_of_a_channels_last_change_its_members_are_counted_right(
    stores, tables, monkeypatch, kind, written
):
    old, new = stores
    await make(old, "c1", "alice", "bob", "carol", kind=ConversationKind.CHANNEL)
    await append_all(old, append("c1", 2))
    write = tables.write

    async def broken_off(rows):
        assert len(rows) == len(written), rows
        await write([row for row, there in zip(rows, written, strict=True) if there])
        raise OutcomeUnknown("broken off")

    added = kind == EntryKind.MEMBERS_ADDED
    users = ["bob", "dave", "erin"] if added else ["bob", "dave", "carol"]  # one of them changes nothing
    monkeypatch.setattr(tables, "write", broken_off)
    [error] = await append_all(old, Append("c1", 1, [entry(3, kind=kind, users=users)]))
    assert isinstance(error, OutcomeUnknown)
    monkeypatch.undo()
    for epoch in (2, 3):
        assert (await new.take_over("c1", epoch, 10)).member_count == (5 if added else 1)
    members = await new.find_members("c1", ["alice", "bob", "carol", "dave", "erin"])
    assert set(members) == ({"alice", "bob", "carol", "dave", "erin"} if added else {"alice"})
    [alices] = await new.memberships("alice")
    assert alices.member_count == len(members)


async def test_taking_a_channel_over_reads_no_more_of_its_members_than_its_last_entry_names(stores, tables):
    old, new = stores
    await make(old, "c1", *(f"user{number}" for number in range(250)), kind=ConversationKind.CHANNEL)
    await append_all(old, append("c1", 2))
    tables.calls.clear()
    assert (await new.take_over("c1", 2, 10)).member_count == 250
    assert (tables.calls.count("members"), tables.calls.count("stays"), tables.calls.count("write")) == (1, 0, 0)


async def test_nothing_is_sent_behind_a_change_of_members_until_its_rows_are_written(store, tables):
    await make(store)
    await store.take_over("g1", 1, 10)
    tables.calls.clear()
    added = Append("g1", 1, [entry(2, kind=EntryKind.MEMBERS_ADDED, users=["carol"])])
    assert await append_all(store, added, append("g1", 3)) == [None, None]
    assert [call for call in tables.calls if call.startswith("write")] == ["write_entries", "write", "write_entries"]


@pytest.mark.parametrize("verdict", ["lost", "unknown", "late"])
@pytest.mark.parametrize("method", ["insert_conversation", "write_entries", "write"])
async def test_a_creation_that_was_broken_off_is_completed(stores, tables, method, verdict):
    first, second = stores
    tables.verdicts[method] = deque([verdict])
    try:
        assert await first.create(record("g1"), created("alice", "bob"), 1)
    except OutcomeUnknown:
        assert method != "insert_conversation"
    loaded = await second.take_over("g1", 2, 10)
    tables.arrive()
    assert loaded.head_seq == 1
    assert list(loaded.members) == ["alice", "bob"]
    assert [each.conversation_id for each in await second.memberships("bob")] == ["g1"]
    assert await append_all(second, append("g1", 2, epoch=2)) == [None]
    assert await seqs(second) == [1, 2]


async def test_reads_that_fail_are_unavailable(store, tables):
    await make(store)
    tables.failing = True
    for call in (
        lambda: store.take_over("g1", 1, 5),
        lambda: store.read("nowhere", **EVERYTHING),
        lambda: store.memberships("alice"),
        lambda: store.involvements("alice"),
        lambda: store.acquainted("alice", ["bob"]),
        lambda: store.last_seen(["alice"]),
    ):
        with pytest.raises(Unavailable):
            await call()


async def test_a_store_that_ended_takes_nothing_and_answers_what_was_under_way(tables, autojump_clock):
    store = CassandraStore(tables, lambda _conversation_id, _epoch: True)
    outcomes = Outcomes()
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        await make(store)
        await store.take_over("g1", 1, 10)
        tables.held = True
        store.append([append("g1", 2)], outcomes)
        nursery.cancel_scope.cancel()
    assert [type(error) for error in outcomes.errors] == [OutcomeUnknown]
    [error] = await append_all(store, append("g1", 3))
    assert isinstance(error, NotWritten)


async def test_the_store_heals_when_the_tables_answer_again(store, tables, autojump_clock):
    await make(store)
    await store.take_over("g1", 1, 10)
    tables.verdicts["write_entries"] = deque(["unknown"])
    tables.failing = True
    await append_all(store, append("g1", 2))
    await trio.sleep(5)
    assert store.trouble
    assert not store.writable
    tables.failing = False
    await trio.sleep(2)
    assert store.writable
    assert not store.trouble
