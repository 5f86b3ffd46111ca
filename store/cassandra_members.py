"""Members of conversations: what an entry changes of them, as rows, and reading them back.

Members and title are the log's, told by its entries; the rows only spare reading it all. They are written when their
entry is durable and before it is answered, and an entry that changes them has nothing sent behind it meanwhile. So
only those of a log's last entry can be missing, and whoever takes a conversation over writes these again.

A user's stay is a row of its own in the conversation's partition, some 60 bytes: 100,000 members make 6 MB, well below
what Cassandra reads comfortably, and a million still do. They are read by pages; those of a channel, which may be so
many, are not read when an owner takes it over, but only where a command names them.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from protocol.frames import ConversationKind, Entry
from store.entries import Involvement, MemberRecord, changes_of
from store.tables import (
    ConversationTables,
    Described,
    InvolvementRow,
    MemberJoined,
    MemberLeft,
    MemberRow,
    RowWrite,
)

PAGE_ROWS: Final = 2_000
"""Rows of members or of a user's conversations that one read takes: some 100 KB."""

USERS_PER_READ: Final = 100
"""Users that one read of a conversation's members names."""

LAST_SEQ: Final = 2**63 - 1
"""Greater than any seq: behind all stays of a user."""

T = TypeVar("T")


class Roster(Struct):
    """Title and members of a conversation, those of the past included."""

    title: str
    member_count: int
    stays: list[MemberRow]


class Changed(Struct, frozen=True):
    """What an entry does: title and number of members after it, and the rows to write."""

    title: str
    member_count: int
    rows: list[RowWrite]


def change_rows(conversation_id: str, kind: ConversationKind, entry: Entry, before: Roster) -> Changed:
    """The rows of an entry that changes members or title.

    Args:
        conversation_id: whose entry it is.
        kind: of the conversation.
        entry: the entry.
        before: the conversation before the entry, with the stays of all users that the entry names; rows of this very
            entry, from an attempt that was broken off, may be among them.
    """
    changes = changes_of(entry)
    present, partly = _now(before.stays, entry.seq)
    rows: list[RowWrite] = []
    count = before.member_count
    for user in dict.fromkeys(changes.added):
        if user not in present:
            peer = _peer(kind, user, changes.added)
            rows.append(MemberJoined(conversation_id, user, entry.seq, kind, peer, entry.time_us))
            count += 1
    for user in dict.fromkeys(changes.removed):
        stay = present.get(user) or partly.get(user)
        if stay is not None:
            rows.append(MemberLeft(conversation_id, user, stay.joined_seq, entry.seq, entry.time_us))
            count -= 1
    title = before.title if changes.title is None else changes.title
    rows.append(Described(conversation_id, title, count, entry.time_us))
    return Changed(title, count, rows)


def _now(stays: Iterable[MemberRow], seq: int) -> tuple[dict[str, MemberRow], dict[str, MemberRow]]:
    """Stays that last before the entry ``seq``; and those that it has ended already."""
    present, ended = {}, {}
    for stay in stays:
        if stay.joined_seq < seq and not stay.left_seq:
            present[stay.user] = stay
        elif stay.left_seq == seq:
            ended[stay.user] = stay
    return present, ended


def _peer(kind: ConversationKind, user: str, users: Sequence[str]) -> str:
    """The other user of a direct conversation, or the same one in a note to self; nobody in a group."""
    if kind is not ConversationKind.DIRECT:
        return ""
    return next((other for other in users if other != user), user)


def before_entry(roster: Roster, seq: int) -> Roster:
    """A whole roster as it was before its last entry, ``seq``, whose rows may be there or not."""
    present, ended = _now(roster.stays, seq)
    return Roster(roster.title, len(present) + len(ended), roster.stays)


def after_entry(roster: Roster, seq: int, changed: Changed) -> Roster:
    """A whole roster with the rows of its last entry, ``seq``."""
    stays = {(stay.user, stay.joined_seq): stay for stay in roster.stays}
    for row in changed.rows:
        if isinstance(row, MemberJoined):
            key = (row.user, seq)
            stays[key] = stays.get(key, MemberRow(row.user, seq, 0, 0, 0))
        elif isinstance(row, MemberLeft):
            key = (row.user, row.joined_seq)
            stays[key] = replace(stays[key], left_seq=seq)
    return Roster(changed.title, changed.member_count, list(stays.values()))


