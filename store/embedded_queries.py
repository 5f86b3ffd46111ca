"""The reads of the embedded store: plain functions on a reader's connection. They raise sqlite3.Error."""

import sqlite3
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, islice
from typing import Final, TypeVar

from protocol.codec import decode_entry, decode_entry_head
from protocol.frames import ConversationKind
from store.embedded_recent import Generations, last_position, last_seq, places
from store.entries import ConversationRecord, Involvement, Loaded, MemberRecord, Membership, Search, StoredEntry

VALUES_PER_QUERY: Final = 500
"""Users or positions that one query names: below SQLite's historical limit of 999 parameters."""

SEQ_MAX: Final = 2**63 - 1
"""Largest integer of SQLite: a bound beyond it means the same as itself."""

_SELECT_CONVERSATION: Final = """
    SELECT key, kind, title, creator, created_us, member_count FROM conversations WHERE id = ?"""
_SELECT_KEY: Final = "SELECT key FROM conversations WHERE id = ?"
_SELECT_MEMBERS: Final = """
    SELECT user, joined_seq, delivered_seq, read_seq FROM members WHERE conversation = ? ORDER BY joined_seq, user"""
_SELECT_SOME_MEMBERS: Final = """
    SELECT user, joined_seq, delivered_seq, read_seq FROM members
    WHERE conversation = (SELECT key FROM conversations WHERE id = ?) AND user IN ({})"""
_SELECT_MEMBERS_PAGE: Final = """
    SELECT user, joined_seq, delivered_seq, read_seq FROM members
    WHERE conversation = (SELECT key FROM conversations WHERE id = ?) AND user > ? ORDER BY user LIMIT ?"""
_SELECT_INDEXED: Final = """
    SELECT entry_index.seq, encoded FROM entry_index JOIN entries USING (position)
    WHERE entry_index.conversation = ? AND entry_index.seq > ? AND entry_index.seq < ?
    ORDER BY entry_index.seq {} LIMIT ?"""
_SELECT_INDEXED_NEWEST: Final = _SELECT_INDEXED.format("DESC")
_SELECT_INDEXED_OLDEST: Final = _SELECT_INDEXED.format("ASC")
_SELECT_INDEXED_CONTAINING: Final = """
    SELECT encoded FROM entry_index JOIN entries USING (position)
    WHERE entry_index.conversation = ? AND entry_index.seq > ? AND entry_index.seq < ? AND instr(encoded, ?)
    ORDER BY entry_index.seq DESC"""
_SELECT_AT: Final = "SELECT position, encoded FROM entries WHERE position IN ({})"
_SELECT_AT_CONTAINING: Final = f"{_SELECT_AT} AND instr(encoded, ?)"
_SELECT_LAST_POSITION: Final = "SELECT coalesce(max(position), 0) FROM entries"
_PEER: Final = f"""
    CASE WHEN c.kind != {int(ConversationKind.DIRECT)} THEN '' ELSE coalesce((
        SELECT user FROM members AS peer WHERE peer.conversation = c.key AND peer.user != m.user), m.user)
    END"""  # noqa: S608  # an enum's number
_SELECT_MEMBERSHIPS: Final = f"""
    SELECT c.key, c.id, c.kind, c.title, m.joined_seq, m.delivered_seq, m.read_seq, c.member_count, {_PEER}, (
        SELECT position FROM entry_index WHERE conversation = m.conversation ORDER BY seq DESC LIMIT 1)
    FROM members AS m JOIN conversations AS c ON c.key = m.conversation WHERE m.user = ?"""  # noqa: S608  # likewise
_SELECT_INVOLVEMENTS: Final = f"""
    SELECT c.id, c.kind, m.joined_seq, m.delivered_seq, m.read_seq, {_PEER}
    FROM members AS m JOIN conversations AS c ON c.key = m.conversation WHERE m.user = ?"""  # noqa: S608  # likewise
_SELECT_SHARED: Final = """
    SELECT 1 FROM members AS a JOIN members AS b ON b.conversation = a.conversation
    WHERE a.user = ? AND b.user = ? LIMIT 1"""
_SELECT_LAST_SEEN: Final = "SELECT user, seen_ms FROM last_seen WHERE user IN ({})"


T = TypeVar("T")


