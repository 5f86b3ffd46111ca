"""Repeats: one client_msg_id has one seq, whatever was lost on the way."""

from itertools import count

import pytest
import trio
from msgspec.structs import replace
from trio.testing import wait_all_tasks_blocked

from gateway.owner import lookups
from gateway.owner.conversation import Conversation
from gateway.owner.deduplication import Repeats
from protocol.errors import ErrorCode
from protocol.frames import AddMembers, RemoveMembers, Rename, Send, SendAck
from store.interface import NotWritten, Unavailable
from tests.fakes.edge import FakeOrigin, GivenBack


async def test_a_repeat_is_answered_from_memory_and_delivered_again(world, alice):
    conversation_id = await world.direct(alice, "bob")
    first = await world.ask(alice, Send(1, conversation_id, "m1", "hello"))
    again = FakeOrigin("alice")
    repeat = await world.ask(again, Send(9, conversation_id, "m1", "hello", attempt=2))
    assert repeat == SendAck(9, first.seq, first.time_us, duplicate=True)
    assert [entry.seq for entry in world.edge.received("bob")] == [2, 2]
    assert world.edge.deliveries[1].origins == [again]
    assert len(world.store.logs[conversation_id].entries) == 2
    assert world.owner.counters.duplicates == 1
    assert "find" not in world.store.calls


async def test_a_repeat_is_not_delivered_to_who_joined_later(world, alice):
    conversation_id = await world.group(alice, "bob")
    await world.ask(alice, Send(1, conversation_id, "m1", "hello"))
    await world.ask(alice, AddMembers(2, conversation_id, "m2", ["carol"]))
    await world.ask(alice, Send(3, conversation_id, "m1", "hello", attempt=2))
    await world.ask(alice, AddMembers(4, conversation_id, "m2", ["carol"], attempt=2))
    assert [entry.seq for entry in world.edge.received("bob")][-4:] == [2, 3, 2, 3]
    assert [entry.seq for entry in world.edge.received("carol")] == [3, 3]


async def test_a_repeated_removal_is_delivered_to_whom_it_removed(world, alice):
    conversation_id = await world.group(alice, "bob", "carol")
    removal = RemoveMembers(1, conversation_id, "m1", ["carol"])
    await world.ask(alice, removal)
    world.edge.forget()
    await world.ask(alice, replace(removal, attempt=2))  # an owner may have died before it had told carol
    assert [entry.seq for entry in world.edge.received("carol")] == [2]
    await world.ask(alice, AddMembers(3, conversation_id, "m2", ["carol"]))
    world.edge.forget()
    await world.ask(alice, replace(removal, attempt=3))
    assert world.edge.received("carol") == []  # it would tell her that she is out again
    assert [entry.seq for entry in world.edge.received("bob")] == [2]


async def test_a_repeat_of_what_is_pending_is_answered_when_that_is_durable(world, alice):
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    world.send(alice, conversation_id, "m1")
    await wait_all_tasks_blocked()
    again = FakeOrigin("alice")
    world.send(again, conversation_id, "m1", attempt=2)
    await wait_all_tasks_blocked()
    assert world.edge.log == []
    world.store.release()
    await wait_all_tasks_blocked()
    assert [(reply.seq, reply.duplicate) for reply in world.edge.replies] == [(2, False), (2, True)]
    assert len(world.edge.deliveries) == 1


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("other", [{"body": "other"}, {"body": "hello", "metadata": {"k": "v"}}])
async def test_the_same_id_for_another_content_is_refused(world, alice, held, other):
    conversation_id = await world.direct(alice, "bob")
    world.store.held = held
    world.owner.submit(alice, Send(1, conversation_id, "m1", "hello"))
    await wait_all_tasks_blocked()
    reply = await world.ask(FakeOrigin("alice"), Send(2, conversation_id, "m1", **other))
    assert reply.code == ErrorCode.CLIENT_MSG_ID_REUSED
    assert "m1" in reply.message


async def test_the_same_id_for_another_kind_is_refused(world, alice):
    conversation_id = await world.group(alice, "bob")
    await world.ask(alice, Rename(1, conversation_id, "m1", "crew"))
    reply = await world.ask(alice, Send(2, conversation_id, "m1", "crew"))
    assert reply.code == ErrorCode.CLIENT_MSG_ID_REUSED


async def test_ids_of_different_users_and_conversations_do_not_meet(world, alice, bob):
    one, two = await world.direct(alice, "bob"), await world.group(alice, "bob")
    for origin, conversation_id in ((alice, one), (bob, one), (alice, two)):
        reply = await world.ask(origin, Send(1, conversation_id, "m1", f"{origin.user} {conversation_id}"))
        assert isinstance(reply, SendAck)
        assert not reply.duplicate


