"""Sync and ListConversations: nothing missed, nothing that is not durable, bounded work."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.broker import Head
from gateway.config import Settings
from gateway.edge import catchup as catchup_module
from gateway.edge.followers import Followers
from protocol import limits
from protocol.codec import decode_entry
from protocol.errors import ErrorCode
from protocol.frames import (
    AddMembers,
    ConversationKind,
    ListConversations,
    MarkReceipt,
    RemoveMembers,
    Send,
    Sync,
)
from store.entries import Involvement
from store.interface import Unavailable
from tests.fakes.edge import FakeOrigin
from tests.gateway.edge.catchup_place import Place

DIRECT, GROUP = ConversationKind.DIRECT, ConversationKind.GROUP


@pytest.fixture
async def start_place(nursery):
    async def start(**settings):
        place = Place(Settings(**settings))
        for part in (place.store, place.owner, place.catchup):
            await nursery.start(part.run)
        return place

    return start


@pytest.fixture
async def place(start_place):
    return await start_place()


@pytest.fixture
def alice():
    return FakeOrigin("alice")


@pytest.fixture
def bob():
    return FakeOrigin("bob")


def seqs(synced):
    return [decode_entry(bytes(raw)).seq for raw in synced.entries]


async def test_a_client_that_missed_nothing_costs_one_read(place, alice):
    conversation_id = await place.create(alice, DIRECT, "bob")
    await place.fill(alice, conversation_id, 4)
    page, synced = await place.sync(alice, {conversation_id: 5})
    assert synced == {}
    assert (page.done, page.resumed) == (True, True)
    assert place.store.calls == {"memberships": 1}


async def test_what_is_new_comes_oldest_first(place, alice, bob):
    conversation_id = await place.create(alice, DIRECT, "bob")
    await place.fill(alice, conversation_id, 4)
    page, synced = await place.sync(bob, {conversation_id: 2})
    assert seqs(synced[conversation_id]) == [3, 4, 5]
    assert synced[conversation_id].head_seq == 5
    assert page.resumed
    assert place.store.calls == {"memberships": 1}  # the entries came from memory


@pytest.mark.parametrize("tail_entries_max", [16, 1000])
async def test_only_the_newest_hundred_come(start_place, alice, bob, tail_entries_max):
    place = await start_place(tail_entries_max=tail_entries_max)
    conversation_id = await place.create(alice, DIRECT, "bob")
    await place.fill(alice, conversation_id, 149)
    page, synced = await place.sync(bob, {conversation_id: 30})
    assert seqs(synced[conversation_id]) == list(range(51, 151))
    assert synced[conversation_id].has_more
    assert not page.resumed
    page, synced = await place.sync(bob, {conversation_id: 50})
    assert seqs(synced[conversation_id]) == list(range(51, 151))
    assert not synced[conversation_id].has_more
    assert page.resumed
    page, synced = await place.sync(bob, {conversation_id: 149})
    assert seqs(synced[conversation_id]) == [150]
    assert place.store.calls == {"memberships": 1}


async def test_without_cursors_everything_comes_newest_first(place, alice, bob):
    ids = [await place.create(alice, GROUP, "bob", name=f"c{n}") for n in range(3)]
    await place.fill(alice, ids[1], 1)
    page, synced = await place.sync(bob)
    assert list(synced) == [ids[1], ids[2], ids[0]]
    assert page.resumed


async def test_conversations_not_named_come_too_unless_only_named(place, alice):
    known = await place.create(alice, DIRECT, "bob")
    new = await place.create(alice, DIRECT, "carol")
    _, synced = await place.sync(alice, {known: 1})
    assert list(synced) == [new]
    _, synced = await place.sync(alice, {known: 0}, only_named=True)
    assert list(synced) == [known]
    _, synced = await place.sync(alice, {}, only_named=True)
    assert synced == {}


async def test_who_is_out_is_told_so_as_for_what_does_not_exist(place, alice, bob):
    group = await place.create(alice, GROUP, "bob")
    await place.own(alice, RemoveMembers(1, group, "r1", ["bob"]))
    page, synced = await place.sync(bob, {group: 1, "gnowhere": 7})
    assert page.resumed
    for each in synced.values():
        assert (each.removed, each.head_seq, each.entries) == (True, 0, [])
    assert set(synced) == {group, "gnowhere"}


async def test_who_is_removed_while_the_store_is_read_gets_nothing_of_it(start_place, alice, bob):
    place = await start_place(tail_entries_max=16)
    group = await place.create(alice, GROUP, "bob")
    await place.fill(alice, group, 40)
    other = await place.create(bob, GROUP)
    await place.fill(bob, other, 40)

    read = place.store.read

    async def read_and_remove(*args, **kwargs):
        entries = await read(*args, **kwargs)
        place.owner.submit(alice, RemoveMembers(0, group, "r1", ["bob"]))
        await trio.lowlevel.checkpoint()
        while not place.owner.excludes(group, "bob"):
            await trio.lowlevel.checkpoint()
        return entries

    place.store.read = read_and_remove
    _, synced = await place.sync(bob, {group: 0}, only_named=True)
    assert synced[group].removed
    assert synced[group].entries == []


async def test_a_cursor_beyond_the_head_names_both(place, alice):
    conversation_id = await place.create(alice, DIRECT, "bob")
    (reply,) = await place.ask(alice, Sync(3, {conversation_id: 2}))
    assert (reply.id, reply.code) == (3, ErrorCode.BEYOND_HEAD)
    assert conversation_id in reply.message
    assert "head" in reply.message
    assert " 1" in reply.message


async def test_too_many_cursors(place, alice):
    cursors = {f"g{n}": 1 for n in range(limits.SYNC_CURSORS_MAX + 1)}
    (reply,) = await place.ask(alice, Sync(3, cursors))
    assert reply.code == ErrorCode.TOO_LONG
    assert "1001" in reply.message
    assert "1000" in reply.message


async def test_pages_stop_at_their_size(place, alice):
    ids = [await place.create(alice, GROUP, name=f"c{n}") for n in range(8)]
    for conversation_id in ids:
        await place.fill(alice, conversation_id, 20, body="\U0001f40b" * 1000)
    pages = await place.ask(alice, Sync(3))
    assert len(pages) > 2
    for page in pages:
        size = sum(len(bytes(raw)) for each in page.conversations for raw in each.entries)
        assert size <= limits.PAGE_BYTES_MAX
    assert [each.conversation_id for page in pages for each in page.conversations] == ids[::-1]
    assert [page.done for page in pages] == [False] * (len(pages) - 1) + [True]


async def test_the_next_page_waits_for_room_and_takes_nobodys_place(start_place, alice, bob):
    place = await start_place(syncs_max=1)
    for n in range(4):
        conversation_id = await place.create(alice, GROUP, name=f"c{n}")
        await place.fill(alice, conversation_id, 20, body="\U0001f40b" * 1500)
    place.edge.full = True
    (first,) = await place.ask(alice, Sync(3))
    assert not first.done
    (other,) = await place.ask(bob, Sync(4))
    assert other.done, "somebody who does not read kept the only place"
    place.edge.full = False
    place.edge.waiting.pop()()
    await wait_all_tasks_blocked()
    rest = place.edge.replies_to(alice)
    assert rest[-1].done
    assert sum(len(page.conversations) for page in (first, *rest)) == 4


async def test_a_next_page_for_which_there_is_no_place_is_refused(start_place, alice, bob, monkeypatch):
    monkeypatch.setattr(catchup_module, "SYNCS_WAITING_MAX", 1)
    place = await start_place(syncs_max=1)
    for n in range(4):
        conversation_id = await place.create(alice, GROUP, name=f"c{n}")
        await place.fill(alice, conversation_id, 20, body="\U0001f40b" * 1500)
    place.edge.full = True
    await place.ask(alice, Sync(3))
    place.store.gate = trio.Event()
    for n in range(2):
        place.catchup.submit(bob, Sync(4 + n))
    await wait_all_tasks_blocked()
    place.edge.waiting.pop()()
    assert [(error.id, error.code) for error in place.edge.errors] == [(3, ErrorCode.OVERLOADED)]


async def test_a_gap_on_an_earlier_page_is_told_with_the_last_one(place, alice):
    short, long = [await place.create(alice, GROUP, name=name) for name in ("short", "long")]
    await place.fill(alice, short, 20, body="\U0001f40b" * 1500)
    await place.fill(alice, long, limits.SYNC_ENTRIES_MAX + 1, body="\U0001f40b" * 350)
    pages = await place.ask(alice, Sync(3))
    assert [[each.conversation_id for each in page.conversations] for page in pages] == [[long], [short]]
    assert pages[0].conversations[0].has_more
    assert not pages[1].conversations[0].has_more
    assert not pages[1].resumed


async def test_who_is_gone_costs_no_read(place, alice):
    await place.create(alice, GROUP)
    place.edge.gone.add(alice)
    place.store.calls.clear()
    assert await place.ask(alice, Sync(3)) == []
    assert place.store.calls == {}


async def test_a_list_of_long_last_entries_stops_at_its_size(place, alice):
    ids = [await place.create(alice, GROUP, name=f"c{n}") for n in range(40)]
    for conversation_id in ids:
        await place.fill(alice, conversation_id, 1, body="\U0001f40b" * 4000)
    shown, cursor = [], ""
    while True:
        (page,) = await place.ask(alice, ListConversations(3, cursor, 100))
        assert sum(len(bytes(each.last_entry)) for each in page.conversations) <= limits.PAGE_BYTES_MAX
        shown += [each.conversation_id for each in page.conversations]
        cursor = page.next_cursor
        if not cursor:
            break
    assert shown == ids[::-1]


async def test_a_conversation_larger_than_a_page_keeps_its_newest(place, alice):
    conversation_id = await place.create(alice, GROUP)
    await place.fill(alice, conversation_id, 40, body="\U0001f40b" * 4000)
    page, synced = await place.sync(alice, {conversation_id: 1})
    assert seqs(synced[conversation_id])[-1] == 41
    assert synced[conversation_id].has_more
    assert not page.resumed


async def test_nothing_pending_is_shown(place, alice):
    conversation_id = await place.create(alice, DIRECT, "bob")
    place.store.held = True
    place.owner.submit(alice, Send(0, conversation_id, "m1", "hello"))
    await wait_all_tasks_blocked()
    _, synced = await place.sync(alice)
    assert seqs(synced[conversation_id]) == [1]


async def test_unsaved_receipts_are_seen(place, alice, bob):
    conversation_id = await place.create(alice, DIRECT, "bob")
    await place.fill(alice, conversation_id, 3)
    await place.own(bob, MarkReceipt(1, conversation_id, 4, 3))
    assert place.store.logs[conversation_id].members["bob"].read_seq == 0
    _, synced = await place.sync(bob, {conversation_id: 2})
    assert synced[conversation_id].read_seq == 3
    (listed,) = await place.ask(alice, ListConversations(1))
    assert [(each.user, each.read_seq) for each in listed.conversations[0].members] == [("alice", 4), ("bob", 3)]
    (listed,) = await place.ask(bob, ListConversations(1))
    assert (listed.conversations[0].read_seq, listed.conversations[0].delivered_seq) == (3, 4)


async def test_only_so_many_at_once_and_so_many_waiting(start_place, alice, monkeypatch):
    monkeypatch.setattr(catchup_module, "SYNCS_WAITING_MAX", 3)
    place = await start_place(syncs_max=2)
    place.store.gate = trio.Event()
    for n in range(7):
        place.catchup.submit(alice, Sync(n + 1))
    await wait_all_tasks_blocked()
    assert place.store.calls["memberships"] == 2
    assert [(error.id, error.code) for error in place.edge.errors] == [
        (6, ErrorCode.OVERLOADED),
        (7, ErrorCode.OVERLOADED),
    ]
    assert all(error.retry_after_ms > 0 for error in place.edge.errors)
    place.store.gate.set()
    await wait_all_tasks_blocked()
    assert sorted(reply.id for reply in place.edge.replies) == [1, 2, 3, 4, 5, 6, 7]


async def test_a_store_that_cannot_be_read_is_retryable(place, alice):
    place.store.failing = Unavailable("disk gone")
    for command in (Sync(3), ListConversations(4)):
        (reply,) = await place.ask(alice, command)
        assert (reply.id, reply.code) == (command.id, ErrorCode.UNAVAILABLE)
        assert "disk gone" in reply.message


async def test_a_store_that_hangs_is_retryable(place, alice, autojump_clock):
    place.store.gate = trio.Event()
    place.catchup.submit(alice, Sync(3))
    await trio.sleep(catchup_module.CATCHUP_TIMEOUT_S + 1)
    assert [error.code for error in place.edge.errors] == [ErrorCode.UNAVAILABLE]


# --- ListConversations ----------------------------------------------------------------------------------------------


async def test_a_list_shows_conversations_newest_first(place, alice, bob):
    group = await place.create(alice, GROUP, "bob", "carol", title="team")
    direct = await place.create(alice, DIRECT, "bob")
    await place.fill(bob, direct, 2)
    (reply,) = await place.ask(alice, ListConversations(5))
    assert (reply.id, reply.next_cursor) == (5, "")
    first, second = reply.conversations
    assert (first.conversation_id, first.title, first.kind, first.head_seq) == (direct, "", DIRECT, 3)
    assert [each.user for each in first.members] == ["alice", "bob"]
    assert decode_entry(bytes(first.last_entry)).seq == 3
    assert (second.conversation_id, second.title, second.members, second.member_count) == (group, "team", [], 3)


async def test_pages_show_everything_once(place, alice):
    ids = [await place.create(alice, GROUP, name=f"c{n}") for n in range(7)]
    shown, cursor = [], ""
    for expected in (3, 3, 1):
        (reply,) = await place.ask(alice, ListConversations(1, cursor, 3))
        assert len(reply.conversations) == expected
        shown += [each.conversation_id for each in reply.conversations]
        cursor = reply.next_cursor
    assert cursor == ""
    assert shown == ids[::-1]


async def test_a_page_exactly_full_is_the_last(place, alice):
    await place.create(alice, GROUP, name="c1")
    await place.create(alice, GROUP, name="c2")
    (reply,) = await place.ask(alice, ListConversations(1, "", 2))
    assert reply.next_cursor == ""


async def test_what_moves_between_two_pages_is_not_skipped(place, alice):
    ids = [await place.create(alice, GROUP, name=f"c{n}") for n in range(9)]
    (reply,) = await place.ask(alice, ListConversations(1, "", 3))
    shown = {each.conversation_id for each in reply.conversations}
    for moved in (0, 1, 2, 3):  # all not shown yet, more than fit one page
        await place.fill(alice, ids[moved], 1)
    for _ in range(10):
        if not reply.next_cursor:
            break
        (reply,) = await place.ask(alice, ListConversations(1, reply.next_cursor, 3))
        times = [decode_entry(bytes(each.last_entry)).time_us for each in reply.conversations]
        assert times == sorted(times, reverse=True)
        shown |= {each.conversation_id for each in reply.conversations}
    assert reply.next_cursor == ""
    assert shown == set(ids)


async def test_a_user_without_conversations(place, alice):
    (reply,) = await place.ask(alice, ListConversations(1))
    assert (reply.conversations, reply.next_cursor) == ([], "")
    page, synced = await place.sync(alice)
    assert synced == {}
    assert page.resumed


@pytest.mark.parametrize("cursor", ["x", "AAAA", "not a cursor", "köder", "kpEB", "k5IBoWGSAaFh" + "kZGR" * 9_000])
async def test_a_cursor_of_ones_own_making(place, alice, cursor):
    (reply,) = await place.ask(alice, ListConversations(1, cursor))
    assert reply.code == ErrorCode.BAD_REQUEST
    assert "next_cursor" in reply.message


async def test_who_joins_sees_the_group(place, alice, bob):
    group = await place.create(alice, GROUP)
    await place.own(alice, AddMembers(1, group, "a1", ["bob"]))
    (reply,) = await place.ask(bob, ListConversations(1))
    assert [each.conversation_id for each in reply.conversations] == [group]


class KnownHeads:
    """Heads as a cluster knows them."""

    def __init__(self, **heads):
        self.known = heads

    async def heads(self, user, conversation_ids):
        await trio.lowlevel.checkpoint()
        return {each: self.known[each] for each in conversation_ids if each in self.known}


@pytest.fixture
async def crowded(place, alice):
    """Twenty conversations of five entries each, whose heads are known."""
    ids = [await place.create(alice, GROUP, "bob", name=f"c{n}") for n in range(20)]
    for conversation_id in ids:
        await place.fill(alice, conversation_id, 4)
    place.ids = ids
    place.catchup.heads = KnownHeads(**{each: Head(5, n) for n, each in enumerate(ids)})
    return place


async def test_with_known_heads_nothing_missed_costs_one_read_however_many_there_are(crowded, bob):
    page, synced = await crowded.sync(bob, dict.fromkeys(crowded.ids, 5))
    assert synced == {}
    assert page.resumed
    assert crowded.store.calls == {"involvements": 1}


async def test_with_known_heads_only_the_logs_of_what_moved_are_read(crowded, alice, bob):
    moved = crowded.ids[7]
    crowded.owner.recent = lambda *_window: None  # another node owns it
    page, synced = await crowded.sync(bob, dict.fromkeys(crowded.ids, 5) | {moved: 2})
    assert list(synced) == [moved]
    assert seqs(synced[moved]) == [3, 4, 5]
    assert page.resumed
    assert crowded.store.calls == {"involvements": 1, "read": 1}


async def test_with_known_heads_a_page_of_a_list_reads_only_the_logs_of_what_it_shows(crowded, bob, monkeypatch):
    read, memberships = [], crowded.store.memberships

    async def noting(user, known=None):
        read.append([each.conversation_id for each in known])
        return await memberships(user, known)

    monkeypatch.setattr(crowded.store, "memberships", noting)
    crowded.store.calls.clear()
    (first,) = await crowded.ask(bob, ListConversations(1, limit=3))
    (second,) = await crowded.ask(bob, ListConversations(1, first.next_cursor, 3))
    newest = crowded.ids[::-1]
    assert [each.conversation_id for each in (*first.conversations, *second.conversations)] == newest[:6]
    assert [decode_entry(bytes(each.last_entry)).seq for each in first.conversations] == [5, 5, 5]
    assert [sorted(each) for each in read] == [sorted(newest[:3]), sorted(newest[3:6])]
    assert crowded.store.calls == {"involvements": 2, "memberships": 2}


async def test_with_known_heads_a_page_shows_who_is_in_a_direct_conversation(place, alice):
    direct, alone = [await place.create(alice, DIRECT, *others) for others in (["bob"], [])]
    place.catchup.heads = KnownHeads(**{direct: Head(1, 2), alone: Head(1, 1)})
    seen, memberships = [], place.store.memberships

    async def noting(user, known=None):
        seen.extend(known)
        return await memberships(user, known)

    place.store.memberships = noting
    (reply,) = await place.ask(alice, ListConversations(1))
    assert [[member.user for member in each.members] for each in reply.conversations] == [["alice"], ["alice", "bob"]]
    told = [Involvement(**{name: getattr(each, name) for name in Involvement.__struct_fields__}) for each in seen]
    assert told == await place.store.involvements("alice")


async def test_what_happens_in_a_channel_is_pushed_from_its_members_first_sync_on(place, alice, bob):
    followers = place.catchup.followers = Followers({"alice", "bob"})
    channel = await place.create(alice, ConversationKind.CHANNEL, "bob", title="news")
    await place.fill(alice, channel, 2)
    assert not followers.is_following("bob", channel)
    _, found = await place.sync(bob)
    assert seqs(found[channel]) == [1, 2, 3]
    # What is durable before it follows is only surely in what is read then.
    assert place.store.calls["memberships"] == 2
    assert followers.is_following("bob", channel)
    last, found = await place.sync(bob, {channel: 3})
    assert (last.resumed, found) == (True, {})
    assert place.store.calls["memberships"] == 1
    await place.own(alice, RemoveMembers(1, channel, "r1", ["bob"]))
    _, found = await place.sync(bob, {channel: 3})
    assert found[channel].removed
    assert not followers.is_following("bob", channel)  # it was delivered to nobody here


async def test_what_becomes_durable_while_a_sync_is_under_way_is_in_it_or_pushed(place, alice, bob):
    followers = place.catchup.followers = Followers({"alice", "bob"})
    channel = await place.create(alice, ConversationKind.CHANNEL, "bob", title="news")
    registered = trio.Event()
    followers.registered = lambda _channel: registered.wait()
    place.catchup.submit(bob, Sync(9))
    await wait_all_tasks_blocked()
    await place.fill(alice, channel, 1)  # read before, and not handed on to this node yet
    registered.set()
    await wait_all_tasks_blocked()
    [page] = place.edge.replies_to(bob)
    assert [seqs(each) for each in page.conversations] == [[1, 2]]


async def test_lists_name_channels_without_their_members_and_begin_to_follow_them(place, alice):
    followers = place.catchup.followers = Followers({"alice"})
    channel = await place.create(alice, ConversationKind.CHANNEL, "bob", "carol", title="news")
    [page] = await place.ask(alice, ListConversations(3))
    [shown] = page.conversations
    assert (shown.conversation_id, shown.kind, shown.title) == (channel, ConversationKind.CHANNEL, "news")
    assert (shown.members, shown.member_count) == ([], 3)
    assert followers.is_following("alice", channel)
