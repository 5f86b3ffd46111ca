"""Receipts: monotonic, coalesced, saved behind, pushed when they moved."""

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from gateway.owner import receipts
from gateway.owner.receipts import RECEIPT_PUSH_MEMBERS_MAX, SAVE_MAX_S, SAVE_REFUSALS_MAX
from protocol.errors import ErrorCode
from protocol.frames import AddMembers, GetConversation, MarkReceipt, Ok, ReceiptPush, RemoveMembers, Send
from store.interface import NotWritten
from tests.fakes.edge import FakeOrigin


@pytest.fixture
async def chat(world, alice):
    """A world and a direct conversation of alice and bob with the head 11."""
    conversation_id = await world.direct(alice, "bob")
    for n in range(10):
        world.send(alice, conversation_id, f"m{n}")
    await wait_all_tasks_blocked()
    world.edge.forget()
    return world, conversation_id


def stored(world, conversation_id, user):
    member = world.store.logs[conversation_id].members[user]
    return member.delivered_seq, member.read_seq


async def test_pointers_are_coalesced_saved_and_pushed_once(chat, bob, autojump_clock):
    world, conversation_id = chat
    for seq in range(1, 8):
        world.owner.submit(bob, MarkReceipt(0, conversation_id, seq, seq - 1))
    assert world.owner.pointers(conversation_id, "bob") == (7, 6)
    assert world.edge.log == []
    await trio.sleep(world.settings.receipt_delay_s + 0.1)
    assert stored(world, conversation_id, "bob") == (7, 6)
    assert world.store.calls["save_receipts"] == 1
    (signal,) = world.edge.signals
    assert signal.push == ReceiptPush(conversation_id, "bob", 7, 6)
    assert sorted(signal.recipients) == ["alice", "bob"]
    assert signal.skip is bob


async def test_own_entries_count_as_read_where_all_before_them_was(chat, alice, bob, autojump_clock):
    world, conversation_id = chat
    assert world.owner.pointers(conversation_id, "alice") == (11, 11), "the creator wrote all of them"
    world.send(bob, conversation_id, "b1")  # bob has read nothing yet: his own entry leaves a gap
    world.send(alice, conversation_id, "a1")  # and alice has not read his
    await wait_all_tasks_blocked()
    assert world.owner.pointers(conversation_id, "bob") in (None, (0, 0))
    assert world.owner.pointers(conversation_id, "alice") == (11, 11)
    await world.ask(bob, MarkReceipt(1, conversation_id, 13, 13))
    world.send(bob, conversation_id, "b2")
    await trio.sleep(3)
    assert stored(world, conversation_id, "bob") == (14, 14)
    assert [signal.push.user for signal in world.edge.signals] == ["bob"], "nobody is told of what everybody can tell"


async def test_pointers_never_go_back(chat, bob, autojump_clock):
    world, conversation_id = chat
    await world.ask(bob, MarkReceipt(1, conversation_id, 9, 5))
    assert await world.ask(bob, MarkReceipt(2, conversation_id, 3, 2)) == Ok(2)
    await trio.sleep(3)
    assert stored(world, conversation_id, "bob") == (9, 5)
    world.owner.submit(bob, MarkReceipt(0, conversation_id, 9, 5))
    await trio.sleep(3)
    assert len(world.edge.signals) == 1


async def test_two_saves_at_once_save_and_push_everything_once(chat, bob, nursery):
    world, conversation_id = chat
    world.owner.submit(bob, MarkReceipt(0, conversation_id, 7, 6))
    world.store.gate = trio.Event()
    for _ in range(2):
        nursery.start_soon(world.owner.save_receipts)
    await wait_all_tasks_blocked()
    world.store.gate.set()
    await wait_all_tasks_blocked()
    assert stored(world, conversation_id, "bob") == (7, 6)
    assert world.store.calls["save_receipts"] == 1
    assert len(world.edge.signals) == 1


async def test_what_is_read_was_delivered(chat, bob):
    world, conversation_id = chat
    await world.ask(bob, MarkReceipt(1, conversation_id, 0, 8))
    assert world.owner.pointers(conversation_id, "bob") == (8, 8)


@pytest.mark.parametrize("pointers", [(12, 0), (0, 12)])
async def test_beyond_the_head(chat, bob, pointers):
    world, conversation_id = chat
    reply = await world.ask(bob, MarkReceipt(1, conversation_id, *pointers))
    assert reply.code == ErrorCode.BEYOND_HEAD
    assert "12" in reply.message
    assert "11" in reply.message
    assert world.owner.pointers(conversation_id, "bob") == (0, 0)


