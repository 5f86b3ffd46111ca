"""Typing: throttled, ends by itself, never in large groups, dropped under pressure."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.owner import typists
from protocol.errors import ErrorCode
from protocol.frames import Ok, RemoveMembers, Typing
from protocol.limits import TYPING_MEMBERS_MAX


def pushed(world):
    return [(signal.push.user, signal.push.typing) for signal in world.edge.signals]


async def test_typing_is_told_to_the_others_and_ends_by_itself(world, alice, autojump_clock):
    conversation_id = await world.group(alice, "bob", "carol")
    world.owner.submit(alice, Typing(0, conversation_id))
    assert sorted(world.edge.signals[0].recipients) == ["bob", "carol"]
    await trio.sleep(5.9)
    assert pushed(world) == [("alice", True)]
    await trio.sleep(0.2)
    assert pushed(world) == [("alice", True), ("alice", False)]
    await trio.sleep(60)
    assert len(world.edge.signals) == 2


async def test_one_push_per_3_s(world, alice, autojump_clock):
    conversation_id = await world.direct(alice, "bob")
    for _ in range(12):  # over 5.5 s
        world.owner.submit(alice, Typing(0, conversation_id))
        await trio.sleep(0.5)
    assert pushed(world) == [("alice", True)] * 2
    assert world.owner.counters.typing_throttled == 10
    await trio.sleep(6)
    assert pushed(world)[2:] == [("alice", False)]


async def test_stopping_is_told_once(world, alice, autojump_clock):
    conversation_id = await world.direct(alice, "bob")
    world.owner.submit(alice, Typing(0, conversation_id, typing=False))
    assert pushed(world) == []
    world.owner.submit(alice, Typing(0, conversation_id))
    world.owner.submit(alice, Typing(0, conversation_id, typing=False))
    world.owner.submit(alice, Typing(0, conversation_id, typing=False))
    world.owner.submit(alice, Typing(0, conversation_id))  # too soon
    assert pushed(world) == [("alice", True), ("alice", False)]
    await trio.sleep(20)
    assert len(world.edge.signals) == 2
    world.owner.submit(alice, Typing(0, conversation_id))
    assert len(world.edge.signals) == 3


async def test_each_user_and_conversation_has_its_own_throttle(world, alice, bob):
    one, two = await world.direct(alice, "bob"), await world.group(alice, "bob")
    for origin, conversation_id in ((alice, one), (bob, one), (alice, two)):
        world.owner.submit(origin, Typing(0, conversation_id))
    assert len(world.edge.signals) == 3


async def test_never_in_large_groups(world, alice):
    conversation_id = await world.group(alice, *(f"user{n}" for n in range(TYPING_MEMBERS_MAX)))
    assert await world.ask(alice, Typing(1, conversation_id)) == Ok(1)
    assert world.edge.signals == []
    assert world.owner.counters.typing_shed == 1


async def test_a_note_to_self_has_nobody_to_tell(world, alice):
    conversation_id = await world.direct(alice, "alice")
    world.owner.submit(alice, Typing(0, conversation_id))
    assert world.edge.signals == []


async def test_outsiders_do_not_type(world, alice, eve):
    conversation_id = await world.direct(alice, "bob")
    reply = await world.ask(eve, Typing(1, conversation_id))
    assert reply.code == ErrorCode.NOT_FOUND


async def test_who_was_removed_stops_typing_unseen(world, alice, bob, autojump_clock):
    conversation_id = await world.group(alice, "bob")
    world.owner.submit(bob, Typing(0, conversation_id))
    await world.ask(alice, RemoveMembers(1, conversation_id, "r1", ["bob"]))
    await trio.sleep(10)
    assert pushed(world) == [("bob", True)]


async def test_more_typists_than_fit_are_dropped_and_counted(world, alice, bob, monkeypatch, autojump_clock):
    monkeypatch.setattr(typists, "TYPISTS_MAX", 1)
    conversation_id = await world.direct(alice, "bob")
    world.owner.submit(alice, Typing(0, conversation_id))
    world.owner.submit(bob, Typing(0, conversation_id))
    assert pushed(world) == [("alice", True)]
    assert world.owner.counters.typing_shed == 1
    await trio.sleep(10)
    world.owner.submit(bob, Typing(0, conversation_id))
    assert pushed(world)[-1] == ("bob", True)


@pytest.mark.parametrize("gap_s", [0.5, 2.5])
async def test_ends_come_in_time_whatever_was_repeated(world, alice, bob, autojump_clock, gap_s):
    conversation_id = await world.direct(alice, "bob")
    world.owner.submit(alice, Typing(0, conversation_id))
    await trio.sleep(gap_s)
    world.owner.submit(bob, Typing(0, conversation_id))
    await trio.sleep(gap_s)
    world.owner.submit(alice, Typing(0, conversation_id))
    await trio.sleep(6 - gap_s + 0.01)
    assert pushed(world)[-1] == ("bob", False)
    await trio.sleep(gap_s)
    assert pushed(world)[-1] == ("alice", False)
    await wait_all_tasks_blocked()