async def test_empty_metadata_is_no_metadata(world, alice):
    conversation_id = await world.direct(alice, "bob")
    await world.ask(alice, Send(1, conversation_id, "m1", "hello", {}))
    reply = await world.ask(alice, Send(2, conversation_id, "m1", "hello", None))
    assert reply.duplicate


async def test_a_repeat_that_memory_does_not_know_is_found_in_the_store(start_world, alice, bob):
    world = await start_world()
    conversation_id = await world.direct(alice, "bob")
    first = await world.ask(alice, Send(1, conversation_id, "m1", "hello"))
    world.scope.cancel()
    await wait_all_tasks_blocked()
    restarted = await start_world(world.store, tail_entries_max=16)
    for n in range(20):
        await restarted.ask(bob, Send(1, conversation_id, f"n{n}", "noise"))
    restarted.edge.forget()
    repeat = await restarted.ask(alice, Send(2, conversation_id, "m1", "hello", attempt=2))
    assert repeat == SendAck(2, first.seq, first.time_us, duplicate=True)
    assert [entry.seq for entry in restarted.edge.received("bob")] == [first.seq]
    other = await restarted.ask(alice, Send(3, conversation_id, "m1", "other", attempt=3))
    assert other.code == ErrorCode.CLIENT_MSG_ID_REUSED


async def test_a_repeat_that_never_arrived_is_appended(world, alice):
    conversation_id = await world.direct(alice, "bob")
    reply = await world.ask(alice, Send(1, conversation_id, "m1", "hello", attempt=3))
    assert isinstance(reply, SendAck)
    assert not reply.duplicate
    assert world.store.calls["find"] == 1


async def test_ids_are_free_again_after_the_window(start_world, alice):
    world = await start_world(tail_entries_max=16)
    conversation_id = await world.direct(alice, "bob")
    await world.ask(alice, Send(1, conversation_id, "m1", "hello"))
    for n in range(20):
        await world.ask(alice, Send(1, conversation_id, f"n{n}", "noise"))
    world.now_us += 86_400 * 1_000_000 + 1_000
    reply = await world.ask(alice, Send(2, conversation_id, "m1", "hello", attempt=2))
    assert not reply.duplicate


async def test_a_lookup_holds_back_its_origin_and_nobody_else(world, alice, bob):
    conversation_id = await world.direct(alice, "bob")
    world.store.gate = trio.Event()
    world.send(alice, conversation_id, "m1", attempt=2)
    world.send(alice, conversation_id, "m2")
    world.send(alice, conversation_id, "m3", attempt=2)
    world.send(alice, conversation_id, "m4")
    world.send(bob, conversation_id, "n1")
    await wait_all_tasks_blocked()
    assert [entry.body for entry in world.edge.entries] == ["n1"]
    world.store.gate.set()
    await wait_all_tasks_blocked()
    assert [entry.body for entry in world.edge.entries] == ["n1", "m1", "m2", "m3", "m4"]
    assert world.nothing_waits


async def test_two_lookups_for_one_id_append_it_once(world, alice):
    conversation_id = await world.direct(alice, "bob")
    world.store.gate = trio.Event()
    world.send(alice, conversation_id, "m1", attempt=2)
    world.send(FakeOrigin("alice"), conversation_id, "m1", attempt=3)
    await wait_all_tasks_blocked()
    world.store.gate.set()
    await wait_all_tasks_blocked()
    assert sorted((reply.seq, reply.duplicate) for reply in world.edge.replies) == [(2, False), (2, True)]
    assert len(world.store.logs[conversation_id].entries) == 2


async def test_a_lookup_overtaken_by_more_than_the_tail_looks_again(start_world, alice, bob):
    world = await start_world(tail_entries_max=16)
    conversation_id = await world.direct(alice, "bob")
    late = world.store.gate = trio.Event()
    world.send(alice, conversation_id, "m1", attempt=2)  # the store has looked, and answers late
    await wait_all_tasks_blocked()
    world.store.gate = None
    await world.ask(FakeOrigin("alice"), Send(1, conversation_id, "m1", "m1", attempt=3))
    for n in range(20):
        world.send(bob, conversation_id, f"n{n}")
    await wait_all_tasks_blocked()
    late.set()
    await wait_all_tasks_blocked()
    assert [reply.seq for reply in world.edge.replies_to(alice)] == [2]
    assert world.edge.replies_to(alice)[0].duplicate
    assert world.store.calls["find"] == 3


async def test_a_first_attempt_that_comes_long_after_its_repeat_is_recognised(start_world, alice, bob):
    world = await start_world(tail_entries_max=16)
    conversation_id = await world.direct(alice, "bob")
    repeat = await world.ask(alice, Send(1, conversation_id, "m1", "hello", attempt=2))
    for n in range(20):
        await world.ask(bob, Send(1, conversation_id, f"n{n}", "noise"))
    first = await world.ask(FakeOrigin("alice"), Send(2, conversation_id, "m1", "hello"))
    assert first == SendAck(2, repeat.seq, repeat.time_us, duplicate=True)


