"""A channel of very many members, as a store sees it come about."""

from protocol.frames import ConversationKind, EntryKind
from protocol.limits import MEMBERS_PER_COMMAND_MAX
from store.entries import Append, MemberRecord
from tests.store.conformance import make
from tests.store.entries import entry
from tests.store.outcomes import append_all


def name(number: int) -> str:
    return f"user-{number:06}"


async def check_channel(store, members: int) -> None:
    """Fill a channel page by page; take it over, ask about some, list all, and let some leave."""
    await make(store, "c1", "alice", kind=ConversationKind.CHANNEL, title="News")
    seq = 1
    for first in range(0, members, MEMBERS_PER_COMMAND_MAX):
        seq += 1
        users = [name(number) for number in range(first, min(first + MEMBERS_PER_COMMAND_MAX, members))]
        added = entry(seq, kind=EntryKind.MEMBERS_ADDED, users=users)
        assert await append_all(store, Append("c1", 1, [added])) == [None]
    loaded = await store.take_over("c1", 2, 1)
    assert (loaded.members, loaded.member_count, loaded.head_seq) == ({}, members + 1, seq)
    assert await store.find_members("c1", [name(members - 1), name(members)]) == {
        name(members - 1): MemberRecord(name(members - 1), seq)
    }
    found, page = [], await store.list_members("c1", after="", limit=1_000)
    while page:
        found += [each.user for each in page]
        page = await store.list_members("c1", after=found[-1], limit=1_000)
    assert found == ["alice", *(name(number) for number in range(members))]
    [ones] = await store.memberships(name(members // 2))
    assert (ones.head_seq, ones.member_count) == (seq, members + 1)
    gone = [name(number) for number in range(MEMBERS_PER_COMMAND_MAX)]
    await append_all(store, Append("c1", 2, [entry(seq + 1, kind=EntryKind.MEMBERS_REMOVED, users=gone)]))
    assert (await store.take_over("c1", 3, 1)).member_count == members + 1 - len(gone)
