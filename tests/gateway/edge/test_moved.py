"""How a user's conversations stand: by their heads in a cluster, by their logs on a single node."""

from collections import Counter
from collections.abc import Collection, Mapping

import pytest
import trio

from gateway.broker import Head
from gateway.edge.moved import described, standing
from protocol.codec import decode_entry, encode_entry
from protocol.frames import ConversationKind, Entry, EntryKind
from store.cassandra import CassandraStore
from store.entries import Append, ConversationRecord, Membership, StoredEntry
from store.interface import Store, Unavailable
from tests.fakes.memory_store import MemoryStore
from tests.fakes.memory_tables import MemoryTables

NOW_US = 1_700_000_000_000_000


class KnownHeads:
    """Heads as a cluster knows them."""

    def __init__(self, known: Mapping[str, Head], owners: Mapping[str, Head] | None = None) -> None:
        self.known = dict(known)
        self.owners = dict(owners or {})
        self.asked: list[set[str]] = []

    async def heads(self, user: str, conversation_ids: Collection[str]) -> Mapping[str, Head]:
        await trio.lowlevel.checkpoint()
        self.asked.append(set(conversation_ids))
        return {each: self.known[each] for each in conversation_ids if each in self.known}

    async def ask_owners(self, user: str, conversation_ids: Collection[str]) -> Mapping[str, Head]:
        await trio.lowlevel.checkpoint()
        return {each: self.owners[each] for each in conversation_ids if each in self.owners}


def stored(seq: int, kind: EntryKind, users: list[str] | None = None) -> StoredEntry:
    entry = Entry(seq, kind, NOW_US + seq, "alice", f"m{seq}", "hello", None, users)
    return StoredEntry(entry, encode_entry(entry))


@pytest.fixture
async def store(nursery: trio.Nursery) -> MemoryStore:
    """Three groups of alice and bob, of one, two and three entries."""
    made = MemoryStore()
    await nursery.start(made.run)
    for count in (1, 2, 3):
        record = ConversationRecord(f"g{count}", ConversationKind.GROUP, "", "alice", NOW_US)
        await made.create(record, stored(1, EntryKind.CREATED, ["alice", "bob"]), 1)
        entries = [stored(seq, EntryKind.MESSAGE) for seq in range(2, count + 1)]
        if entries:
            done = trio.Event()
            made.append([Append(record.conversation_id, 1, entries)], lambda _outcomes, done=done: done.set())
            await done.wait()
    made.calls.clear()
    return made


async def stand(
    store: MemoryStore, heads: KnownHeads | None, user: str, cursors: dict[str, int], *, only_named: bool = False
) -> dict[str, Membership]:
    found = await standing(store, heads, user, cursors, only_named)
    return {each.conversation_id: each for each in found}


async def whole_list(store: Store, heads: KnownHeads | None, user: str) -> list[Membership]:
    """All conversations as a list shows them, on one page."""
    return await described(store, heads, user, await standing(store, heads, user, {}, only_named=False))


def heads_of(found: Mapping[str, Membership]) -> dict[str, int]:
    return {each: membership.head_seq for each, membership in found.items()}


async def test_without_heads_the_store_says_it_all(store: MemoryStore) -> None:
    found = await stand(store, None, "bob", {})
    assert heads_of(found) == {"g1": 1, "g2": 2, "g3": 3}
    assert store.calls == {"memberships": 1}


async def test_with_all_heads_known_only_the_involvements_are_read(store: MemoryStore) -> None:
    heads = KnownHeads({"g1": Head(1, 11), "g2": Head(2, 12), "g3": Head(3, 13)})
    found = await stand(store, heads, "bob", {"g1": 1})
    assert heads_of(found) == {"g1": 1, "g2": 2, "g3": 3}
    assert [found[each].head_time_us for each in ("g1", "g2", "g3")] == [11, 12, 13]
    assert store.calls == {"involvements": 1}


async def test_only_what_is_named_is_asked_for_when_no_more_is_wanted(store: MemoryStore) -> None:
    heads = KnownHeads({"g2": Head(2, 12)})
    found = await stand(store, heads, "bob", {"g2": 1, "g9": 4}, only_named=True)
    assert heads_of(found) == {"g2": 2}
    assert heads.asked == [{"g2"}]


async def test_what_is_behind_a_cursor_is_asked_of_its_owner(store: MemoryStore) -> None:
    heads = KnownHeads({"g1": Head(1, 11), "g2": Head(1, 12), "g3": Head(3, 13)}, {"g2": Head(2, 22)})
    found = await stand(store, heads, "bob", {"g1": 1, "g2": 2, "g3": 2})
    assert heads_of(found) == {"g1": 1, "g2": 2, "g3": 3}
    assert store.calls == {"involvements": 1}


@pytest.mark.parametrize("known", [{"g1": Head(1, 11)}, {"g1": Head(1, 11), "g2": Head(2, 12), "g3": Head(1, 13)}])
async def test_a_log_alone_does_not_say_how_far_a_conversation_is(
    store: MemoryStore, known: Mapping[str, Head]
) -> None:
    with pytest.raises(Unavailable, match=r"the owners of \d of 3 conversations do not answer just now"):
        await stand(store, KnownHeads(known), "bob", {"g3": 2})
    with pytest.raises(Unavailable, match="the owners of 2 of 3 conversations do not answer just now"):
        await whole_list(store, KnownHeads({"g1": Head(1, 11)}), "bob")


async def test_a_list_does_not_show_what_an_owner_has_under_way(store: MemoryStore) -> None:
    heads = KnownHeads({"g1": Head(1, 11), "g2": Head(2, 12), "g3": Head(2, 13)})
    found = {each.conversation_id: each for each in await whole_list(store, heads, "bob")}
    assert heads_of(found) == {"g1": 1, "g2": 2, "g3": 2}
    assert found["g3"].head_time_us == 13
    assert decode_entry(found["g3"].last_encoded).seq == 2
    assert found["g3"].member_count == 2
    assert store.calls == {"involvements": 1, "memberships": 1, "read": 1}


async def test_a_list_shows_what_came_behind_the_heads_no_further_than_they_are(store: MemoryStore) -> None:
    heads = KnownHeads({"g1": Head(9, 19), "g2": Head(2, 12), "g3": Head(3, 13)})
    found = {each.conversation_id: each for each in await whole_list(store, heads, "bob")}
    assert found["g1"].head_seq == 1


async def test_a_list_reads_involvements_once_and_as_often_as_a_single_node_besides(nursery: trio.Nursery) -> None:
    tables = MemoryTables()
    store = CassandraStore(tables, lambda _conversation_id, _epoch: True)
    await nursery.start(store.run)
    for conversation_id in ("g1", "g2"):
        record = ConversationRecord(conversation_id, ConversationKind.GROUP, "", "alice", NOW_US)
        await store.create(record, stored(1, EntryKind.CREATED, ["alice", "bob"]), 1)
    tables.calls.clear()
    await whole_list(store, None, "bob")
    alone, tables.calls = Counter(tables.calls), []
    await whole_list(store, KnownHeads({"g1": Head(1, 11), "g2": Head(1, 12)}), "bob")
    assert Counter(tables.calls) == alone
    assert alone["involvements"] == 1


async def test_who_is_in_nothing_costs_one_read(store: MemoryStore) -> None:
    assert await stand(store, KnownHeads({}), "carol", {"g1": 1}) == {}
    assert store.calls == {"involvements": 1}