def load(
    connection: sqlite3.Connection, generations: Generations, conversation_id: str, tail_entries_max: int
) -> Loaded | None:
    """A conversation as its owner needs it; None if there is none."""
    row = connection.execute(_SELECT_CONVERSATION, (conversation_id,)).fetchone()
    if row is None:
        return None
    key, number, title, creator, created_us, member_count = row
    kind = ConversationKind(number)
    # A channel's owner asks about those it meets.
    rows = () if kind is ConversationKind.CHANNEL else connection.execute(_SELECT_MEMBERS, (key,))
    members = {user: MemberRecord(user, *rest) for user, *rest in rows}
    encoded = entries_between(connection, generations, key, 0, SEQ_MAX, max(1, tail_entries_max), newest=True)
    tail = [StoredEntry(decode_entry(each), each) for each in encoded]
    if not tail:
        return None  # created after the generations were taken: not there yet
    last = tail[-1].entry
    return Loaded(
        record=ConversationRecord(conversation_id, kind, title, creator, created_us),
        members=members,
        head_seq=last.seq,
        head_time_us=last.time_us,
        tail=tail if tail_entries_max else [],
        member_count=member_count,
    )


def find_members(
    connection: sqlite3.Connection, _generations: Generations, conversation_id: str, users: Collection[str]
) -> dict[str, MemberRecord]:
    """Those of ``users`` who are members."""
    found: dict[str, MemberRecord] = {}
    for names in _chunks(users):
        rows = connection.execute(_SELECT_SOME_MEMBERS.format(_marks(names)), [conversation_id, *names])
        found.update((user, MemberRecord(user, *rest)) for user, *rest in rows)
    return found


def list_members(
    connection: sqlite3.Connection, _generations: Generations, conversation_id: str, after: str, limit: int
) -> list[MemberRecord]:
    """A page of a conversation's members."""
    return [MemberRecord(*row) for row in connection.execute(_SELECT_MEMBERS_PAGE, (conversation_id, after, limit))]


def entries(
    connection: sqlite3.Connection,
    generations: Generations,
    conversation_id: str,
    after_seq: int,
    before_seq: int,
    limit: int,
    *,
    newest: bool,
) -> list[bytes]:
    """As ``entries_between``, for a conversation that may not exist."""
    row = connection.execute(_SELECT_KEY, (conversation_id,)).fetchone()
    if row is None:
        return []
    return entries_between(connection, generations, row[0], after_seq, before_seq, limit, newest=newest)


def entries_between(
    connection: sqlite3.Connection,
    generations: Generations,
    key: int,
    after_seq: int,
    before_seq: int,
    limit: int,
    *,
    newest: bool,
) -> list[bytes]:
    """Encoded entries between two seqs (both excluded), oldest first: the newest or the oldest ``limit`` of them."""
    before_seq = min(before_seq, SEQ_MAX)
    if limit <= 0 or before_seq - after_seq <= 1:
        return []
    if newest:
        last = min(before_seq - 1, last_seq(generations, key, _last_position_seen(connection)))
        recent = _at(connection, places(generations, key, max(after_seq, last - limit), before_seq))
        if recent:
            before_seq = recent[0][0]
        bounds = (key, after_seq, before_seq, limit - len(recent))
        older = connection.execute(_SELECT_INDEXED_NEWEST, bounds).fetchall() if len(recent) < limit else []
        older.reverse()
    else:
        older = connection.execute(_SELECT_INDEXED_OLDEST, (key, after_seq, before_seq, limit)).fetchall()
        if older:
            after_seq = older[-1][0]
        recent = _at(connection, islice(places(generations, key, after_seq, before_seq), limit - len(older)))
    return [encoded for _seq, encoded in chain(older, recent)]


def _at(connection: sqlite3.Connection, wanted: Iterable[tuple[int, int]]) -> list[tuple[int, bytes]]:
    """Seqs and encoded entries at these places, in the order given; those newer than the snapshot are left out."""
    places_ = list(wanted)
    encoded = _encoded_at(connection, [position for _seq, position in places_])
    return [(seq, encoded[position]) for seq, position in places_ if position in encoded]


def _last_position_seen(connection: sqlite3.Connection) -> int:
    """The last position of this snapshot; the generations may know of later ones by now."""
    position: int = connection.execute(_SELECT_LAST_POSITION).fetchone()[0]
    return position


