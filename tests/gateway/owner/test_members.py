"""Creating conversations, and who may change what."""

import hashlib
from base64 import urlsafe_b64encode

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.owner.members import direct_id, group_id
from protocol.errors import ErrorCode
from protocol.frames import (
    AddMembers,
    ConversationKind,
    ConversationReply,
    CreateConversation,
    EntryKind,
    GetConversation,
    Ok,
    RemoveMembers,
    Rename,
    Send,
    SendAck,
)
from store.entries import MemberRecord
from store.interface import NotWritten, OutcomeUnknown, Unavailable
from tests.fakes.edge import FakeOrigin
from tests.fakes.memory_store import LostAnswer

DIRECT, GROUP = ConversationKind.DIRECT, ConversationKind.GROUP


def create(kind, *members, title="", client_msg_id="c1", request_id=1):
    return CreateConversation(request_id, kind, list(members), client_msg_id, title)


def test_ids_are_digests_of_what_makes_a_conversation_one():
    assert direct_id("alice", "bob") == direct_id("bob", "alice")
    assert direct_id("a", "bc") != direct_id("ab", "c")
    assert len({len(direct_id("a", "b")), len(group_id("a", "b")), 25}) == 1
    assert direct_id("a", "b")[0] == "d"
    assert group_id("a", "b")[0] == "g"
    digest = hashlib.sha256(b"\x00\x00\x00\x05alice\x00\x00\x00\x03bob").digest()
    assert direct_id("bob", "alice") == "d" + urlsafe_b64encode(digest).decode()[:24]


async def test_creating_a_group_delivers_its_first_entry_to_all_members(world, alice):
    reply = await world.ask(alice, create(GROUP, "bob", "carol", "bob", title="team"))
    assert isinstance(reply, ConversationReply)
    assert reply.created
    conversation = reply.conversation
    assert (conversation.title, conversation.head_seq, conversation.member_count) == ("team", 1, 3)
    assert [member.user for member in conversation.members] == ["alice", "bob", "carol"]
    (delivery,) = world.edge.deliveries
    assert set(delivery.recipients) == {"alice", "bob", "carol"}
    assert delivery.origins == [alice]
    (entry,) = world.edge.entries
    assert (entry.seq, entry.kind, entry.body, entry.users) == (1, EntryKind.CREATED, "team", ["alice", "bob", "carol"])


async def test_creating_again_finds_it(world, alice):
    first = await world.ask(alice, create(GROUP, "bob", title="team"))
    second = await world.ask(alice, create(GROUP, "bob", title="team"))
    assert first.created
    assert not second.created
    assert first.conversation == second.conversation
    other = await world.ask(alice, create(GROUP, "bob", title="other"))
    assert other.code == ErrorCode.CLIENT_MSG_ID_REUSED
    third = await world.ask(alice, create(GROUP, "bob", title="other", client_msg_id="c2"))
    assert third.created


async def test_a_direct_conversation_is_the_same_for_both(world, alice, bob):
    first = await world.ask(alice, create(DIRECT, "bob"))
    second = await world.ask(bob, create(DIRECT, "alice", client_msg_id="other"))
    assert first.created
    assert not second.created
    assert first.conversation.conversation_id == second.conversation.conversation_id
    assert first.conversation.title == ""


async def test_both_may_create_it_at_once(world, alice, bob):
    world.owner.submit(alice, create(DIRECT, "bob"))
    world.owner.submit(bob, create(DIRECT, "alice"))
    await wait_all_tasks_blocked()
    assert [reply.created for reply in world.edge.replies] == [True, False]


@pytest.mark.parametrize("members", [[], ["alice"]])
async def test_a_note_to_self(world, alice, members):
    reply = await world.ask(alice, create(DIRECT, *members))
    assert reply.conversation.member_count == 1
    ack = await world.ask(alice, Send(2, reply.conversation.conversation_id, "m1", "milk"))
    assert ack.seq == 2
    assert list(world.edge.deliveries[-1].recipients) == ["alice"]


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (create(DIRECT, "bob", "carol"), ErrorCode.BAD_REQUEST, ["2"]),
        (create(DIRECT, "bob", title="us"), ErrorCode.BAD_REQUEST, ["title"]),
        (create(GROUP, "bob", title="t" * 201), ErrorCode.TOO_LONG, ["201", "200"]),
        (create(GROUP, "b", "c", "d", "e"), ErrorCode.MEMBERS_LIMIT, ["5", "4"]),
    ],
)
async def test_what_cannot_be_created(start_world, alice, command, code, words):
    world = await start_world(group_members_max=4)
    reply = await world.ask(alice, command)
    assert reply.code == code
    assert all(word in reply.message for word in words)
    assert world.store.logs == {}
    assert world.nothing_waits


