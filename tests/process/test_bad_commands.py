"""Commands in good form that may not be, or cannot be: what each is answered, over real sockets."""

from collections.abc import Callable
from uuid import uuid4

import pytest

from bench.processes import NodeProcess
from protocol import limits
from protocol.errors import ErrorCode
from protocol.frames import (
    AddMembers,
    ConversationKind,
    ConversationReply,
    CreateConversation,
    ErrorReply,
    Frame,
    GetConversation,
    History,
    HistoryPage,
    MarkReceipt,
    Ok,
    RemoveMembers,
    Rename,
    Send,
    SendAck,
    Sync,
    SyncPage,
    Typing,
)
from tests.process.wire import Wire, connected

pytestmark = pytest.mark.process

NOWHERE = "d" + "A" * 24


def _name() -> str:
    return uuid4().hex


async def _group(wire: Wire, *others: str) -> str:
    command = CreateConversation(0, ConversationKind.GROUP, list(others), _name(), "a group")
    return (await wire.ask(command, ConversationReply)).conversation.conversation_id


async def test_bodies_and_metadata_have_limits(node: NodeProcess) -> None:
    async with connected(node, "ann") as wire:
        conversation = await wire.create_direct("ben")

        async def refused(body: str, metadata: dict[str, str] | None = None) -> ErrorReply:
            return await wire.ask(Send(0, conversation, _name(), body, metadata), ErrorReply)

        assert (await refused("")).code == ErrorCode.BODY_EMPTY
        reply = await refused("x" * (limits.BODY_CHARS_MAX + 1))
        assert reply.code == ErrorCode.TOO_LONG
        assert "4001" in reply.message.replace(",", "")
        assert "4000" in reply.message.replace(",", "")
        assert (await refused("x", {f"k{n}": "v" for n in range(17)})).code == ErrorCode.TOO_LONG
        assert (await refused("x", {"k" * 65: "v"})).code == ErrorCode.TOO_LONG
        assert (await refused("x", {"k": "v" * 513})).code == ErrorCode.TOO_LONG
        largest = {chr(0x1F600 + n) * 64: "\N{WATER WAVE}" * 512 for n in range(16)}
        assert (await wire.ask(Send(0, conversation, _name(), "\N{WATER WAVE}" * 4000, largest), SendAck)).seq == 2


async def test_a_conversation_one_is_not_in_cannot_be_told_from_none(node: NodeProcess) -> None:
    async with connected(node, "ann") as inside, connected(node, "eve") as outside:
        foreign = await _group(inside, "ben")
        commands: list[Callable[[str], Frame]] = [
            lambda where: Send(0, where, _name(), "hello"),
            lambda where: Send(0, where, _name(), "hello", attempt=2),
            lambda where: AddMembers(0, where, _name(), ["eve"]),
            lambda where: RemoveMembers(0, where, _name(), ["ann"]),
            lambda where: Rename(0, where, _name(), "mine"),
            lambda where: MarkReceipt(0, where, 1, 1),
            lambda where: MarkReceipt(0, where, 99, 99),
            lambda where: Typing(0, where),
            lambda where: History(0, where),
            lambda where: History(0, where, after_seq=99),
            lambda where: GetConversation(0, where),
        ]
        for command in commands:
            answers = [await outside.ask(command(where), ErrorReply) for where in (foreign, NOWHERE)]
            assert answers[0].code == ErrorCode.NOT_FOUND, command(foreign)
            one, other = ((a.code, a.message.replace(w, ""), a.retry_after_ms)
                          for a, w in zip(answers, (foreign, NOWHERE), strict=True))  # fmt: skip
            assert one == other
        page = await outside.ask(Sync(0, {foreign: 0, NOWHERE: 5}, only_named=True), SyncPage)
        assert {item.conversation_id: item for item in page.conversations}.keys() == {foreign, NOWHERE}
        for item in page.conversations:
            assert (item.removed, item.head_seq, item.read_seq, item.entries, item.has_more) == (True, 0, 0, [], False)


