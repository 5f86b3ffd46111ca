"""What the writer does to the database inside a transaction: the rules of appending, and the rows they become.

A refusal (stale epoch, gap, conflict) is decided before anything of that append is written, so it leaves nothing behind
and spoils nobody else in the group.
"""

import sqlite3
from collections.abc import Sequence
from functools import cache
from typing import Final

from store.embedded_queries import entries_between
from store.embedded_recent import Recent, Slice, last_seq
from store.entries import NO_CHANGES, Append, ConversationRecord, ReceiptRecord, StoredEntry, changes_of
from store.interface import NotWritten, StaleEpoch, StoreError

ROWS_PER_STATEMENT: Final = (256, 64, 16, 4, 1)
"""Rows of one INSERT, largest first. One statement of many rows holds Python's interpreter lock once, where
executemany takes and drops it for each row and so disturbs the event loop."""

CACHED_CONVERSATIONS_MAX: Final = 65_536
"""Conversations whose key, epoch and head the writer remembers: about 300 bytes each, and one query saved an append."""

PAGE_BYTES: Final = 4_096
PAGES_PER_COMMIT: Final = 4
"""Pages that a commit changes besides those it fills: the last of the log, inner ones, a member or two."""

_SELECT_CONVERSATION: Final = """
    SELECT key, epoch, coalesce((SELECT max(seq) FROM entry_index WHERE conversation = key), 0)
    FROM conversations WHERE id = ?"""
_SELECT_INDEXED_THROUGH: Final = "SELECT indexed_through FROM index_state"
_SELECT_NOT_INDEXED: Final = "SELECT conversation, seq, position FROM entries WHERE position > ? ORDER BY position"
_UPDATE_INDEXED_THROUGH: Final = "UPDATE index_state SET indexed_through = ?"
_SELECT_LAST_POSITION: Final = "SELECT coalesce(max(position), 0) FROM entries"
_INSERT_CONVERSATION: Final = """
    INSERT INTO conversations (id, kind, title, creator, created_us, epoch) VALUES (?, ?, ?, ?, ?, ?)"""
_UPDATE_EPOCH: Final = "UPDATE conversations SET epoch = ? WHERE key = ?"
_UPDATE_TITLE: Final = "UPDATE conversations SET title = ? WHERE key = ?"
_ADD_TO_COUNT: Final = "UPDATE conversations SET member_count = member_count + ? WHERE key = ?"
_INSERT_MEMBER: Final = "INSERT OR IGNORE INTO members (conversation, user, joined_seq) VALUES (?, ?, ?)"
_DELETE_MEMBER: Final = "DELETE FROM members WHERE conversation = ? AND user = ?"
_RAISE_POINTERS: Final = """
    UPDATE members SET delivered_seq = max(delivered_seq, ?3), read_seq = max(read_seq, ?4)
    WHERE conversation = (SELECT key FROM conversations WHERE id = ?1) AND user = ?2
    AND ?5 IN (0, joined_seq) AND (delivered_seq < ?3 OR read_seq < ?4)"""
_SAVE_LAST_SEEN: Final = "INSERT INTO last_seen VALUES (?, ?) ON CONFLICT DO UPDATE SET seen_ms = excluded.seen_ms"
_PROBE: Final = "UPDATE write_probe SET count = count + 1"


LAST_SEEN_CACHED_MAX: Final = 100
"""Users whose times of leaving were written since the page cache was last emptied. Each may lie on a page of its own
(4.4 KB with SQLite's overhead) and nobody asks for it soon, so this bounds what a crowd that leaves takes of memory to
0.4 MB. With 1,000 the cache grew with the table, by 66 bytes a user, up to 4.4 MB, and never gave the heap back."""


class _Conversation:
    """What an append needs to know of its conversation. ``head`` counts rows of this transaction, too."""

    __slots__ = ("epoch", "head", "key")

    def __init__(self, key: int, epoch: int, head: int) -> None:
        self.key = key
        self.epoch = epoch
        self.head = head


