"""A group of ten thousand and a channel of a hundred thousand on a real node, with neighbours who chat meanwhile."""

from collections.abc import Iterator

import pytest

from bench.processes import NodeProcess
from protocol import limits
from protocol.codec import decode_entry
from protocol.frames import (
    AddMembers,
    ConversationKind,
    ConversationReply,
    CreateConversation,
    GetConversation,
    ListMembers,
    MarkReceipt,
    MembersPage,
    Ok,
    Ping,
    Pong,
    RemoveMembers,
    Send,
    SendAck,
    Sync,
    SyncPage,
)
from tests.process.wire import Wire, connected

pytestmark = pytest.mark.process

GROUP_MEMBERS, CHANNEL_MEMBERS = 10_000, limits.CHANNEL_MEMBERS_MAX - 1


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node that lets groups be as large as that; its other limits are those of every node."""
    data_dir = tmp_path_factory.mktemp("huge") / "data"
    with NodeProcess(data_dir, "--group-members-max", str(GROUP_MEMBERS + 1), "--commands-per-s-max", "0") as node:
        yield node
        assert node.terminate() == 0, node.stderr_tail()


def name(number: int) -> str:
    return f"member-{number:06}"


async def create(wire: Wire, kind: ConversationKind, *members: str) -> str:
    made = await wire.ask(CreateConversation(0, kind, list(members), f"{kind}", ""), ConversationReply)
    return made.conversation.conversation_id


async def fill(wire: Wire, conversation: str, members: int, neighbour: Wire, calm: str, *listening: Wire) -> int:
    """Add members page by page; the head afterwards.

    With each page a neighbour says something, and is answered; who listens reads what has come, and is not idle.
    """
    seq = 0
    for page, first in enumerate(range(0, members, limits.MEMBERS_PER_COMMAND_MAX)):
        users = [name(number) for number in range(first, min(first + limits.MEMBERS_PER_COMMAND_MAX, members))]
        request_id = wire.next_id()
        await wire.send(AddMembers(request_id, conversation, f"add-{first}", users))
        assert (await neighbour.ask(Send(0, calm, f"chat-{page}", "hi"), SendAck)).seq == page + 2
        seq = (await wire.reply(request_id, SendAck)).seq
        for each in listening:
            await each.ask(Ping(), Pong)
    return seq


async def last_seq(wire: Wire, conversation: str) -> int:
    """The seq of the next message that is pushed; what is pushed before it are members who came."""
    while True:
        push = await wire.push()
        entry = decode_entry(bytes(push.entry))
        if push.conversation_id == conversation and entry.body:
            return entry.seq


@pytest.mark.parametrize(
    ("kind", "members"), [(ConversationKind.GROUP, GROUP_MEMBERS), (ConversationKind.CHANNEL, CHANNEL_MEMBERS)]
)
async def test_a_huge_conversation_and_its_neighbours(node: NodeProcess, kind: ConversationKind, members: int) -> None:
    few = [name(0), name(members // 2), name(members - 1)]
    async with (
        connected(node, f"{kind.name}-creator") as creator,
        connected(node, f"{kind.name}-neighbour") as neighbour,
        connected(node, few[0], device=kind.name) as first,
        connected(node, few[1], device=kind.name) as second,
    ):
        huge = await create(creator, kind)
        calm = await create(neighbour, ConversationKind.DIRECT, "somebody")
        head_seq = await fill(creator, huge, members, neighbour, calm, first, second)
        for wire in (first, second):
            assert (await wire.ask(Sync(0, {huge: head_seq}, True), SyncPage)).done
        for number in range(5):
            ack = await creator.ask(Send(0, huge, f"news-{number}", "news"), SendAck)
            assert ack.seq == head_seq + number + 1
        for wire in (first, second):
            assert [await last_seq(wire, huge) for _ in range(5)] == list(range(head_seq + 1, head_seq + 6))
        shown = (await first.ask(GetConversation(0, huge), ConversationReply)).conversation
        assert (shown.member_count, shown.members, shown.head_seq) == (members + 1, [], head_seq + 5)
        page = await first.ask(ListMembers(0, huge, few[1], limits.LIST_MEMBERS_MAX), MembersPage)
        assert [each.user for each in page.members] == [name(members // 2 + n) for n in range(1, 257)]
        await second.ask(MarkReceipt(0, huge, head_seq + 5, head_seq + 5), Ok)
        async with connected(node, few[2], device=kind.name) as late:
            page = await late.ask(Sync(0, {huge: head_seq + 3}, True), SyncPage)
            [synced] = [each for each in page.conversations if each.conversation_id == huge]
            assert [decode_entry(bytes(raw)).seq for raw in synced.entries] == [head_seq + 4, head_seq + 5]
            await late.ask(RemoveMembers(0, huge, "leave", [few[2]]), SendAck)
        shown = (await second.ask(GetConversation(0, huge), ConversationReply)).conversation
        assert (shown.member_count, shown.read_seq) == (members, head_seq + 5)