async def test_commands_around_a_creation_keep_their_order(world, alice):
    conversation_id = direct_id("alice", "bob")
    world.owner.submit(alice, Send(1, conversation_id, "m1", "too early"))
    world.owner.submit(alice, create(DIRECT, "bob", request_id=2))
    world.owner.submit(alice, Send(3, conversation_id, "m2", "just right"))
    await wait_all_tasks_blocked()
    assert [reply.id for reply in world.edge.replies] == [1, 2, 3]
    assert world.edge.replies[0].code == ErrorCode.NOT_FOUND
    assert [entry.seq for entry in world.edge.entries] == [1, 2]
    assert world.nothing_waits


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        (NotWritten("disk full"), ErrorCode.UNAVAILABLE),
        (Unavailable("no quorum"), ErrorCode.UNAVAILABLE),
        (OutcomeUnknown("no reply"), ErrorCode.OUTCOME_UNKNOWN),
        (LostAnswer("reply lost"), ErrorCode.OUTCOME_UNKNOWN),
    ],
)
async def test_a_creation_that_fails_may_be_repeated(world, alice, verdict, code):
    world.store.verdicts.append(verdict)
    command = create(GROUP, "bob", title="team")
    reply = await world.ask(alice, command)
    assert reply.code == code
    assert world.edge.deliveries == []
    repeat = await world.ask(alice, command)
    assert repeat.created is not isinstance(verdict, LostAnswer)
    assert [entry.seq for entry in world.edge.received("bob")] == [1]


async def test_a_store_that_cannot_be_read_makes_commands_retryable(world, alice):
    world.store.failing = Unavailable("disk gone")
    reply = await world.ask(alice, create(DIRECT, "bob"))
    assert reply.code == ErrorCode.UNAVAILABLE
    world.store.failing = None
    assert (await world.ask(alice, create(DIRECT, "bob"))).created


async def test_loading_that_takes_too_long_is_retryable(world, alice, autojump_clock):
    world.store.gate = trio.Event()
    world.owner.submit(alice, create(DIRECT, "bob"))
    await trio.sleep(6)
    assert [error.code for error in world.edge.errors] == [ErrorCode.OUTCOME_UNKNOWN]
    assert world.owner.conversations_loaded == 0


async def test_who_is_added_gets_the_entry_that_added_and_all_later(world, alice):
    conversation_id = await world.group(alice, "bob")
    world.send(alice, conversation_id, "before")
    world.owner.submit(alice, AddMembers(1, conversation_id, "a1", ["carol", "bob", "carol"]))
    world.send(alice, conversation_id, "after")
    await wait_all_tasks_blocked()
    assert [entry.seq for entry in world.edge.received("carol")] == [3, 4]
    assert [entry.seq for entry in world.edge.received("bob")] == [2, 3, 4]
    assert world.edge.received("carol")[0].users == ["carol"]


async def test_who_is_removed_gets_the_removal_and_nothing_later(world, alice, bob):
    conversation_id = await world.group(alice, "bob", "carol")
    world.send(alice, conversation_id, "before")
    world.owner.submit(alice, RemoveMembers(1, conversation_id, "r1", ["bob", "mallory"]))
    world.send(alice, conversation_id, "after")
    world.send(bob, conversation_id, "too late")
    await wait_all_tasks_blocked()
    assert [entry.seq for entry in world.edge.received("bob")] == [2, 3]
    assert world.edge.received("carol")[1].users == ["bob"]
    assert [error.code for error in world.edge.errors] == [ErrorCode.NOT_FOUND]
    assert [entry.body for entry in world.edge.received("carol")] == ["before", "", "after"]


async def test_a_removal_that_is_not_written_removes_nobody(world, alice, bob):
    conversation_id = await world.group(alice, "bob")
    world.store.verdicts.append(NotWritten("disk full"))
    world.owner.submit(alice, RemoveMembers(1, conversation_id, "r1", ["bob"]))
    world.send(bob, conversation_id, "still here")
    await wait_all_tasks_blocked()
    assert [error.code for error in world.edge.errors] == [ErrorCode.UNAVAILABLE]
    assert [entry.body for entry in world.edge.received("bob")] == ["still here"]


async def test_only_the_creator_removes_others(world, alice, bob):
    conversation_id = await world.group(alice, "bob", "carol")
    for users in (["carol"], ["bob", "carol"], ["alice"]):
        reply = await world.ask(bob, RemoveMembers(1, conversation_id, "r1", users))
        assert reply.code == ErrorCode.FORBIDDEN
    assert isinstance(await world.ask(bob, RemoveMembers(1, conversation_id, "r1", ["bob"])), SendAck)


async def test_the_last_member_may_leave(world, alice):
    conversation_id = await world.group(alice)
    reply = await world.ask(alice, RemoveMembers(1, conversation_id, "r1", ["alice"]))
    assert isinstance(reply, SendAck)
    assert (await world.ask(alice, GetConversation(2, conversation_id))).code == ErrorCode.NOT_FOUND


async def test_changes_that_change_nothing_are_done_at_once(world, alice):
    conversation_id = await world.group(alice, "bob", title="team")
    for command in (
        AddMembers(1, conversation_id, "a1", ["bob"]),
        RemoveMembers(2, conversation_id, "r1", ["carol"]),
        Rename(3, conversation_id, "n1", "team"),
    ):
        assert await world.ask(alice, command) == Ok(command.id)
    assert len(world.store.logs[conversation_id].entries) == 1