async def test_outsiders_mark_nothing(chat, eve):
    world, conversation_id = chat
    reply = await world.ask(eve, MarkReceipt(1, conversation_id, 1))
    assert reply.code == ErrorCode.NOT_FOUND


async def test_what_the_store_refuses_is_saved_later(chat, bob, autojump_clock):
    world, conversation_id = chat
    world.store.failing = NotWritten("disk full")
    world.owner.submit(bob, MarkReceipt(0, conversation_id, 4))
    await trio.sleep(3)
    assert world.edge.signals == []
    assert world.owner.counters.receipts_failed > 0
    world.store.failing = None
    await trio.sleep(3)
    assert stored(world, conversation_id, "bob") == (4, 0)
    assert len(world.edge.signals) == 1


async def directs(world, alice, count):
    """Conversations of alice, all with a pointer of hers that is not saved yet."""
    return [await world.direct(alice, f"user{n}") for n in range(count)]


def unsaved_of(world, user, conversation_ids):
    return {each for each in conversation_ids if stored(world, each, user) == (0, 0)}


@pytest.mark.parametrize("which", [0, 1, 150, 298, 299])
async def test_a_receipt_that_the_store_refuses_holds_up_no_other(world, alice, which, autojump_clock):
    conversation_ids = await directs(world, alice, 300)
    refused = conversation_ids[which]
    world.store.refused_receipts.add((refused, "alice"))
    await world.owner.save_receipts()
    assert unsaved_of(world, "alice", conversation_ids) == {refused}
    world.store.calls.clear()
    world.owner.submit(FakeOrigin("user7"), MarkReceipt(0, conversation_ids[7], 1))
    await world.owner.save_receipts()
    assert stored(world, conversation_ids[7], "user7") == (1, 0)
    assert world.store.calls["save_receipts"] == 2, "one for the others, one for what is known to be refused"
    world.store.refused_receipts.clear()
    await world.owner.save_receipts()
    assert unsaved_of(world, "alice", conversation_ids) == set()
    assert world.owner.idle


async def test_the_log_names_a_receipt_that_is_refused_alone(world, alice):
    first, *_ = await directs(world, alice, 20)
    world.store.refused_receipts.add((first, "alice"))
    with capture_logs() as lines:
        await world.owner.save_receipts()
    [line] = [line for line in lines if line["event"] == "receipt not saved"]
    assert (line["conversation"], line["user"]) == (first, "alice")
    assert line["reason"]


async def test_one_save_is_enough_for_more_than_one_line(world, alice, monkeypatch):
    monkeypatch.setattr(receipts, "LINE_RECORDS_MAX", 10)
    conversation_ids = await directs(world, alice, 35)
    world.store.refused_receipts.add((conversation_ids[3], "alice"))
    await world.owner.save_receipts()
    assert unsaved_of(world, "alice", conversation_ids) == {conversation_ids[3]}


async def test_many_receipts_that_the_store_refuses_leave_room_for_others(world, alice, autojump_clock):
    conversation_ids = await directs(world, alice, 400)
    refused = set(conversation_ids[:100]) | set(conversation_ids[200::2])
    world.store.refused_receipts.update((each, "alice") for each in refused)
    for _ in range(60):
        await world.owner.save_receipts()
    assert unsaved_of(world, "alice", conversation_ids) == refused
    late = await world.direct(alice, "somebody else")
    await world.owner.save_receipts()
    assert stored(world, late, "alice") == (1, 1), "what comes later does not wait behind them"
    world.store.refused_receipts.clear()
    world.store.calls.clear()
    await world.owner.save_receipts()
    assert unsaved_of(world, "alice", conversation_ids) == set()
    assert world.store.calls["save_receipts"] <= 10, "chunks grow while they are saved"


async def test_members_of_one_conversation_do_not_wait_for_each_other(world, alice, autojump_clock):
    users = [f"user{n}" for n in range(60)]
    conversation_id = await world.group(alice, *users)
    for user in users:
        world.owner.submit(FakeOrigin(user), MarkReceipt(0, conversation_id, 1))
    refused = set(users[: 2 * SAVE_REFUSALS_MAX])
    world.store.refused_receipts.update((conversation_id, user) for user in refused)
    for _ in range(10):
        await world.owner.save_receipts()
    assert {user for user in users if stored(world, conversation_id, user) == (0, 0)} == refused


