"""Sends: order, durability before delivery, acknowledgement, limits, and stores that fail."""

import gc

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.broker import Delivery
from gateway.owner.conversation import Conversation
from gateway.owner.trouble import ANSWER_MAX_S, OVERDUE_CHECK_S
from protocol import limits
from protocol.errors import ErrorCode
from protocol.frames import (
    AddMembers,
    ConversationKind,
    CreateConversation,
    ErrorReply,
    RemoveMembers,
    Rename,
    Send,
    SendAck,
)
from store.interface import NotWritten, OutcomeUnknown, StaleEpoch, Unavailable
from tests.fakes.edge import FakeOrigin, GivenBack, Replied
from tests.fakes.memory_store import LostAnswer


def bodies(entries):
    return [entry.body for entry in entries]


async def test_send_is_stored_then_delivered_then_acknowledged(world, alice):
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    command = world.send(alice, conversation_id, "m1")
    await wait_all_tasks_blocked()
    assert world.edge.log == []
    world.store.release()
    await wait_all_tasks_blocked()
    delivery, replied = world.edge.log
    assert isinstance(delivery, Delivery)
    assert sorted(delivery.recipients) == ["alice", "bob"]
    assert delivery.origins == [alice]
    assert replied == Replied(alice, SendAck(command.id, 2, world.now_us + 1), conversation_id)
    assert world.edge.entries[0].body == "m1"
    assert world.store.logs[conversation_id].entries[1] == delivery.entries[0]


async def test_what_one_slice_brings_is_one_batch_and_one_delivery_each(world, alice, bob):
    first = await world.direct(alice, "bob")
    second = await world.direct(alice, "carol")
    world.store.batches.clear()
    for name in ("m1", "m2", "m3"):
        world.send(alice, first, name)
        world.send(alice, second, name)
    world.send(bob, first, "m4")
    await wait_all_tasks_blocked()
    assert world.store.batches == [7]
    assert [len(delivery.entries) for delivery in world.edge.deliveries] == [4, 3]
    assert [entry.seq for entry in world.edge.received("bob")] == [2, 3, 4, 5]


async def test_what_one_answer_of_the_store_leads_to_is_written_together(world, alice, bob):
    first = await world.direct(alice, "bob")
    second = await world.direct(alice, "carol")
    world.edge.log.clear()
    world.edge.turns.clear()
    for conversation_id in (first, second, first):
        world.send(alice, conversation_id, f"m{len(world.edge.log)}")
    await wait_all_tasks_blocked()
    assert len(world.edge.replies) == 3
    assert world.edge.turns == [world.edge.log]


async def test_recipients_are_one_snapshot_as_long_as_nobody_joins_or_leaves(world, alice):
    conversation_id = await world.group(alice, "bob")
    for name in ("m1", "m2"):
        world.send(alice, conversation_id, name)
        await wait_all_tasks_blocked()
    first, second = world.edge.deliveries
    assert first.recipients is second.recipients


async def test_delivery_tells_when_the_sends_arrived(world, alice, autojump_clock):
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    arrived_s = trio.current_time()
    world.send(alice, conversation_id, "m1")
    await trio.sleep(3)
    world.store.release()
    await wait_all_tasks_blocked()
    assert world.edge.deliveries[0].arrived_s == arrived_s


async def test_several_batches_may_be_in_flight(world, alice):
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    world.send(alice, conversation_id, "m1")
    await wait_all_tasks_blocked()
    world.send(alice, conversation_id, "m2")
    await wait_all_tasks_blocked()
    assert world.store.queued == 2
    world.store.answer()
    assert bodies(world.edge.entries) == ["m1"]
    world.store.answer()
    assert bodies(world.edge.entries) == ["m1", "m2"]


async def test_times_rise_with_seq_though_the_clock_goes_back(world, alice):
    conversation_id = await world.direct(alice, "bob")
    world.send(alice, conversation_id, "m1")
    world.now_us -= 3_600_000_000
    world.send(alice, conversation_id, "m2")
    await wait_all_tasks_blocked()
    times = [entry.time_us for entry in world.edge.entries]
    assert times == sorted(set(times))


async def test_id_0_asks_for_no_acknowledgement(world, alice):
    conversation_id = await world.direct(alice, "bob")
    world.owner.submit(alice, Send(0, conversation_id, "m1", "hello"))
    world.owner.submit(alice, Send(0, conversation_id, "m2", ""))
    await wait_all_tasks_blocked()
    assert bodies(world.edge.entries) == ["hello"]
    assert [(error.id, error.code) for error in world.edge.replies] == [(0, ErrorCode.BODY_EMPTY)]