def test_of_very_many_repeats_the_last_ones_are_remembered(monkeypatch):
    monkeypatch.setattr("gateway.owner.deduplication.REPEATS_MAX", 2)
    repeats = Repeats()
    for name in ("m1", "m2", "m1", "m3"):  # m1 comes anew, so that m2 is the oldest
        repeats.note("g-team", ("alice", name))
    assert list(repeats.seen) == [("g-team", ("alice", "m1")), ("g-team", ("alice", "m3"))]


async def test_a_lookup_that_fails_is_retryable_and_appends_nothing(world, alice):
    conversation_id = await world.direct(alice, "bob")
    world.store.failing = Unavailable("disk gone")
    world.send(alice, conversation_id, "m1", attempt=2)
    world.send(alice, conversation_id, "m2")
    await wait_all_tasks_blocked()
    assert [error.code for error in world.edge.errors] == [ErrorCode.UNAVAILABLE]
    assert [entry.body for entry in world.edge.entries] == ["m2"]


async def test_a_lookup_that_takes_too_long_is_retryable(world, alice, autojump_clock):
    conversation_id = await world.direct(alice, "bob")
    world.store.gate = trio.Event()
    world.send(alice, conversation_id, "m1", attempt=2)
    await trio.sleep(6)
    assert [error.code for error in world.edge.errors] == [ErrorCode.UNAVAILABLE]


@pytest.fixture
async def busy(start_world, alice, bob, monkeypatch):
    """A conversation of 1,000 entries in a store that needs 10 s to look at them, where alice's m1 is the second."""
    monkeypatch.setattr(lookups, "STEP_ENTRIES", 50)
    world = await start_world(tail_entries_max=16)
    conversation_id = await world.direct(alice, "bob")
    world.send(alice, conversation_id, "m1")
    for n in range(998):
        world.send(bob, conversation_id, f"n{n}")
    await wait_all_tasks_blocked()
    world.store.find_entry_s = 0.01
    world.edge.forget()
    return world, conversation_id


@pytest.mark.parametrize(("client_msg_id", "seq"), [("m1", 2), ("m2", 1_001)])
async def test_a_lookup_that_takes_too_long_is_finished_by_the_next_repeats(
    busy, autojump_clock, alice, client_msg_id, seq
):
    world, conversation_id = busy
    for attempt in (2, 3, 4):
        world.send(alice, conversation_id, client_msg_id, attempt=attempt)
        await trio.sleep(6)
    answers = [getattr(reply, "seq", None) or reply.code for reply in world.edge.replies_to(alice)]
    assert answers == [ErrorCode.UNAVAILABLE, ErrorCode.UNAVAILABLE, seq]


async def test_a_lookup_ends_though_more_than_the_tail_comes_with_each_step(busy, autojump_clock, alice, bob, nursery):
    world, conversation_id = busy
    world.store.find_entry_s = 0.002

    async def talk():
        for n in count():
            world.send(bob, conversation_id, f"more{n}")
            await trio.sleep(0.01)

    nursery.start_soon(talk)
    await trio.sleep(1)
    world.send(alice, conversation_id, "m2", attempt=2)
    await trio.sleep(20)
    (reply,) = world.edge.replies_to(alice)
    assert isinstance(reply, SendAck), reply
    assert not reply.duplicate
    nursery.cancel_scope.cancel()


async def test_what_was_appended_behind_a_lookup_that_took_too_long_is_found(busy, autojump_clock, alice, bob):
    world, conversation_id = busy
    world.send(alice, conversation_id, "m2", attempt=2)
    await trio.sleep(6)
    world.store.find_entry_s = 0.0
    first = await world.ask(FakeOrigin("alice"), Send(1, conversation_id, "m2", "m2", attempt=3))
    for n in range(100):
        world.send(bob, conversation_id, f"more{n}")
    await wait_all_tasks_blocked()
    again = await world.ask(alice, Send(2, conversation_id, "m2", "m2", attempt=4))
    assert again == SendAck(2, first.seq, first.time_us, duplicate=True)


async def test_of_very_many_lookups_the_last_ones_are_remembered(world, monkeypatch):
    monkeypatch.setattr(lookups, "WALKS_MAX", 2)
    kept = world.owner._lookups
    conversation = Conversation("g-team")
    walks = [kept._walk(conversation, name) for name in ("m1", "m2", "m1", "m3")]
    assert walks[0] is walks[2]
    assert list(kept._walks) == [("g-team", "m1"), ("g-team", "m3")]


