"""What outlives the process: messages not yet acknowledged, cursors, and the device's name. SQLite in one file."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import trio
from msgspec import Struct, field

from protocol.client.errors import StateFileError

T = TypeVar("T")

_FORMAT = "1"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT, client_msg_id TEXT NOT NULL UNIQUE, conversation_id TEXT NOT NULL,
    body TEXT NOT NULL, metadata TEXT NOT NULL, attempts INTEGER NOT NULL, first_attempt_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS cursors (conversation_id TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
"""

_PUT_ITEM = (
    "INSERT INTO outbox (client_msg_id, conversation_id, body, metadata, attempts, first_attempt_ms) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (client_msg_id) DO UPDATE SET "
    "attempts = excluded.attempts, first_attempt_ms = excluded.first_attempt_ms"
)
_DROP_ITEM = "DELETE FROM outbox WHERE client_msg_id = ?"
_ITEMS = (
    "SELECT client_msg_id, conversation_id, body, metadata, attempts, first_attempt_ms FROM outbox ORDER BY position"
)
_PUT_CURSOR = "INSERT OR REPLACE INTO cursors (conversation_id, seq) VALUES (?, ?)"
_DROP_CURSOR = "DELETE FROM cursors WHERE conversation_id = ?"
_PUT_FACT = "INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)"


class SavedMessage(Struct, frozen=True):
    """A message of the outbox. ``first_attempt_ms``: wall clock, since the Unix epoch; 0 before the first."""

    client_msg_id: str
    conversation_id: str
    body: str
    metadata: dict[str, str] | None
    attempts: int
    first_attempt_ms: int


class Changes(Struct):
    """What one commit writes, all or nothing: first it drops, then it puts."""

    messages: dict[str, SavedMessage] = field(default_factory=dict)
    dropped_messages: set[str] = field(default_factory=set)
    cursors: dict[str, int] = field(default_factory=dict)
    dropped_cursors: set[str] = field(default_factory=set)
    facts: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.messages or self.dropped_messages or self.cursors or self.dropped_cursors or self.facts)

    def before(self, later: "Changes") -> "Changes":
        """These changes and ``later`` ones as one commit."""
        return Changes(
            {name: m for name, m in self.messages.items() if name not in later.dropped_messages} | later.messages,
            self.dropped_messages | later.dropped_messages,
            {name: seq for name, seq in self.cursors.items() if name not in later.dropped_cursors} | later.cursors,
            self.dropped_cursors | later.dropped_cursors,
            self.facts | later.facts,
        )


class Saved(Struct):
    """What an earlier run left. ``facts``: ``user``, ``device``, and ``begun``: whether it began everywhere."""

    facts: dict[str, str]
    messages: list[SavedMessage]
    cursors: dict[str, int]


class StateFile:
    """The open state file: one process at a time. A commit is on the disk when it returns (synchronous=FULL)."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self._path = path
        self._database = database
        self._turn = trio.CapacityLimiter(1)

    @classmethod
    async def open(cls, path: Path) -> "StateFile":
        """Open the file, or make it with mode 0600: it holds message bodies.

        Raises:
            StateFileError: it is in use, unreadable, or something else than a state file.
        """
        try:
            database = await trio.to_thread.run_sync(_open, path)
        except (sqlite3.Error, OSError) as error:
            raise _explain(path, error) from error
        return cls(path, database)

    async def load(self) -> Saved:
        """Read everything. Cancelling waits for the read to end."""
        return await self._in_thread(lambda: _load(self._database))

    async def commit(self, changes: Changes) -> None:
        """Write changes. Cancelling waits for the write to end, so either way it is known to be done.

        Raises:
            StateFileError: nothing was written; the disk is full, say.
        """
        await self._in_thread(lambda: _commit(self._database, changes))

    async def aclose(self) -> None:
        """Close the file and give up the lock."""
        await self._in_thread(self._database.close)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            # Shielded, because a cancelled call does not even begin: whoever handed over changes would lose them.
            with trio.CancelScope(shield=True):
                result = await trio.to_thread.run_sync(work, limiter=self._turn)
        except sqlite3.Error as error:
            raise _explain(self._path, error) from error
        return result


def _open(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    database = sqlite3.connect(path, timeout=0, check_same_thread=False, isolation_level=None)
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("BEGIN EXCLUSIVE")
        for statement in _SCHEMA.split(";"):
            database.execute(statement)
        found = database.execute("SELECT value FROM facts WHERE name = 'format'").fetchone()
        if found is not None and found[0] != _FORMAT:
            raise sqlite3.DatabaseError(f"format {found[0]}, this version reads format {_FORMAT}")
        database.execute(_PUT_FACT, ("format", _FORMAT))
        database.execute("COMMIT")
    except BaseException:
        database.close()
        raise
    return database


def _load(database: sqlite3.Connection) -> Saved:
    messages = [
        SavedMessage(row[0], row[1], row[2], msgspec.json.decode(row[3]), row[4], row[5])
        for row in database.execute(_ITEMS)
    ]
    cursors = dict(database.execute("SELECT conversation_id, seq FROM cursors").fetchall())
    return Saved(dict(database.execute("SELECT name, value FROM facts").fetchall()), messages, cursors)


def _commit(database: sqlite3.Connection, changes: Changes) -> None:
    database.execute("BEGIN")
    try:
        database.executemany(_DROP_ITEM, [(name,) for name in changes.dropped_messages])
        database.executemany(_DROP_CURSOR, [(name,) for name in changes.dropped_cursors])
        for m in changes.messages.values():
            metadata = msgspec.json.encode(m.metadata).decode()
            row = (m.client_msg_id, m.conversation_id, m.body, metadata, m.attempts, m.first_attempt_ms)
            database.execute(_PUT_ITEM, row)
        database.executemany(_PUT_CURSOR, list(changes.cursors.items()))
        database.executemany(_PUT_FACT, list(changes.facts.items()))
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _explain(path: Path, error: Exception) -> StateFileError:
    if "locked" in str(error):
        return StateFileError(f"state file {path} is in use by another process: give each client a file of its own")
    return StateFileError(f"state file {path} cannot be used: {error}")