async def test_outsiders_cannot_tell_a_conversation_from_none(world, alice, eve):
    conversation_id = await world.group(alice, "bob")
    inside = await world.ask(eve, Send(7, conversation_id, "m1", "let me in"))
    nowhere = await world.ask(eve, Send(7, "gnosuchconversation000000", "m1", "let me in"))
    assert inside == nowhere
    assert isinstance(inside, ErrorReply)
    assert inside.code == ErrorCode.NOT_FOUND
    assert world.edge.deliveries == []


@pytest.mark.parametrize(
    ("body", "metadata", "code", "words"),
    [
        ("", None, ErrorCode.BODY_EMPTY, ["1 to 4000"]),
        ("x" * 4001, None, ErrorCode.TOO_LONG, ["4001", "4000"]),
        ("x", {str(n): "" for n in range(17)}, ErrorCode.TOO_LONG, ["17", "16"]),
        ("x", {"k" * 65: ""}, ErrorCode.TOO_LONG, ["65", "64"]),
        ("x", {"k": "v" * 513}, ErrorCode.TOO_LONG, ["513", "512"]),
    ],
)
async def test_messages_out_of_bounds_are_refused_with_both_lengths(world, alice, body, metadata, code, words):
    conversation_id = await world.direct(alice, "bob")
    reply = await world.ask(alice, Send(1, conversation_id, "m1", body, metadata))
    assert reply.code == code
    assert all(word in reply.message for word in words)
    assert len(world.store.logs[conversation_id].entries) == 1


async def test_messages_at_the_limits_are_stored_as_they_are(world, alice):
    conversation_id = await world.direct(alice, "bob")
    metadata = {f"{n:064}": "v" * 512 for n in range(limits.METADATA_KEYS_MAX)}
    body = "\U0001f40b" * limits.BODY_CHARS_MAX
    reply = await world.ask(alice, Send(1, conversation_id, "m1", body, metadata))
    assert isinstance(reply, SendAck)
    assert (world.edge.entries[0].body, world.edge.entries[0].metadata) == (body, metadata)


async def test_too_many_pending_sends_are_refused_and_nothing_of_them_is_stored(start_world, alice):
    world = await start_world(pending_sends_max=3)
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    for n in range(5):
        world.send(alice, conversation_id, f"m{n}")
    await wait_all_tasks_blocked()
    assert [error.code for error in world.edge.errors] == [ErrorCode.OVERLOADED] * 2
    assert all(error.retry_after_ms > 0 for error in world.edge.errors)
    world.store.release()
    await wait_all_tasks_blocked()
    assert bodies(world.edge.entries) == ["m0", "m1", "m2"]
    assert world.nothing_waits
    assert isinstance(await world.ask(alice, Send(99, conversation_id, "m3", "m3", attempt=2)), SendAck)


async def test_not_written_is_retryable_and_the_seq_is_used_again(world, alice):
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    world.send(alice, conversation_id, "m1")
    await wait_all_tasks_blocked()
    world.send(alice, conversation_id, "m2")  # in a batch of its own, which cannot follow what was not written
    await wait_all_tasks_blocked()
    world.store.verdicts.append(NotWritten("disk full"))
    world.store.answer()
    assert world.edge.log == []
    world.store.answer()
    world.store.release()
    assert [error.code for error in world.edge.errors] == [ErrorCode.UNAVAILABLE] * 2
    assert "disk full" in world.edge.errors[0].message
    assert world.nothing_waits
    reply = await world.ask(alice, Send(50, conversation_id, "m2", "m2", attempt=2))
    assert isinstance(reply, SendAck)
    assert reply.seq == 2
    assert [(entry.seq, entry.body) for entry in world.edge.entries] == [(2, "m2")]


async def test_commands_behind_a_failure_are_judged_by_what_the_store_has(world, alice):
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    world.send(alice, conversation_id, "m1")
    await wait_all_tasks_blocked()
    world.send(alice, conversation_id, "m2")
    await wait_all_tasks_blocked()
    world.store.verdicts.append(NotWritten("disk full"))
    world.store.answer()
    world.send(alice, conversation_id, "m3")  # waits for the verdict on m2
    world.store.answer()
    world.store.release()
    await wait_all_tasks_blocked()
    assert len(world.edge.errors) == 2
    assert [(entry.seq, entry.body) for entry in world.edge.entries] == [(2, "m3")]


