"""History and GetConversation."""

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.pages import fit
from protocol import limits
from protocol.codec import decode_entry
from protocol.errors import ErrorCode
from protocol.frames import GetConversation, History, MarkReceipt, RemoveMembers, Send
from store.interface import Unavailable


@pytest.fixture
async def filled(start_world, alice):
    """A conversation with seqs 1 to 100, of which memory holds the newest few."""
    world = await start_world(tail_entries_max=16)
    conversation_id = await world.direct(alice, "bob")
    for n in range(99):
        world.send(alice, conversation_id, f"m{n}")
    await wait_all_tasks_blocked()
    world.edge.forget()
    return world, conversation_id


@pytest.mark.parametrize(
    ("after", "before", "limit", "seqs", "has_more"),
    [
        (None, None, 10, range(91, 101), True),
        (None, None, 200, range(1, 101), False),
        (0, None, 10, range(1, 11), True),
        (90, None, 10, range(91, 101), False),
        (89, None, 10, range(90, 100), True),
        (100, None, 10, range(0), False),
        (40, None, 5, range(41, 46), True),
        (None, 101, 3, range(98, 101), True),
        (None, 5000, 3, range(98, 101), True),
        (None, 6, 10, range(1, 6), False),
        (None, 6, 5, range(1, 6), False),
        (None, 6, 4, range(2, 6), True),
        (None, 1, 5, range(0), False),
        (None, 0, 5, range(0), False),
    ],
)
@pytest.mark.parametrize("tail_entries_max", [16, 1000])
async def test_pages(start_world, filled, alice, after, before, limit, seqs, has_more, tail_entries_max):
    world, conversation_id = filled
    if tail_entries_max != 16:
        world.scope.cancel()
        await wait_all_tasks_blocked()
        world = await start_world(world.store, tail_entries_max=tail_entries_max)
    page = await world.ask(alice, History(1, conversation_id, after, before, limit))
    assert [decode_entry(bytes(raw)).seq for raw in page.entries] == list(seqs)
    assert (page.has_more, page.head_seq) == (has_more, 100)
    if tail_entries_max != 16:
        assert "read" not in world.store.calls


async def test_a_cursor_beyond_the_head_names_the_head(filled, alice):
    world, conversation_id = filled
    reply = await world.ask(alice, History(1, conversation_id, after_seq=101))
    assert reply.code == ErrorCode.BEYOND_HEAD
    assert "101" in reply.message
    assert "100" in reply.message


async def test_both_directions_make_no_sense(filled, alice):
    world, conversation_id = filled
    reply = await world.ask(alice, History(1, conversation_id, after_seq=1, before_seq=9))
    assert reply.code == ErrorCode.BAD_REQUEST


async def test_outsiders_read_nothing(filled, eve):
    world, conversation_id = filled
    inside = await world.ask(eve, History(1, conversation_id))
    nowhere = await world.ask(eve, History(1, "gnowhere"))
    assert inside == nowhere
    assert inside.code == ErrorCode.NOT_FOUND


async def test_nothing_pending_is_shown(world, alice):
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    world.send(alice, conversation_id, "m1")
    await wait_all_tasks_blocked()
    page = await world.ask(alice, History(1, conversation_id))
    assert (len(page.entries), page.head_seq) == (1, 1)


async def test_a_store_that_cannot_be_read_is_retryable(filled, alice):
    world, conversation_id = filled
    world.store.failing = Unavailable("disk gone")
    reply = await world.ask(alice, History(1, conversation_id, after_seq=0))
    assert reply.code == ErrorCode.UNAVAILABLE
    assert len((await world.ask(alice, History(1, conversation_id, limit=5))).entries) == 5


async def test_a_read_that_takes_too_long_is_retryable(filled, alice, autojump_clock):
    world, conversation_id = filled
    world.store.gate = trio.Event()
    world.owner.submit(alice, History(1, conversation_id, after_seq=0))
    await trio.sleep(6)
    assert [error.code for error in world.edge.errors] == [ErrorCode.UNAVAILABLE]


async def test_who_is_removed_while_the_store_is_read_gets_no_page(start_world, alice, bob):
    world = await start_world(tail_entries_max=16)
    conversation_id = await world.group(alice, "bob")
    for n in range(40):
        world.send(alice, conversation_id, f"m{n}")
    await wait_all_tasks_blocked()
    world.store.gate = trio.Event()
    world.owner.submit(bob, History(1, conversation_id, after_seq=0))
    await world.ask(alice, RemoveMembers(2, conversation_id, "r1", ["bob"]))
    world.store.gate.set()
    await wait_all_tasks_blocked()
    assert [reply.code for reply in world.edge.replies_to(bob)] == [ErrorCode.NOT_FOUND]


async def test_pages_stop_at_their_size_in_bytes(world, alice):
    conversation_id = await world.direct(alice, "bob")
    for n in range(30):
        world.owner.submit(alice, Send(1, conversation_id, f"m{n}", "\U0001f40b" * 4000))
    await wait_all_tasks_blocked()
    oldest = await world.ask(alice, History(1, conversation_id, after_seq=0, limit=200))
    newest = await world.ask(alice, History(1, conversation_id, limit=200))
    for page in (oldest, newest):
        assert limits.PAGE_BYTES_MAX // 2 < sum(len(bytes(raw)) for raw in page.entries) <= limits.PAGE_BYTES_MAX
        assert page.has_more
    assert decode_entry(bytes(oldest.entries[0])).seq == 1
    assert decode_entry(bytes(newest.entries[-1])).seq == 31


def test_a_page_holds_one_entry_of_any_size():
    assert fit([b"x" * 10, b"y" * 10], newest=True, bytes_max=5) == [b"y" * 10]
    assert fit([b"x" * 10, b"y" * 10], newest=False, bytes_max=5) == [b"x" * 10]
    assert fit([], newest=True) == []


async def test_get_tells_members_and_how_far_they_are(world, alice, bob):
    conversation_id = await world.direct(alice, "bob")
    await world.ask(alice, Send(1, conversation_id, "m1", "hello"))
    await world.ask(bob, MarkReceipt(1, conversation_id, 2, 1))
    reply = await world.ask(alice, GetConversation(5, conversation_id))
    assert (reply.id, reply.created) == (5, False)
    conversation = reply.conversation
    assert [(each.user, each.delivered_seq, each.read_seq) for each in conversation.members] == [
        ("alice", 2, 2),
        ("bob", 2, 1),
    ]
    assert (conversation.head_seq, conversation.read_seq) == (2, 2)
    assert msgspec.msgpack.decode(bytes(conversation.last_entry))[5] == "hello"


async def test_memory_answers_no_further_than_it_reaches(filled):
    """A sync may have read a head from the store whose outcome has not come to the owner yet."""
    world, conversation_id = filled
    entries = world.owner.recent(conversation_id, 95, 100)
    assert [decode_entry(encoded).seq for encoded in entries] == [96, 97, 98, 99, 100]
    assert world.owner.recent(conversation_id, 95, 101) is None
    assert world.owner.recent(conversation_id, 3, 100) is None