def before_entry_of_channel(roster: Roster, described_us: int, entry: Entry) -> Roster:
    """What is known of a channel as it was before its last entry, of whose users alone ``roster`` has the stays.

    Nobody counts all members of a channel. Its number of members was written with the time of the entry that it is of:
    either this one's, and then what that changed is taken back, or an earlier one's.
    """
    if described_us < entry.time_us:
        return roster
    changes = changes_of(entry)
    present, ended = _now(roster.stays, entry.seq)
    joined = len(set(changes.added) - present.keys())
    left = len(set(changes.removed) & (present.keys() | ended.keys()))
    return Roster(roster.title, roster.member_count - joined + left, roster.stays)


async def read_stays_of_entry(tables: ConversationTables, conversation_id: str, entry: Entry) -> tuple[Roster, int]:
    """Title, number of members, and the stays of the users that an entry names; and the time of what tells the former.

    Raises Unavailable. Cancelling is safe.
    """
    described = await tables.members(conversation_id, after=None, limit=1)
    changes = changes_of(entry)
    stays = await read_stays(tables, conversation_id, dict.fromkeys((*changes.added, *changes.removed)))
    return Roster(described.title, described.member_count, stays), described.described_us


def members_of(stays: Iterable[MemberRow]) -> dict[str, MemberRecord]:
    """Those who are members now, in order of joining."""
    lasting = sorted((stay for stay in stays if not stay.left_seq), key=lambda stay: (stay.joined_seq, stay.user))
    return {stay.user: MemberRecord(stay.user, stay.joined_seq, stay.delivered_seq, stay.read_seq) for stay in lasting}


async def read_roster(tables: ConversationTables, conversation_id: str) -> Roster:
    """All of a conversation's members. Raises Unavailable. Cancelling is safe."""
    roster = Roster("", 0, [])
    after: tuple[str, int] | None = None
    while True:
        page = await tables.members(conversation_id, after=after, limit=PAGE_ROWS)
        roster.stays += page.rows
        if page.rows:
            roster.title, roster.member_count = page.title, page.member_count
        if len(page.rows) < PAGE_ROWS:
            return roster
        after = (page.rows[-1].user, page.rows[-1].joined_seq)


async def read_stays(tables: ConversationTables, conversation_id: str, users: Collection[str]) -> list[MemberRow]:
    """All stays of some users in a conversation. Raises Unavailable. Cancelling is safe."""
    found: list[MemberRow] = []
    for names in chunks(users, USERS_PER_READ):
        found += (await tables.stays(conversation_id, names)).rows
    return found


async def read_members(tables: ConversationTables, conversation_id: str, after: str, limit: int) -> list[MemberRecord]:
    """Members behind a user, by user; fewer than ``limit`` only at the end. Raises Unavailable. Cancelling is safe."""
    found: list[MemberRecord] = []
    behind = (after, LAST_SEQ) if after else None
    while True:
        rows = (await tables.members(conversation_id, after=behind, limit=limit)).rows
        found += (
            MemberRecord(row.user, row.joined_seq, row.delivered_seq, row.read_seq) for row in rows if not row.left_seq
        )
        if len(rows) < limit or len(found) >= limit:
            return found[:limit]
        behind = (rows[-1].user, rows[-1].joined_seq)


async def read_involvements(tables: ConversationTables, user: str) -> list[InvolvementRow]:
    """The user's conversations now. Raises Unavailable. Cancelling is safe."""
    found: list[InvolvementRow] = []
    after: tuple[str, int] | None = None
    while True:
        page = await tables.involvements(user, after=after, limit=PAGE_ROWS)
        found += (row for row in page if not row.left_seq)
        if len(page) < PAGE_ROWS:
            return found
        after = (page[-1].conversation_id, page[-1].joined_seq)


def involvement(row: InvolvementRow) -> Involvement:
    """A user's row as the store's callers know it."""
    return Involvement(row.conversation_id, row.kind, row.joined_seq, row.delivered_seq, row.read_seq, row.peer)


def chunks(values: Iterable[T], size: int) -> Iterable[list[T]]:
    """Parts of at most ``size``."""
    rest = iter(values)
    while part := list(islice(rest, size)):
        yield part