class Log:
    """The writer's view of the database. Belongs to the writer thread.

    Attributes:
        pages_written: an estimate of the pages (4 KiB) that went to the write-ahead log; reset it at will.
    """

    def __init__(self, connection: sqlite3.Connection, recent: Recent) -> None:
        self._connection = connection
        self._recent = recent
        self._conversations: dict[str, _Conversation] = {}
        self._taken: list[tuple[_Conversation, Sequence[StoredEntry], int]] = []
        self._rows: list[int | bytes] = []
        self._changes = connection.total_changes
        self._position: int | None = None
        self._last_seen_cached = 0
        self.pages_written = 0

    def begin(self) -> None:
        """Begin a transaction."""
        self._connection.execute("BEGIN IMMEDIATE")
        if self._position is None:
            self._position = self._connection.execute(_SELECT_LAST_POSITION).fetchone()[0]

    def commit(self) -> bool:
        """Make everything since ``begin`` durable; False if nothing had changed. Raises sqlite3.Error."""
        self._connection.execute("COMMIT")
        if self._last_seen_cached >= LAST_SEEN_CACHED_MAX:
            self._connection.execute("PRAGMA shrink_memory")
            self._last_seen_cached = 0
        for conversation, entries, position in self._taken:
            self._recent.add(conversation.key, entries[0].entry.seq, position, len(entries))
        self._taken.clear()
        while len(self._conversations) > CACHED_CONVERSATIONS_MAX:
            del self._conversations[next(iter(self._conversations))]
        changes, self._changes = self._changes, self._connection.total_changes
        return changes != self._changes

    def roll_back(self) -> None:
        """Forget everything since ``begin``. SQLite itself may have rolled back already. Raises sqlite3.Error."""
        self._taken.clear()
        self._rows.clear()
        self._conversations.clear()
        self._position = None
        self._changes = self._connection.total_changes
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def write_rows(self) -> Slice | None:
        """Write the entries that were taken since ``begin``, and a slice of the index; last thing before ``commit``.

        Returns the slice, to be reported to ``Recent.indexed`` once it is durable. Raises sqlite3.Error.
        """
        entries = len(self._rows) // 4
        _insert(self._connection, "INSERT INTO entries", 4, self._rows)
        self.pages_written += PAGES_PER_COMMIT + sum(map(len, self._rows[3::4])) // PAGE_BYTES  # type: ignore[arg-type]
        self._rows.clear()
        part = self._recent.next_slice(entries) if entries else None
        if part is not None:
            # Rows of a slice that was durable before a restart may be there already.
            _insert(self._connection, "INSERT OR IGNORE INTO entry_index", 3, part.rows)
            self.pages_written += part.pages
            if part.indexed_through is not None:
                self._connection.execute(_UPDATE_INDEXED_THROUGH, (part.indexed_through,))
        return part

    def probe(self) -> None:
        """Change something, to learn whether a commit succeeds."""
        self._connection.execute(_PROBE)

    def append(self, append: Append) -> StoreError | None:
        """Take entries into the transaction, with what they change; returns why not, if they are refused."""
        conversation = self._find(append.conversation_id)
        if conversation is None:
            return NotWritten(f"conversation {append.conversation_id} does not exist")
        if append.epoch != conversation.epoch:
            return _wrong_epoch(append.conversation_id, append.epoch, conversation.epoch)
        entries = append.entries
        if not entries:
            return None
        expected = first = entries[0].entry.seq
        for stored in entries:
            if stored.entry.seq != expected:
                return NotWritten(f"entry {expected} of {append.conversation_id} is missing from its append")
            expected += 1
        if first != conversation.head + 1:
            if first > conversation.head or first < 1:
                return NotWritten(
                    f"entry {first} cannot follow the head {conversation.head} of {append.conversation_id}"
                )
            repeated = entries[: conversation.head + 1 - first]
            if not self._same(conversation, repeated):
                return NotWritten(
                    f"other entries stand at {first} to {first + len(repeated) - 1} of {append.conversation_id}"
                )
            entries = entries[len(repeated) :]
        self._take(conversation, entries)
        return None

    def create(self, record: ConversationRecord, first: StoredEntry, epoch: int) -> bool:
        """Create a conversation with its first entry; False if it exists."""
        assert first.entry.seq == 1, "the first entry of a conversation has seq 1"
        if self._find(record.conversation_id) is not None:
            return False
        values = (record.conversation_id, int(record.kind), record.title, record.creator, record.created_us, epoch)
        key = self._connection.execute(_INSERT_CONVERSATION, values).lastrowid
        assert key is not None
        conversation = self._conversations[record.conversation_id] = _Conversation(key, epoch, 0)
        self._take(conversation, [first])
        return True

    def take_over(self, conversation_id: str, epoch: int) -> bool:
        """Record an epoch; False if there is no such conversation. Raises StaleEpoch."""
        conversation = self._find(conversation_id)
        if conversation is None:
            return False
        if epoch < conversation.epoch:
            raise StaleEpoch(
                f"epoch {epoch} of {conversation_id} is over: its owner is of epoch {conversation.epoch} now"
            )
        if epoch > conversation.epoch:
            self._connection.execute(_UPDATE_EPOCH, (epoch, conversation.key))
            conversation.epoch = epoch
        return True

    def save_receipts(self, receipts: Sequence[ReceiptRecord]) -> None:
        """Raise pointers, never lower them; those of an earlier stay are gone with it."""
        rows = [(r.conversation_id, r.user, r.delivered_seq, r.read_seq, r.joined_seq) for r in receipts]
        self._connection.executemany(_RAISE_POINTERS, rows)

    def save_last_seen(self, seen_ms: Sequence[tuple[str, int]]) -> None:
        """Note when users were last online."""
        self._connection.executemany(_SAVE_LAST_SEEN, seen_ms)
        self._last_seen_cached += len(seen_ms)

    def _find(self, conversation_id: str) -> _Conversation | None:
        conversation = self._conversations.get(conversation_id)
        if conversation is None:
            row = self._connection.execute(_SELECT_CONVERSATION, (conversation_id,)).fetchone()
            if row is None:
                return None
            key, epoch, indexed = row
            head = last_seq(self._recent.generations, key) or indexed
            conversation = self._conversations[conversation_id] = _Conversation(key, epoch, head)
        return conversation

    def _same(self, conversation: _Conversation, repeated: Sequence[StoredEntry]) -> bool:
        """Whether exactly these entries stand in the log already, or were taken in this transaction."""
        after, before = repeated[0].entry.seq - 1, repeated[-1].entry.seq + 1
        key, generations = conversation.key, self._recent.generations
        found = entries_between(self._connection, generations, key, after, before, len(repeated), newest=False)
        for other, taken, _position in self._taken:
            if other is conversation:
                found += [stored.encoded for stored in taken if after < stored.entry.seq < before]
        return found == [stored.encoded for stored in repeated]

    def _take(self, conversation: _Conversation, entries: Sequence[StoredEntry]) -> None:
        if not entries:
            return
        assert self._position is not None, "appended outside a transaction"
        key, position, rows = conversation.key, self._position, self._rows
        self._taken.append((conversation, entries, position + 1))
        for stored in entries:
            position += 1
            rows += (position, key, stored.entry.seq, stored.encoded)
            if changes_of(stored.entry) is not NO_CHANGES:
                self._change(conversation, stored)
        self._position = position
        conversation.head += len(entries)

    def _change(self, conversation: _Conversation, stored: StoredEntry) -> None:
        key = conversation.key
        changes = changes_of(stored.entry)
        if changes.added:
            rows = [(key, user, stored.entry.seq) for user in changes.added]
            added = self._connection.executemany(_INSERT_MEMBER, rows).rowcount
            self._connection.execute(_ADD_TO_COUNT, (added, key))
        if changes.removed:
            gone = self._connection.executemany(_DELETE_MEMBER, [(key, user) for user in changes.removed]).rowcount
            self._connection.execute(_ADD_TO_COUNT, (-gone, key))
        if changes.title is not None:
            self._connection.execute(_UPDATE_TITLE, (changes.title, key))


