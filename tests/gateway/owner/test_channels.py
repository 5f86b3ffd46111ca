"""Channels: an owner that does not know all members, and asks about those it meets."""

import pytest
import trio
from msgspec.structs import replace
from trio.testing import wait_all_tasks_blocked

from gateway.broker import followers_of, is_channel
from gateway.owner import census
from protocol.codec import decode_entry
from protocol.errors import ErrorCode
from protocol.frames import (
    AddMembers,
    ConversationKind,
    ConversationReply,
    CreateConversation,
    EntryKind,
    ErrorReply,
    GetConversation,
    History,
    HistoryPage,
    ListMembers,
    MarkReceipt,
    Member,
    MembersPage,
    Ok,
    RemoveMembers,
    Send,
    SendAck,
    Typing,
)
from store.interface import Unavailable
from tests.fakes.edge import FakeOrigin
from tests.fakes.memory_store import LostAnswer


@pytest.fixture
async def again(start_world, world):
    """An owner that takes over what ``world`` made, and knows no member of it."""

    async def start(**settings):
        return await start_world(world.store, **settings)

    return start


def recipients(world):
    return [tuple(delivery.recipients) for delivery in world.edge.deliveries]


async def test_a_channel_is_created_and_its_first_members_are_told(world, alice):
    command = CreateConversation(1, ConversationKind.CHANNEL, ["bob", "carol"], "c1", "news")
    reply = await world.ask(alice, command)
    assert isinstance(reply, ConversationReply)
    made = reply.conversation
    assert is_channel(made.conversation_id)
    assert (made.kind, made.title, made.members, made.member_count) == (ConversationKind.CHANNEL, "news", [], 3)
    assert made.read_seq == 1
    assert recipients(world) == [(followers_of(made.conversation_id), "alice", "bob", "carol")]
    same = await world.ask(alice, command)
    assert (same.created, same.conversation.conversation_id) == (False, made.conversation_id)


async def test_entries_go_to_the_followers_without_naming_them(world, alice, bob):
    channel = await world.channel(alice, "bob")
    world.send(alice, channel, "m1")
    world.send(bob, channel, "m2")
    await wait_all_tasks_blocked()
    assert recipients(world) == [(followers_of(channel),)]
    assert [entry.body for entry in world.edge.entries] == ["m1", "m2"]
    assert "find_members" not in world.store.calls


async def test_a_member_whom_the_owner_does_not_know_is_looked_up_once(again, world, alice, bob):
    channel = await world.channel(alice, "bob")
    second = await again()
    for name in ("m1", "m2", "m3"):
        second.send(bob, channel, name)
    await wait_all_tasks_blocked()
    assert [type(reply) for reply in second.edge.replies_to(bob)] == [SendAck] * 3
    assert [entry.body for entry in second.edge.entries] == ["m1", "m2", "m3"]
    assert world.store.calls["find_members"] == 1
    assert second.owner.counters.member_lookups == 1


async def test_a_repeated_change_of_members_is_delivered_to_whom_it_concerns(again, world, alice):
    channel = await world.channel(alice, "bob")
    added, removed = AddMembers(1, channel, "m1", ["carol"]), RemoveMembers(2, channel, "m2", ["bob"])
    await world.ask(alice, added)
    await world.ask(alice, removed)
    second = await again()  # the first owner may have died before it had told them
    for command in (added, removed):
        await second.ask(alice, replace(command, attempt=2))
    assert [entry.seq for entry in second.edge.received("carol")] == [2]
    assert [entry.seq for entry in second.edge.received("bob")] == [3]


async def test_a_stranger_is_looked_up_once_and_told_what_all_strangers_are(again, world, alice, eve):
    channel = await world.channel(alice, "bob")
    second = await again()
    for command in (
        Send(1, channel, "x", "x"),
        History(2, channel),
        GetConversation(3, channel),
        ListMembers(4, channel),
        MarkReceipt(5, channel, 1),
        Typing(6, channel),
        AddMembers(7, channel, "x", ["eve"]),
        RemoveMembers(8, channel, "x", ["eve"]),
    ):
        reply = await second.ask(eve, command)
        assert isinstance(reply, ErrorReply)
        assert reply.code == ErrorCode.NOT_FOUND
    assert world.store.calls["find_members"] == 1
    assert second.owner.excludes(channel, "eve")
    assert not second.owner.excludes(channel, "bob")