async def test_who_was_removed_still_learns_that_a_send_was_appended(world, alice, bob):
    conversation_id = await world.group(alice, "bob")
    await world.ask(bob, Send(1, conversation_id, "m1", "bye"))
    await world.ask(alice, removal(conversation_id, "bob"))
    repeat = await world.ask(bob, Send(2, conversation_id, "m1", "bye", attempt=2))
    assert (repeat.seq, repeat.duplicate) == (2, True)
    fresh = await world.ask(bob, Send(3, conversation_id, "m2", "hello?"))
    assert fresh.code == ErrorCode.NOT_FOUND


async def test_leaving_twice_is_leaving(world, alice, bob):
    conversation_id = await world.group(alice, "bob")
    leave = removal(conversation_id, "bob")
    first = await world.ask(bob, leave)
    second = await world.ask(bob, leave)
    assert (second.seq, second.duplicate) == (first.seq, True)


async def test_adding_is_the_same_if_it_names_those_whom_it_added(world, alice):
    conversation_id = await world.group(alice, "bob")
    first = await world.ask(alice, AddMembers(1, conversation_id, "a1", ["bob", "carol"]))
    second = await world.ask(alice, AddMembers(2, conversation_id, "a1", ["bob", "carol"], attempt=2))
    assert (second.seq, second.duplicate) == (first.seq, True)
    third = await world.ask(alice, AddMembers(3, conversation_id, "a1", ["dave"], attempt=2))
    assert third.code == ErrorCode.CLIENT_MSG_ID_REUSED


def removal(conversation_id, *users):
    return RemoveMembers(5, conversation_id, "r1", list(users))


async def test_commands_of_one_origin_keep_their_order_when_a_lookup_ends_before_a_barrier(world, alice, bob):
    group = await world.group(alice, "bob")
    world.store.gate = trio.Event()
    world.send(alice, group, "m1", attempt=2)
    world.send(alice, group, "m2")
    await wait_all_tasks_blocked()
    world.store.held = True
    world.owner.submit(bob, Rename(90, group, "r1", "crew"))
    world.send(alice, group, "m3")
    await wait_all_tasks_blocked()
    world.store.gate.set()
    await wait_all_tasks_blocked()
    world.store.release()
    await wait_all_tasks_blocked()
    assert [entry.body for entry in world.edge.received("alice")] == ["crew", "m1", "m2", "m3"]
    assert world.nothing_waits


async def test_commands_of_one_origin_keep_their_order_when_two_barriers_follow_each_other(world, alice, bob):
    group = await world.group(alice, "bob")
    world.store.held = True
    world.owner.submit(bob, Rename(90, group, "r1", "crew"))
    world.send(alice, group, "m1", attempt=2)
    world.owner.submit(bob, Rename(91, group, "r2", "gang"))
    world.send(alice, group, "m2")
    world.store.gate = trio.Event()
    await wait_all_tasks_blocked()
    world.store.answer()
    await wait_all_tasks_blocked()
    world.send(alice, group, "m3")
    world.store.gate.set()
    await wait_all_tasks_blocked()
    world.store.release()
    await wait_all_tasks_blocked()
    assert [entry.body for entry in world.edge.received("alice")] == ["crew", "gang", "m1", "m2", "m3"]
    assert world.nothing_waits


async def test_what_is_given_back_in_a_handover_comes_behind_a_lookup_that_was_under_way(
    world, alice, nursery, autojump_clock
):
    group = await world.group(alice, "bob")
    world.store.gate = trio.Event()
    sent = [world.send(alice, group, "m1", attempt=2), world.send(alice, group, "m2")]
    await wait_all_tasks_blocked()
    world.ownership.current = None
    nursery.start_soon(world.owner.release, lambda _: True)
    await wait_all_tasks_blocked()
    sent.append(world.send(alice, group, "m3"))
    world.store.gate.set()
    await trio.sleep(1)
    assert [each.command for each in world.edge.log if isinstance(each, GivenBack)] == sent
    assert world.owner.conversations_loaded == 0


async def test_commands_of_one_origin_keep_their_order_when_the_store_writes_nothing_during_a_lookup(world, alice, bob):
    group = await world.group(alice, "bob")
    world.store.gate = trio.Event()
    world.send(alice, group, "m1", attempt=2)
    world.send(alice, group, "m2")
    await wait_all_tasks_blocked()
    world.store.verdicts.append(NotWritten("no room"))
    world.send(bob, group, "b1")
    await wait_all_tasks_blocked()
    assert [error.code for error in world.edge.errors] == [ErrorCode.UNAVAILABLE]
    world.send(alice, group, "m3")
    world.store.gate.set()
    await wait_all_tasks_blocked()
    assert [entry.body for entry in world.edge.received("alice")] == ["m1", "m2", "m3"]
    assert world.nothing_waits