@pytest.mark.parametrize("lost", [LostAnswer("reply lost"), OutcomeUnknown("no reply"), Unavailable("no quorum")])
async def test_rows_of_unknown_outcome_are_appended_again_until_known(world, alice, lost, autojump_clock):
    conversation_id = await world.direct(alice, "bob")
    world.store.verdicts.extend([lost, lost])
    world.send(alice, conversation_id, "m1")
    world.send(alice, conversation_id, "m2")
    await wait_all_tasks_blocked()
    assert world.edge.log == []
    await trio.sleep(1)
    assert [(entry.seq, entry.body) for entry in world.edge.entries] == [(2, "m1"), (3, "m2")]
    assert [reply.seq for reply in world.edge.replies] == [2, 3]
    assert world.store.calls["append"] == 3


async def test_outcomes_that_become_unknown_before_the_repeat_are_repeated_with_the_others(
    world, alice, autojump_clock
):
    conversations = [await world.direct(alice, other) for other in ("bob", "carl")]
    world.store.verdicts.extend([OutcomeUnknown("no reply"), OutcomeUnknown("no reply")])
    for conversation_id in conversations:
        world.send(alice, conversation_id, "m1")
        await wait_all_tasks_blocked()
    await trio.sleep(1)
    assert bodies(world.edge.entries) == ["m1", "m1"]
    assert world.store.batches == [1, 1, 2]


async def test_what_follows_an_unknown_outcome_is_not_lost_and_not_reordered(world, alice, autojump_clock):
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    for name in ("m1", "m2", "m3"):  # m2 and m3 are refused at first because m1 is missing
        world.send(alice, conversation_id, name)
        await wait_all_tasks_blocked()
    world.store.verdicts.append(OutcomeUnknown("no reply"))
    world.store.answer()
    world.send(alice, conversation_id, "m4")
    world.store.release()
    await wait_all_tasks_blocked()
    assert world.edge.log == []
    await trio.sleep(1)
    assert bodies(world.edge.entries) == ["m1", "m2", "m3", "m4"]
    assert [type(reply) for reply in world.edge.replies] == [SendAck] * 4


async def test_a_refused_repeat_does_not_settle_what_may_be_stored(world, alice, autojump_clock):
    conversation_id = await world.direct(alice, "bob")
    world.store.verdicts.extend([OutcomeUnknown("no reply"), NotWritten("disk full"), NotWritten("disk full")])
    world.send(alice, conversation_id, "m1")
    await trio.sleep(1)
    assert bodies(world.edge.entries) == ["m1"]
    assert world.edge.errors == []


async def test_overdue_senders_are_told_and_the_entry_still_comes(world, alice, bob, autojump_clock):
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    world.send(alice, conversation_id, "m1")
    await trio.sleep(ANSWER_MAX_S - 1)
    world.send(bob, conversation_id, "m2")
    await trio.sleep(1 + OVERDUE_CHECK_S)
    assert [(each.origin, each.reply.code) for each in world.edge.log] == [(alice, ErrorCode.OUTCOME_UNKNOWN)]
    world.store.release()
    await wait_all_tasks_blocked()
    assert bodies(world.edge.entries) == ["m1", "m2"]
    assert [delivery.origins for delivery in world.edge.deliveries] == [[None], [bob]]
    assert [type(reply) for reply in world.edge.replies] == [ErrorReply, SendAck]
    assert world.owner.counters.unanswered == 1


async def test_a_stale_epoch_ends_ownership_without_acknowledgement(world, alice):
    conversation_id = await world.direct(alice, "bob")
    world.store.logs[conversation_id].epoch = 2
    reply = await world.ask(alice, Send(1, conversation_id, "m1", "m1"))
    assert reply.code == ErrorCode.UNAVAILABLE
    world.ownership.current = 2
    reply = await world.ask(alice, Send(2, conversation_id, "m1", "m1", attempt=2))
    assert isinstance(reply, SendAck)


async def test_stale_epoch_after_an_unknown_outcome_leaves_the_outcome_unknown(world, alice, autojump_clock):
    conversation_id = await world.direct(alice, "bob")
    world.store.verdicts.extend([OutcomeUnknown("no reply"), StaleEpoch("epoch 2 is recorded")])
    world.send(alice, conversation_id, "m1")
    await trio.sleep(1)
    assert [error.code for error in world.edge.errors] == [ErrorCode.OUTCOME_UNKNOWN]
    assert world.edge.deliveries == []


async def test_nothing_is_said_while_the_owner_is_not_sure_to_be_one(world, alice, autojump_clock):
    conversation_id = await world.direct(alice, "bob")
    world.ownership.sure = False
    world.send(alice, conversation_id, "m1")
    await trio.sleep(1)
    assert world.edge.log == []
    world.ownership.sure = True
    await trio.sleep(ANSWER_MAX_S)
    assert bodies(world.edge.entries) == ["m1"]
    assert len(world.store.logs[conversation_id].entries) == 2