async def test_commands_of_others_go_on_while_somebody_is_looked_up(again, world, alice, bob):
    channel = await world.channel(alice, "bob")
    second = await again()
    await second.ask(alice, GetConversation(1, channel))
    world.store.gate = trio.Event()
    second.send(bob, channel, "of bob")
    second.owner.submit(bob, GetConversation(99, channel))
    second.send(alice, channel, "of alice")
    await wait_all_tasks_blocked()
    assert [entry.body for entry in second.edge.entries] == ["of alice"]
    assert not second.edge.replies_to(bob)
    world.store.gate.set()
    world.store.gate = None
    await wait_all_tasks_blocked()
    assert [entry.body for entry in second.edge.entries] == ["of alice", "of bob"]
    shown, sent = second.edge.replies_to(bob)
    assert (sent.seq, shown.id, shown.conversation.head_seq) == (3, 99, 2)  # asked for before that was durable


async def test_who_is_removed_while_being_looked_up_is_out(again, world, alice, bob):
    channel = await world.channel(alice, "bob")
    second = await again()
    await second.ask(alice, AddMembers(1, channel, "a1", ["carol"]))
    world.store.gate = trio.Event()
    second.owner.submit(bob, Send(2, channel, "m1", "too late"))  # the store's answer will be of before
    second.owner._find(channel).members["bob"] = (await _met(world, channel, "bob"))["bob"]
    second.owner.submit(alice, RemoveMembers(3, channel, "r1", ["bob"]))
    await wait_all_tasks_blocked()
    assert isinstance(second.edge.replies_to(alice)[-1], SendAck)
    world.store.gate.set()
    world.store.gate = None
    await wait_all_tasks_blocked()
    [refused] = second.edge.replies_to(bob)
    assert (refused.id, refused.code) == (2, ErrorCode.NOT_FOUND)


async def _met(world, channel, *users):
    return {user: world.store.logs[channel].members[user] for user in users}


async def test_members_come_and_go_and_are_counted_and_their_nodes_are_told(again, world, alice, bob):
    channel = await world.channel(alice, "bob")
    second = await again(channel_members_max=5)
    key = followers_of(channel)
    assert isinstance(await second.ask(bob, AddMembers(1, channel, "a1", ["bob", "carol", "dave", "carol"])), SendAck)
    assert isinstance(await second.ask(bob, AddMembers(2, channel, "a2", ["carol"])), Ok)
    assert isinstance(await second.ask(alice, RemoveMembers(3, channel, "r1", ["carol", "nobody"])), SendAck)
    assert recipients(second) == [(key, "carol", "dave"), (key, "carol")]
    described = await second.ask(alice, GetConversation(4, channel))
    assert (described.conversation.member_count, described.conversation.head_seq) == (3, 3)
    refused = await second.ask(alice, AddMembers(5, channel, "a3", ["u1", "u2", "u3"]))
    assert refused.code == ErrorCode.MEMBERS_LIMIT
    assert "the channel would have 6 members, at most 5 are allowed" in refused.message
    refused = await second.ask(bob, RemoveMembers(6, channel, "r2", ["dave"]))
    assert refused.code == ErrorCode.FORBIDDEN
    assert "the creator of a channel" in refused.message
    assert isinstance(await second.ask(bob, RemoveMembers(7, channel, "r3", ["bob"])), SendAck)
    assert (await second.ask(bob, History(8, channel))).code == ErrorCode.NOT_FOUND


async def test_receipts_are_kept_and_pushed_to_nobody(autojump_clock, again, world, alice, bob):
    channel = await world.channel(alice, "bob")
    second = await again()
    assert isinstance(await second.ask(bob, MarkReceipt(1, channel, 1, 1)), Ok)
    assert second.owner.pointers(channel, "bob") == (1, 1)
    assert isinstance(await second.ask(bob, Typing(2, channel)), Ok)
    await trio.sleep(3)
    member = world.store.logs[channel].members["bob"]
    assert (member.delivered_seq, member.read_seq) == (1, 1)
    assert second.edge.signals == []
    assert second.owner.counters.typing_shed == 1
    assert second.owner.counters.receipts_unpushed == 1