async def test_who_was_removed_is_outside(node: NodeProcess) -> None:
    async with connected(node, "ann") as ann, connected(node, "fay") as fay:
        conversation = await _group(ann, "fay")
        assert (await fay.push()).conversation_id == conversation
        await ann.ask(RemoveMembers(0, conversation, _name(), ["fay"]), SendAck)
        assert (await fay.push()).conversation_id == conversation  # the removal itself
        await ann.ask(Send(0, conversation, _name(), "she is gone"), SendAck)
        assert (await fay.ask(History(0, conversation), ErrorReply)).code == ErrorCode.NOT_FOUND
        assert (await fay.ask(Send(0, conversation, _name(), "no"), ErrorReply)).code == ErrorCode.NOT_FOUND
        assert not fay.pushes


async def test_a_seq_beyond_the_head_is_refused_and_the_head_named(node: NodeProcess) -> None:
    async with connected(node, "ann") as wire:
        conversation = await _group(wire, "gus")
        head = (await wire.ask(Send(0, conversation, _name(), "two"), SendAck)).seq
        assert head == 2
        for command in (
            History(0, conversation, after_seq=3),
            MarkReceipt(0, conversation, 3),
            MarkReceipt(0, conversation, 2, 3),
            Sync(0, {conversation: 3}, only_named=True),
        ):
            reply = await wire.ask(command, ErrorReply)
            assert reply.code == ErrorCode.BEYOND_HEAD, command
            assert "2" in reply.message, command
        assert await wire.ask(MarkReceipt(0, conversation, 2, 2), Ok)
        assert not (await wire.ask(History(0, conversation, after_seq=2), HistoryPage)).entries
        assert (await wire.ask(Sync(0, {conversation: 2}, only_named=True), SyncPage)).resumed


async def test_a_repeated_client_msg_id_with_another_body_says_so(node: NodeProcess) -> None:
    async with connected(node, "ann") as wire:
        conversation, name = await _group(wire, "hal"), _name()
        first = await wire.ask(Send(0, conversation, name, "one"), SendAck)
        again = await wire.ask(Send(0, conversation, name, "one", attempt=2), SendAck)
        assert (again.seq, again.time_us, again.duplicate) == (first.seq, first.time_us, True)
        for other in (
            Send(0, conversation, name, "another", attempt=2),
            Send(0, conversation, name, "one", {"k": "v"}),
            Rename(0, conversation, name, "one"),
        ):
            reply = await wire.ask(other, ErrorReply)
            assert reply.code == ErrorCode.CLIENT_MSG_ID_REUSED
            assert "client_msg_id" in reply.message
        assert (await wire.ask(Send(0, conversation, _name(), "two"), SendAck)).seq == first.seq + 1


async def test_what_only_groups_and_their_creators_may(node: NodeProcess) -> None:
    async with connected(node, "ann") as ann, connected(node, "ida") as ida:
        direct = await ann.create_direct("ida")
        for command in (
            AddMembers(0, direct, _name(), ["eve"]),
            RemoveMembers(0, direct, _name(), ["ida"]),
            Rename(0, direct, _name(), "ours"),
        ):
            assert (await ann.ask(command, ErrorReply)).code == ErrorCode.FORBIDDEN, command
        group = await _group(ann, "ida")
        reply = await ida.ask(RemoveMembers(0, group, _name(), ["ann"]), ErrorReply)
        assert reply.code == ErrorCode.FORBIDDEN
        assert await ida.ask(RemoveMembers(0, group, _name(), ["ida"]), SendAck)
        long = CreateConversation(0, ConversationKind.GROUP, ["ida"], _name(), "t" * (limits.TITLE_CHARS_MAX + 1))
        assert (await ann.ask(long, ErrorReply)).code == ErrorCode.TOO_LONG
        three = CreateConversation(0, ConversationKind.DIRECT, ["ida", "eve"], _name())
        assert (await ann.ask(three, ErrorReply)).code == ErrorCode.BAD_REQUEST