async def test_a_group_has_a_limit(start_world, alice):
    world = await start_world(group_members_max=3)
    conversation_id = await world.group(alice, "bob")
    reply = await world.ask(alice, AddMembers(1, conversation_id, "a1", ["carol", "dave"]))
    assert reply.code == ErrorCode.MEMBERS_LIMIT
    assert "4" in reply.message
    assert "3" in reply.message
    assert isinstance(await world.ask(alice, AddMembers(1, conversation_id, "a2", ["carol", "bob"])), SendAck)


async def test_renaming(world, alice, bob):
    conversation_id = await world.group(alice, "bob", title="team")
    assert (await world.ask(bob, Rename(1, conversation_id, "n1", "t" * 201))).code == ErrorCode.TOO_LONG
    assert isinstance(await world.ask(bob, Rename(1, conversation_id, "n1", "crew")), SendAck)
    reply = await world.ask(alice, GetConversation(2, conversation_id))
    assert reply.conversation.title == "crew"
    assert world.store.logs[conversation_id].title == "crew"


@pytest.mark.parametrize(
    "command",
    [
        AddMembers(1, "", "a1", ["carol"]),
        RemoveMembers(1, "", "r1", ["alice"]),
        Rename(1, "", "n1", "us"),
    ],
)
async def test_direct_conversations_do_not_change(world, alice, command):
    command.conversation_id = await world.direct(alice, "bob")
    reply = await world.ask(alice, command)
    assert reply.code == ErrorCode.FORBIDDEN


NOBODY = ("bob\n", "b\0b", "bob\u200b", "\u202ebob", "\ue000", "bob\u00a0", "\u2028")
"""What nobody can be called: a token with such a ``sub`` is refused."""


@pytest.mark.parametrize("kind", ConversationKind)
@pytest.mark.parametrize("name", NOBODY)
async def test_nobody_is_created_with_who_cannot_be_a_user(world, alice, kind, name):
    reply = await world.ask(alice, create(kind, name))
    assert reply.code == ErrorCode.BAD_REQUEST
    assert repr(name) in reply.message
    assert "printable" in reply.message
    assert world.store.logs == {}


@pytest.mark.parametrize("begin", ["group", "channel"])
@pytest.mark.parametrize("name", NOBODY)
async def test_nobody_is_added_who_cannot_be_a_user(world, alice, begin, name):
    conversation_id = await getattr(world, begin)(alice, "bob")
    reply = await world.ask(alice, AddMembers(1, conversation_id, "a1", ["carol", name]))
    assert reply.code == ErrorCode.BAD_REQUEST
    assert repr(name) in reply.message
    assert isinstance(await world.ask(alice, RemoveMembers(2, conversation_id, "r1", [name])), Ok)
    assert len(world.store.logs[conversation_id].entries) == 1


async def test_a_member_of_old_who_could_not_be_added_any_more_can_be_removed(world, alice):
    conversation_id = await world.group(alice, "bob")
    conversation = world.owner._find(conversation_id)
    conversation.members["bob\n"] = MemberRecord("bob\n", joined_seq=1)
    assert isinstance(await world.ask(alice, AddMembers(1, conversation_id, "a1", ["bob\n", "bob"])), Ok)
    assert isinstance(await world.ask(alice, RemoveMembers(2, conversation_id, "r1", ["bob\n"])), SendAck)


async def test_outsiders_change_nothing(world, alice, eve):
    conversation_id = await world.group(alice, "bob")
    for command in (
        AddMembers(1, conversation_id, "a1", ["eve"]),
        RemoveMembers(1, conversation_id, "r1", ["bob"]),
        RemoveMembers(1, conversation_id, "r2", ["eve"]),
        Rename(1, conversation_id, "n1", "mine"),
        GetConversation(1, conversation_id),
    ):
        inside = await world.ask(eve, command)
        assert inside.code == ErrorCode.NOT_FOUND
    assert len(world.store.logs[conversation_id].entries) == 1


async def test_memory_is_bounded_and_what_was_forgotten_comes_back(start_world, alice, autojump_clock):
    world = await start_world(loaded_conversations_max=16)
    ids = []
    for n in range(40):
        ids.append(await world.direct(alice, f"user{n}"))
        await trio.sleep(world.settings.receipt_delay_s + 0.1)  # what is not saved yet stays in memory
    assert world.owner.conversations_loaded <= 16
    assert world.owner.counters.evicted >= 24
    for conversation_id in ids:
        assert (await world.ask(alice, Send(1, conversation_id, "m1", "hi"))).seq == 2


async def test_what_is_under_way_is_never_forgotten(start_world, alice):
    world = await start_world(loaded_conversations_max=16)
    ids = [await world.direct(alice, f"user{n}") for n in range(16)]
    world.store.held = True
    for conversation_id in ids:
        world.send(alice, conversation_id, "m1")
    await wait_all_tasks_blocked()
    await world.direct(FakeOrigin("carol"), "dave")
    world.store.release()
    await wait_all_tasks_blocked()
    assert [reply.seq for reply in world.edge.replies_to(alice)] == [2] * 16
