"""What the writer does to the database inside a transaction: the rules of appending, and the rows they become.

A refusal (stale epoch, gap, conflict) is decided before anything of that append is written, so it leaves nothing behind
and spoils nobody else in the group.
"""

import sqlite3
from collections.abc import Sequence
from functools import cache
from typing import Final

from store.entries import NO_CHANGES, Append, ConversationRecord, ReceiptRecord, StoredEntry, changes_of
from store.interface import NotWritten, StaleEpoch, StoreError

ROWS_PER_STATEMENT: Final = (256, 64, 16, 4, 1)
"""Rows of one INSERT, largest first. One statement of many rows holds Python's interpreter lock once, where
executemany takes and drops it for each row and so disturbs the event loop."""

CACHED_CONVERSATIONS_MAX: Final = 65_536
"""Conversations whose key, epoch and head the writer remembers: about 300 bytes each, and one query saved an append."""

_SELECT_CONVERSATION: Final = """
    SELECT key, epoch, (SELECT max(seq) FROM entry_index WHERE conversation = key) FROM conversations WHERE id = ?"""
_SELECT_LAST_POSITION: Final = "SELECT coalesce(max(position), 0) FROM entries"
_SELECT_RANGE: Final = """
    SELECT encoded FROM entry_index JOIN entries USING (position)
    WHERE entry_index.conversation = ? AND entry_index.seq BETWEEN ? AND ? ORDER BY entry_index.seq"""
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
    AND (delivered_seq < ?3 OR read_seq < ?4)"""
_SAVE_LAST_SEEN: Final = "INSERT INTO last_seen VALUES (?, ?) ON CONFLICT DO UPDATE SET seen_ms = excluded.seen_ms"
_PROBE: Final = "UPDATE write_probe SET count = count + 1"


class _Conversation:
    """What an append needs to know of its conversation. ``head`` counts rows of this transaction, too."""

    __slots__ = ("epoch", "head", "key")

    def __init__(self, key: int, epoch: int, head: int) -> None:
        self.key = key
        self.epoch = epoch
        self.head = head


class Log:
    """The writer's view of the database. Belongs to the writer thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._conversations: dict[str, _Conversation] = {}
        self._rows: list[int | bytes] = []
        self._index_rows: list[int] = []
        self._position = 0
        self._changes = connection.total_changes

    def begin(self) -> None:
        """Begin a transaction."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._position = self._connection.execute(_SELECT_LAST_POSITION).fetchone()[0]

    def write_rows(self) -> None:
        """Write the rows that appends have gathered."""
        rows, index_rows = self._rows, self._index_rows
        if rows:
            self._rows, self._index_rows = [], []
            _insert(self._connection, "entries", 4, rows)
            _insert(self._connection, "entry_index", 3, index_rows)

    def commit(self) -> bool:
        """Make everything since ``begin`` durable; ``write_rows`` comes before. False if nothing had changed."""
        assert not self._rows
        self._connection.execute("COMMIT")
        changes, self._changes = self._changes, self._connection.total_changes
        while len(self._conversations) > CACHED_CONVERSATIONS_MAX:
            del self._conversations[next(iter(self._conversations))]
        return changes != self._changes

    def roll_back(self) -> None:
        """Forget everything since ``begin``. SQLite itself may have rolled back already. Raises sqlite3.Error."""
        self._rows.clear()
        self._index_rows.clear()
        self._conversations.clear()
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

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
        """Raise pointers, never lower them."""
        rows = [(r.conversation_id, r.user, r.delivered_seq, r.read_seq) for r in receipts]
        self._connection.executemany(_RAISE_POINTERS, rows)

    def save_last_seen(self, seen_ms: Sequence[tuple[str, int]]) -> None:
        """Note when users were last online."""
        self._connection.executemany(_SAVE_LAST_SEEN, seen_ms)

    def _find(self, conversation_id: str) -> _Conversation | None:
        conversation = self._conversations.get(conversation_id)
        if conversation is None:
            row = self._connection.execute(_SELECT_CONVERSATION, (conversation_id,)).fetchone()
            if row is None:
                return None
            key, epoch, head = row
            conversation = self._conversations[conversation_id] = _Conversation(key, epoch, head or 0)
        return conversation

    def _same(self, conversation: _Conversation, entries: Sequence[StoredEntry]) -> bool:
        """Whether exactly these entries stand in the log already."""
        self.write_rows()
        bounds = (conversation.key, entries[0].entry.seq, entries[-1].entry.seq)
        found = [row[0] for row in self._connection.execute(_SELECT_RANGE, bounds)]
        return found == [stored.encoded for stored in entries]

    def _take(self, conversation: _Conversation, entries: Sequence[StoredEntry]) -> None:
        key, position = conversation.key, self._position
        for stored in entries:
            position += 1
            self._rows += (position, key, stored.entry.seq, stored.encoded)
            self._index_rows += (key, stored.entry.seq, position)
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
def _insert_statement(table: str, columns: int, rows: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"INSERT INTO {table} VALUES {', '.join([row] * rows)}"  # noqa: S608  # our own table names


def _insert(connection: sqlite3.Connection, table: str, columns: int, values: Sequence[int | bytes]) -> None:
    """Insert rows, given as one flat sequence of values, by as few statements as ROWS_PER_STATEMENT allows."""
    at = 0
    for rows in ROWS_PER_STATEMENT:
        width = rows * columns
        while len(values) - at >= width:
            connection.execute(_insert_statement(table, columns, rows), values[at : at + width])
            at += width