async def test_what_was_appended_under_an_epoch_that_is_over_is_given_up(world, alice, autojump_clock):
    conversation_id = await world.direct(alice, "bob")
    world.ownership.current, world.ownership.sure = 3, False  # another node had it meanwhile
    world.send(alice, conversation_id, "m1")
    await trio.sleep(1)
    assert [error.code for error in world.edge.errors] == [ErrorCode.OUTCOME_UNKNOWN]
    assert world.edge.deliveries == []
    world.ownership.sure = True
    assert isinstance(await world.ask(alice, Send(2, conversation_id, "m1", "m1", attempt=2)), SendAck)
    assert world.nothing_waits


async def test_a_command_for_a_conversation_owned_elsewhere_is_given_back(world, alice):
    world.ownership.current = None
    send = Send(1, "gelsewhere", "m1", "m1")
    world.owner.submit(alice, send)
    assert world.edge.log == [GivenBack(alice, send)]


async def test_drained_waits_for_what_is_pending(world, alice, nursery, autojump_clock):
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    world.send(alice, conversation_id, "m1")
    with trio.move_on_after(5) as scope:
        await world.owner.drained()
    assert scope.cancelled_caught
    world.store.release()
    with trio.fail_after(1):
        await world.owner.drained()
    assert len(world.edge.replies) == 1


async def test_after_the_end_commands_are_refused_and_retryable(start_world, alice):
    world = await start_world()
    conversation_id = await world.direct(alice, "bob")
    world.scope.cancel()
    await wait_all_tasks_blocked()
    reply = await world.ask(FakeOrigin("carol"), Send(1, "gother", "m1", "m1"))
    assert reply.code == ErrorCode.UNAVAILABLE
    assert conversation_id in world.store.logs


async def test_evicted_conversations_are_not_held_for_sends_that_are_settled(start_world, alice, autojump_clock):
    world = await start_world(loaded_conversations_max=16, receipt_delay_s=0.01)
    for number in range(48):
        conversation_id = await world.direct(alice, f"user{number}")
        world.send(alice, conversation_id, "m1")
        await trio.sleep(ANSWER_MAX_S / 100)
    await trio.sleep(2 * OVERDUE_CHECK_S)
    gc.collect()
    held = [each for each in gc.get_objects() if isinstance(each, Conversation)]
    ours = [each for each in held if each.conversation_id in world.store.logs]
    assert len(ours) == world.owner.conversations_loaded <= 17


@pytest.mark.parametrize("tail_entries_max", [1, 100])
async def test_a_repeat_is_not_delivered_again_by_who_may_not_own_the_conversation_any_more(
    start_world, alice, autojump_clock, tail_entries_max
):
    """It would deliver to those whom the next owner may have removed; whether memory or the store knows the repeat."""
    world = await start_world(tail_entries_max=tail_entries_max)
    conversation_id = await world.direct(alice, "bob")
    for body in ("m1", "m2"):
        world.send(alice, conversation_id, body)
    await trio.sleep(1)
    world.edge.log.clear()
    world.ownership.sure = False
    repeat = Send(9, conversation_id, "m1", "m1", attempt=2)
    world.owner.submit(alice, repeat)
    await trio.sleep(1)
    assert world.edge.log == [GivenBack(alice, repeat)]


async def test_a_repeated_creation_is_not_answered_by_who_may_not_own_the_conversation_any_more(world, alice):
    create = CreateConversation(1, ConversationKind.DIRECT, ["bob"], client_msg_id="create")
    await world.ask(alice, create)
    world.edge.log.clear()
    world.ownership.sure = False
    world.owner.submit(alice, create)
    assert world.edge.log == [GivenBack(alice, create)]


async def test_who_may_not_own_the_conversation_any_more_does_not_say_that_nothing_is_to_change(world, alice, eve):
    """Its next owner may have added or removed somebody since."""
    conversation_id = await world.group(alice, "bob")
    world.ownership.sure = False
    commands = [
        RemoveMembers(2, conversation_id, "r1", ["carol"]),
        AddMembers(3, conversation_id, "a1", ["bob"]),
        Rename(4, conversation_id, "n1", "team"),
        AddMembers(5, conversation_id, "a2", ["carol"]),
    ]
    for command in commands:
        world.owner.submit(alice, command)
    stranger = Send(6, conversation_id, "m1", "m1")
    world.owner.submit(eve, stranger)
    assert world.edge.log == [*(GivenBack(alice, command) for command in commands), GivenBack(eve, stranger)]
