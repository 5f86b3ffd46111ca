"""Handing conversations over to another owner, and losing them all."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.errors import ErrorCode
from protocol.frames import AddMembers, ErrorReply, GetConversation, History, MarkReceipt, SendAck, Typing
from store.interface import NotWritten, OutcomeUnknown
from tests.fakes.edge import FakeOrigin, GivenBack


def given_back(world: Any) -> list[object]:
    return [each.command for each in world.edge.log if isinstance(each, GivenBack)]


async def read_by_bob(world: Any, alice: FakeOrigin) -> str:
    """A conversation with bob, whose receipt is not saved yet."""
    conversation_id: str = await world.direct(alice, "bob")
    await world.ask(FakeOrigin("bob"), MarkReceipt(5, conversation_id, 1, 1))
    return conversation_id


async def test_what_is_under_way_is_acknowledged_and_what_comes_later_given_back(
    world, alice: FakeOrigin, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    leaving = await world.direct(alice, "bob")
    staying = await world.direct(alice, "carol")
    world.store.held = True
    first = world.send(alice, leaving, "m1")
    await wait_all_tasks_blocked()
    world.ownership.current = None
    released = trio.Event()

    async def release() -> None:
        await world.owner.release(lambda conversation_id: conversation_id == leaving)
        released.set()

    nursery.start_soon(release)
    await trio.sleep(1)
    assert not released.is_set(), "an append is pending"
    second = world.send(alice, leaving, "m2")
    assert given_back(world) == [second]
    third = world.send(alice, staying, "m3")
    world.store.release()
    await released.wait()
    assert [reply.id for reply in world.edge.replies if isinstance(reply, SendAck)] == [first.id, third.id]
    fourth = world.send(alice, leaving, "m4")
    assert given_back(world) == [second, fourth], "forgotten, and not loaded again"


async def test_what_waits_behind_a_barrier_is_given_back_in_order(
    world, alice: FakeOrigin, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    group = await world.group(alice, "bob")
    world.store.held = True
    world.owner.submit(alice, AddMembers(90, group, "add-1", ["carol"]))
    behind = [world.send(alice, group, f"m{number}") for number in range(3)]
    await wait_all_tasks_blocked()
    nursery.start_soon(world.owner.release, lambda _: True)
    await wait_all_tasks_blocked()
    assert given_back(world) == behind
    later = world.send(alice, group, "m4")
    world.store.release()
    await trio.sleep(1)
    assert given_back(world) == [*behind, later]
    assert world.nothing_waits
    assert world.owner.conversations_loaded == 0


async def test_receipts_are_saved_before_the_next_owner_loads(
    world, alice: FakeOrigin, autojump_clock: MockClock
) -> None:
    conversation_id = await read_by_bob(world, alice)
    await world.owner.release(lambda _: True)
    loaded = await world.store.take_over(conversation_id, 2, 16)
    assert loaded is not None
    assert loaded.members["bob"].read_seq == 1


async def test_receipts_that_the_store_refuses_once_are_saved_before_the_next_owner_loads(
    world, alice: FakeOrigin, autojump_clock: MockClock
) -> None:
    conversation_id = await read_by_bob(world, alice)
    world.store.receipt_verdicts.append(OutcomeUnknown("timeout"))
    await world.owner.release(lambda _: True)
    assert world.store.logs[conversation_id].members["bob"].read_seq == 1


async def test_receipts_are_saved_though_memory_has_let_go_of_the_conversation(
    world, alice: FakeOrigin, autojump_clock: MockClock
) -> None:
    conversation_id = await read_by_bob(world, alice)
    world.store.verdicts.append(NotWritten("disk full"))
    world.send(alice, conversation_id, "lost")
    await wait_all_tasks_blocked()
    assert world.owner.conversations_loaded == 0
    await world.owner.release(lambda _: True)
    assert world.store.logs[conversation_id].members["bob"].read_seq == 1


async def test_receipts_that_the_store_goes_on_to_refuse_hold_up_no_release(
    world, alice: FakeOrigin, autojump_clock: MockClock
) -> None:
    conversation_id = await read_by_bob(world, alice)
    world.store.receipt_verdicts.extend([OutcomeUnknown("timeout")] * 10)
    with trio.fail_after(1):
        await world.owner.release(lambda _: True)
    assert world.owner.conversations_loaded == 0
    await trio.sleep(60)
    assert world.store.logs[conversation_id].members["bob"].read_seq == 1, "they come later"


async def test_a_release_that_is_called_off_leaves_all_in_use(
    world, alice: FakeOrigin, autojump_clock: MockClock
) -> None:
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    world.send(alice, conversation_id, "m1")
    await wait_all_tasks_blocked()
    with trio.move_on_after(5):
        await world.owner.release(lambda _: True)
    world.send(alice, conversation_id, "m2")
    await wait_all_tasks_blocked()
    world.store.release()
    await wait_all_tasks_blocked()
    assert [reply.seq for reply in world.edge.replies if isinstance(reply, SendAck)] == [2, 3]
    assert given_back(world) == []


@pytest.mark.parametrize("user", ["alice", "carol"])
async def test_nobody_is_answered_from_a_memory_that_may_be_old(world, alice: FakeOrigin, user: str) -> None:
    conversation_id = await world.direct(alice, "bob")
    world.ownership.sure = False
    commands = [
        History(7, conversation_id),
        GetConversation(8, conversation_id),
        MarkReceipt(9, conversation_id, 1, 1),
        MarkReceipt(10, conversation_id, 99),
        Typing(11, conversation_id),
    ]
    for command in commands:
        world.owner.submit(FakeOrigin(user), command)
    assert given_back(world) == commands
    assert len(world.edge.log) == len(commands), "neither a reply nor a push"


async def test_nothing_is_pushed_to_members_whom_only_an_old_memory_knows(
    world, alice: FakeOrigin, autojump_clock: MockClock
) -> None:
    conversation_id = await world.direct(alice, "bob")
    bob = FakeOrigin("bob")
    world.owner.submit(bob, MarkReceipt(0, conversation_id, 1, 1))
    world.owner.submit(bob, Typing(0, conversation_id))
    world.edge.forget()
    world.ownership.sure = False
    await trio.sleep(10)
    assert world.store.logs[conversation_id].members["bob"].read_seq == 1, "it counts all the same"
    world.owner.tell_receipt_again(conversation_id, "bob")
    assert world.edge.log == []


async def test_who_was_found_dead_acknowledges_nothing_more(world, alice: FakeOrigin) -> None:
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    world.send(alice, conversation_id, "m1")
    await wait_all_tasks_blocked()
    world.ownership.current = None
    world.owner.drop_all()
    world.store.release()
    await wait_all_tasks_blocked()
    (reply,) = world.edge.replies
    assert isinstance(reply, ErrorReply)
    assert reply.code == ErrorCode.OUTCOME_UNKNOWN
    assert world.edge.deliveries == []
    assert world.nothing_waits


async def test_a_conversation_that_could_not_be_loaded_keeps_nobody_waiting(
    world, alice: FakeOrigin, autojump_clock: MockClock
) -> None:
    world.store.gate = trio.Event()
    world.owner.submit(alice, GetConversation(7, "g-that-nobody-created"))
    await wait_all_tasks_blocked()
    world.ownership.current = None
    with trio.fail_after(2):
        async with trio.open_nursery() as releasing:
            releasing.start_soon(world.owner.release, lambda _: True)
            await wait_all_tasks_blocked()
            world.store.gate.set()
    (reply,) = world.edge.errors
    assert reply.code == ErrorCode.NOT_FOUND
    assert world.owner.conversations_loaded == 0


async def test_a_release_that_is_called_off_opens_nothing_that_is_not_loaded(
    start_world, alice: FakeOrigin, autojump_clock: MockClock
) -> None:
    before = await start_world()
    conversation_id = await before.direct(alice, "bob")
    world = await start_world(before.store)
    world.store.gate = trio.Event()
    first = world.send(alice, conversation_id, "m1")
    await wait_all_tasks_blocked()
    with trio.move_on_after(1):
        await world.owner.release(lambda _: True)
    second = world.send(alice, conversation_id, "m2")
    assert world.edge.log == []
    world.store.gate.set()
    await wait_all_tasks_blocked()
    assert [reply.id for reply in world.edge.replies if isinstance(reply, SendAck)] == [first.id, second.id]
    assert world.nothing_waits