async def test_what_is_not_saved_yet_is_not_forgotten_with_its_member(again, world, alice, bob, monkeypatch):
    channel = await world.channel(alice, "bob", "carol")
    second = await again(receipt_delay_s=2)
    assert isinstance(await second.ask(bob, MarkReceipt(1, channel, 1, 1)), Ok)
    monkeypatch.setattr(census, "KNOWN_MEMBERS_MAX", 2)
    await second.ask(alice, GetConversation(2, channel))
    await second.ask(FakeOrigin("carol"), GetConversation(9, channel))
    assert "bob" not in second.owner._find(channel).members
    assert second.owner.pointers(channel, "bob") == (1, 1)
    shown = await second.ask(bob, GetConversation(3, channel))
    assert shown.conversation.read_seq == 1


async def test_only_so_many_are_remembered(again, world, alice, monkeypatch):
    names = [f"user{number}" for number in range(30)]
    channel = await world.channel(alice, *names)
    second = await again()
    monkeypatch.setattr(census, "KNOWN_MEMBERS_MAX", 8)
    for name in (*names, *(f"stranger{number}" for number in range(30))):
        await second.ask(FakeOrigin(name), GetConversation(1, channel))
    conversation = second.owner._find(channel)
    assert len(conversation.members) <= 8
    assert len(conversation.outsiders) <= 8
    assert conversation.member_count == 31


async def test_members_are_listed_by_pages_for_members(world, alice, bob):
    for make in (world.group, world.channel):
        conversation_id = await make(alice, "carol", "bob", "dave")
        await world.ask(bob, MarkReceipt(1, conversation_id, 1, 1))
        page = await world.ask(bob, ListMembers(2, conversation_id, limit=2))
        assert page == MembersPage(2, conversation_id, [Member("alice", 1, 1), Member("bob", 1, 1)], has_more=True)
        page = await world.ask(bob, ListMembers(3, conversation_id, after="bob", limit=2))
        assert page == MembersPage(3, conversation_id, [Member("carol"), Member("dave")], has_more=False)


async def test_a_group_too_large_to_name_all_members_has_them_by_pages_only(start_world, alice):
    world = await start_world(group_members_max=2_000)
    group = await world.group(alice, *(f"u{number}" for number in range(255)))
    for page in range(4):
        users = [f"v{page}-{number}" for number in range(256)]
        assert isinstance(await world.ask(alice, AddMembers(1, group, f"a{page}", users)), SendAck)
    shown = (await world.ask(alice, GetConversation(2, group))).conversation
    assert (shown.members, shown.member_count) == ([], 1_280)


async def test_when_the_store_does_not_say_who_is_in_nothing_is_judged(again, world, alice, bob):
    channel = await world.channel(alice, "bob")
    second = await again()
    await second.ask(alice, GetConversation(1, channel))
    world.store.failing = Unavailable("no quorum")
    refused = await second.ask(bob, Send(2, channel, "m1", "m1"))
    assert refused.code == ErrorCode.UNAVAILABLE
    assert "who is in the channel (no quorum)" in refused.message
    world.store.failing = None
    assert isinstance(await second.ask(bob, Send(3, channel, "m1", "m1", attempt=2)), SendAck)


async def test_who_takes_over_tells_again_who_joined_and_left(start_world, world, alice):
    channel = await world.channel(alice, "bob")
    await world.ask(alice, AddMembers(1, channel, "a1", ["carol"]))
    world.send(alice, channel, "m1")
    await wait_all_tasks_blocked()
    await world.ask(alice, RemoveMembers(2, channel, "r1", ["bob"]))
    world.ownership.current = None
    second = await start_world(world.store)
    second.ownership.current = 2
    assert isinstance(await second.ask(alice, History(3, channel)), HistoryPage)
    told = [(tuple(each.recipients), decode_entry(each.entries[0]).kind) for each in second.edge.deliveries]
    assert told == [
        (("alice", "bob"), EntryKind.CREATED),
        (("carol",), EntryKind.MEMBERS_ADDED),
        (("bob",), EntryKind.MEMBERS_REMOVED),
    ]


async def test_a_creation_whose_answer_was_lost_is_told_to_the_first_members_by_its_repeat(world, alice):
    world.store.verdicts.append(LostAnswer("the answer was lost"))
    command = CreateConversation(1, ConversationKind.CHANNEL, ["bob"], client_msg_id="create", title="news")
    refused = await world.ask(alice, command)
    assert refused.code == ErrorCode.OUTCOME_UNKNOWN
    reply = await world.ask(alice, command)
    (delivery,) = world.edge.deliveries
    assert set(delivery.recipients) == {followers_of(reply.conversation.conversation_id), "alice", "bob"}