async def test_a_receipt_that_is_never_answered_holds_up_no_other(world, alice, autojump_clock):
    conversation_ids = await directs(world, alice, 100)
    slow = conversation_ids[50]
    world.store.slow_receipts.add((slow, "alice"))
    began = trio.current_time()
    await world.owner.save_receipts()
    assert trio.current_time() - began == pytest.approx(SAVE_MAX_S)
    for n in range(12):
        late = await world.direct(alice, f"late{n}")
        await world.owner.save_receipts()
        assert stored(world, late, "alice") == (1, 1), "what comes later does not wait behind it"
    assert unsaved_of(world, "alice", conversation_ids) == {slow}


async def test_a_store_that_refuses_everything_is_asked_seldom(world, alice):
    await directs(world, alice, 100)
    world.store.failing = NotWritten("disk full")
    for _ in range(3):
        world.store.calls.clear()
        await world.owner.save_receipts()
        assert world.store.calls["save_receipts"] <= SAVE_REFUSALS_MAX


async def test_more_than_may_wait_to_be_saved_is_refused_for_now(world, alice, bob, autojump_clock, monkeypatch):
    first, second, third = await directs(world, FakeOrigin("carol"), 3)
    await trio.sleep(3)
    world.store.failing = NotWritten("disk full")
    monkeypatch.setattr(receipts, "UNSAVED_RECORDS_MAX", 2)
    user0, user1, user2 = (FakeOrigin(f"user{n}") for n in range(3))
    assert await world.ask(user0, MarkReceipt(1, first, 1)) == Ok(1)
    assert await world.ask(user1, MarkReceipt(1, second, 1)) == Ok(1)
    reply = await world.ask(user2, MarkReceipt(1, third, 1))
    assert (reply.code, ErrorCode(reply.code).retry) == (ErrorCode.OVERLOADED, True)
    assert reply.retry_after_ms > 0
    assert "2 receipts already wait" in reply.message
    assert world.owner.counters.overloaded == 1
    assert world.owner.pointers(third, "user2") == (0, 0)
    assert await world.ask(user1, MarkReceipt(2, second, 1, 1)) == Ok(2), "what waits already needs no more room"
    world.store.failing = None
    await trio.sleep(3)
    assert await world.ask(user2, MarkReceipt(2, third, 1)) == Ok(2)
    await trio.sleep(3)
    assert [stored(world, *each) for each in ((first, "user0"), (second, "user1"), (third, "user2"))] == [
        (1, 0), (1, 1), (1, 0),
    ]  # fmt: skip


async def test_own_entries_are_not_noted_as_read_where_too_much_waits(chat, alice, bob, autojump_clock, monkeypatch):
    world, conversation_id = chat
    await trio.sleep(3)
    monkeypatch.setattr(receipts, "UNSAVED_RECORDS_MAX", 0)
    world.send(alice, conversation_id, "one more")
    await wait_all_tasks_blocked()
    assert world.owner.pointers(conversation_id, "alice") == (11, 11)
    assert world.owner.idle


async def test_what_moves_while_it_is_saved_is_saved_again(chat, bob, autojump_clock):
    world, conversation_id = chat
    world.store.gate = trio.Event()
    world.owner.submit(bob, MarkReceipt(0, conversation_id, 4))
    await trio.sleep(3)
    world.owner.submit(bob, MarkReceipt(0, conversation_id, 6))
    world.store.gate.set()
    await trio.sleep(3)
    assert stored(world, conversation_id, "bob") == (6, 0)
    assert [signal.push.delivered_seq for signal in world.edge.signals] == [4, 6]


async def test_the_end_saves_what_is_left(chat, bob):
    world, conversation_id = chat
    world.owner.submit(bob, MarkReceipt(0, conversation_id, 4))
    world.scope.cancel()
    await wait_all_tasks_blocked()
    assert stored(world, conversation_id, "bob") == (4, 0)


async def test_the_end_does_not_wait_for_a_store_that_hangs(chat, bob, autojump_clock):
    world, conversation_id = chat
    world.store.gate = trio.Event()
    world.owner.submit(bob, MarkReceipt(0, conversation_id, 4))
    began = trio.current_time()
    world.scope.cancel()
    await trio.sleep(10)
    assert world.scope.cancelled_caught
    assert trio.current_time() - began < 11


async def test_unsaved_pointers_survive_a_reload(chat, alice, bob, autojump_clock):
    world, conversation_id = chat
    world.owner.submit(bob, MarkReceipt(0, conversation_id, 4))
    world.store.verdicts.append(NotWritten("disk full"))
    world.send(alice, conversation_id, "lost")
    await wait_all_tasks_blocked()
    assert world.owner.pointers(conversation_id, "bob") == (4, 0)
    await world.ask(alice, Send(1, conversation_id, "m99", "found"))
    assert world.owner.pointers(conversation_id, "bob") == (4, 0)
    await trio.sleep(3)
    assert stored(world, conversation_id, "bob") == (4, 0)