def _wrong_epoch(conversation_id: str, epoch: int, recorded: int) -> StoreError:
    if epoch < recorded:
        return StaleEpoch(f"epoch {epoch} of {conversation_id} is over: its owner is of epoch {recorded} now")
    return NotWritten(f"epoch {epoch} of {conversation_id} was never recorded: take the conversation over first")


@cache
def _insert_statement(insert: str, columns: int, rows: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"{insert} VALUES {', '.join([row] * rows)}"


def _insert(connection: sqlite3.Connection, insert: str, columns: int, values: Sequence[int | bytes]) -> None:
    """Insert rows, given as one flat sequence of values, by as few statements as ROWS_PER_STATEMENT allows."""
    at = 0
    for rows in ROWS_PER_STATEMENT:
        width = rows * columns
        while len(values) - at >= width:
            connection.execute(_insert_statement(insert, columns, rows), values[at : at + width])
            at += width


def read_back(connection: sqlite3.Connection) -> Recent:
    """Note the entries that a restart left behind the index. Raises sqlite3.Error."""
    recent = Recent()
    through = connection.execute(_SELECT_INDEXED_THROUGH).fetchone()[0]
    for key, seq, position in connection.execute(_SELECT_NOT_INDEXED, (through,)):
        recent.add(key, seq, position)
    return recent