def _encoded_at(connection: sqlite3.Connection, positions: Collection[int]) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for some in _chunks(positions):
        found.update(connection.execute(_SELECT_AT.format(_marks(some)), some))
    return found


def find(
    connection: sqlite3.Connection,
    generations: Generations,
    conversation_id: str,
    sender: str,
    client_msg_id: str,
    since_us: int,
    *,
    after_seq: int,
    before_seq: int,
) -> Search:
    """Look between two seqs (both excluded) for what ``sender`` appended under ``client_msg_id``, in its time.

    SQLite looks for the id's bytes, so that few entries are decoded and Python's interpreter lock is free meanwhile.
    """
    row = connection.execute(_SELECT_KEY, (conversation_id,)).fetchone()
    if row is None:
        return Search(None, ended=False)
    for encoded in _containing(connection, generations, row[0], after_seq, before_seq, client_msg_id.encode()):
        entry = decode_entry(encoded)
        if entry.client_msg_id == client_msg_id and entry.sender == sender and entry.time_us >= since_us:
            return Search(StoredEntry(entry, encoded), ended=False)
    oldest = entries_between(connection, generations, row[0], after_seq, before_seq, 1, newest=False)
    return Search(None, ended=bool(oldest) and decode_entry_head(oldest[0]).time_us < since_us)


def _containing(
    connection: sqlite3.Connection, generations: Generations, key: int, after_seq: int, before_seq: int, part: bytes
) -> Iterator[bytes]:
    """Encoded entries between two seqs with certain bytes in them, the newest first; some may come twice."""
    before_seq = min(before_seq, SEQ_MAX)
    recent = sorted(places(generations, key, after_seq, before_seq), reverse=True)
    for some in _chunks(position for _seq, position in recent):
        rows = connection.execute(_SELECT_AT_CONTAINING.format(_marks(some)), (*some, part)).fetchall()
        yield from (encoded for _position, encoded in sorted(rows, reverse=True))
    for (encoded,) in connection.execute(_SELECT_INDEXED_CONTAINING, (key, after_seq, before_seq, part)):
        yield encoded


def memberships(connection: sqlite3.Connection, generations: Generations, user: str) -> list[Membership]:
    """All conversations of a user, each with its last entry: work grows with their number only."""
    rows = connection.execute(_SELECT_MEMBERSHIPS, (user,)).fetchall()
    indexed = {key: position for key, *_rest, position in rows}
    through = _last_position_seen(connection)
    newer = {key: last_position(generations, key, through) for key in indexed}
    encoded = _encoded_at(connection, [newer[key] or indexed[key] or 0 for key in indexed])
    found = []
    for key, conversation_id, kind, title, joined, delivered, read, count, peer, _position in rows:
        last = encoded.get(newer[key] or indexed[key])
        if last is None:
            continue  # created after the generations were taken: not there yet
        head = decode_entry_head(last)
        found.append(
            Membership(
                conversation_id,
                ConversationKind(kind),
                title,
                joined,
                head.seq,
                head.time_us,
                last,
                delivered,
                read,
                count,
                peer,
            )
        )
    return found


def involvements(connection: sqlite3.Connection, _generations: Generations, user: str) -> list[Involvement]:
    """All conversations of a user, without their logs."""
    rows = connection.execute(_SELECT_INVOLVEMENTS, (user,))
    return [Involvement(conversation_id, ConversationKind(kind), *rest) for conversation_id, kind, *rest in rows]


def acquainted(
    connection: sqlite3.Connection, _generations: Generations, user: str, others: Collection[str]
) -> set[str]:
    """Those of ``others`` who share a conversation with ``user``."""
    return {other for other in others if connection.execute(_SELECT_SHARED, (user, other)).fetchone()}


def last_seen(connection: sqlite3.Connection, _generations: Generations, users: Collection[str]) -> dict[str, int]:
    """When users were last online."""
    found: dict[str, int] = {}
    for names in _chunks(users):
        found.update(connection.execute(_SELECT_LAST_SEEN.format(_marks(names)), names))
    return found


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))


def _chunks(values: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(values)
    while chunk := list(islice(rest, VALUES_PER_QUERY)):
        yield chunk