async def test_what_is_not_saved_of_an_earlier_stay_is_none_of_the_present_one(world, alice, bob, autojump_clock):
    conversation_id = await world.group(alice, "bob")
    world.owner.submit(bob, MarkReceipt(0, conversation_id, 1))
    await world.ask(alice, RemoveMembers(1, conversation_id, "r1", ["bob"]))
    await world.ask(alice, AddMembers(2, conversation_id, "a1", ["bob"]))
    world.edge.forget()
    world.store.verdicts.append(NotWritten("disk full"))
    world.send(alice, conversation_id, "lost")
    await wait_all_tasks_blocked()
    await world.ask(alice, Send(3, conversation_id, "m99", "found"))
    assert world.owner.pointers(conversation_id, "bob") == (0, 0)
    await trio.sleep(3)
    assert [signal.push for signal in world.edge.signals] == []
    assert stored(world, conversation_id, "bob") == (0, 0)


async def test_unsaved_conversations_stay_in_memory(start_world, alice):
    world = await start_world(loaded_conversations_max=16)
    first = await world.direct(alice, "bob")
    for n in range(40):
        await world.direct(alice, f"user{n}")
    assert world.owner.pointers(first, "alice") == (1, 1)


async def test_memory_stays_bounded_while_the_store_refuses_receipts(start_world, alice, autojump_clock):
    world = await start_world(loaded_conversations_max=16)
    world.store.receipt_verdicts.extend([NotWritten("disk full")] * 10_000)
    conversation_ids = []
    for n in range(60):
        conversation_ids.append(await world.direct(alice, f"user{n}"))
        await trio.sleep(3)
    assert world.owner.conversations_loaded == 16
    assert world.owner.pointers(conversation_ids[0], "alice") == (1, 1), "it is not forgotten all the same"
    reply = await world.ask(alice, GetConversation(7, conversation_ids[0]))
    assert reply.conversation.read_seq == 1
    world.store.receipt_verdicts.clear()
    await trio.sleep(3)
    assert {stored(world, each, "alice") for each in conversation_ids} == {(1, 1)}


async def test_large_groups_are_not_pushed_receipts(world, alice, autojump_clock):
    conversation_id = await world.group(alice, *(f"user{n}" for n in range(RECEIPT_PUSH_MEMBERS_MAX)))
    await world.ask(FakeOrigin("user1"), MarkReceipt(1, conversation_id, 1))
    await trio.sleep(3)
    assert world.edge.signals == []
    assert world.owner.counters.receipts_unpushed == 1
    assert stored(world, conversation_id, "user1") == (1, 0)


async def test_who_was_removed_marks_nothing_any_more(world, alice, bob, autojump_clock):
    conversation_id = await world.group(alice, "bob")
    world.owner.submit(bob, MarkReceipt(0, conversation_id, 1))
    await world.ask(alice, RemoveMembers(1, conversation_id, "r1", ["bob"]))
    await trio.sleep(3)
    assert world.edge.signals == []
    assert "bob" not in world.store.logs[conversation_id].members


async def test_devices_of_one_user_share_pointers(chat, autojump_clock):
    world, conversation_id = chat
    phone, desktop = FakeOrigin("bob"), FakeOrigin("bob")
    world.owner.submit(phone, MarkReceipt(0, conversation_id, 5, 5))
    world.owner.submit(desktop, MarkReceipt(0, conversation_id, 7, 3))
    await trio.sleep(3)
    assert stored(world, conversation_id, "bob") == (7, 5)
    (signal,) = world.edge.signals
    assert signal.skip is desktop


async def test_pointers_are_told_again_as_they_are_saved(chat, bob, autojump_clock):
    world, conversation_id = chat
    await world.ask(bob, MarkReceipt(1, conversation_id, 7, 6))
    world.owner.tell_receipt_again(conversation_id, "bob")
    assert world.edge.signals == [], "it is not saved yet, and pushed when it is"
    await trio.sleep(3)
    world.edge.forget()
    world.owner.tell_receipt_again(conversation_id, "bob")
    world.owner.tell_receipt_again(conversation_id, "somebody else")
    world.owner.tell_receipt_again("another conversation", "bob")
    (signal,) = world.edge.signals
    assert (signal.push, signal.skip) == (ReceiptPush(conversation_id, "bob", 7, 6), None)
