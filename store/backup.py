"""Backup and restore of the embedded store.

A backup is one SQLite file with everything that was acknowledged before it began, in the state of one moment. It is
taken from another process while the node runs: SQLite's online backup copies the pages of a read snapshot, which holds
up neither reads nor writes. (The write-ahead log cannot begin anew meanwhile, so it grows by what is written.)
"""

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from store.embedded_database import READER_CACHE_KIB, connect, error_text
from store.embedded_directory import DATABASE_FILE, DataDirectory, sync_directory, unusable
from store.interface import StoreError
from store.migrations import embedded_migrations, refuse_newer, schema_number

APPLICATION_ID: Final = 0x74696465
"""What migration 0001 writes into the header of our databases ("tide")."""

STEP_PAGES: Final = 2_048
"""Pages (8 MiB) that one step of a backup copies; progress is told between steps."""

_COUNTS: Final = "SELECT (SELECT count(*) FROM conversations), (SELECT count(*) FROM entries)"
_BROKEN_LOG: Final = """
    SELECT c.id, min(e.seq), max(e.seq), count(e.seq) FROM conversations AS c
    LEFT JOIN entries AS e ON e.conversation = c.key
    GROUP BY c.key HAVING count(e.seq) = 0 OR min(e.seq) <> 1 OR max(e.seq) <> count(e.seq) LIMIT 1"""

Progress = Callable[[int, int], None]
"""Told pages copied and pages in all."""


class BackupError(StoreError):
    """A backup or a restore was refused or failed. The message says why; nothing was left behind."""


class Contents(Struct, frozen=True):
    """What a backup holds. ``file_bytes``: size of its file."""

    conversations: int
    entries: int
    file_bytes: int


def back_up(data_dir: Path, file: Path, progress: Progress | None = None) -> Contents:
    """Copy the store in ``data_dir`` to a new file (mode 0600), durable on return. Blocks. A node may be running.

    Raises:
        BackupError: there is no store, the file exists, or reading or writing failed.
        SchemaTooNew: a newer tidegate wrote the store.
    """
    database = data_dir / DATABASE_FILE
    if not database.is_file():
        raise BackupError(f"there is no store in {data_dir}: name the node's data directory with --data-dir")
    if os.path.lexists(file):
        raise BackupError(f"{file} exists: a backup overwrites nothing; choose another name or remove it first")
    with _new_file(file) as partial, _connection(database, f"database {database}") as source:
        _check_ours(source, f"database {database}")
        source.execute("BEGIN")
        source.execute(_COUNTS).fetchone()  # the snapshot begins here and stays until the end
        _copy(source, partial, progress)
        return _examine(partial, f"the backup of {database}")


def restore(file: Path, data_dir: Path, progress: Progress | None = None) -> Contents:
    """Put a backup into a data directory without a store, making it if need be; durable on return. Blocks.

    Raises:
        BackupError: the file is no intact backup, the directory has a store already, or writing failed.
        SchemaTooNew: a newer tidegate wrote the backup.
        DataDirLocked: a process uses the directory.
        DataDirUnusable: the directory cannot be made or written to.
    """
    if not file.is_file():
        raise BackupError(f"there is no backup {file}")
    directory = DataDirectory.lock(data_dir)
    try:
        contents = _restore_into(directory, file, data_dir, progress)
    except BaseException as error:
        directory.discard()
        if isinstance(error, OSError):
            raise unusable(directory.path, error) from None
        raise
    directory.unlock()
    return contents


def _restore_into(directory: DataDirectory, file: Path, data_dir: Path, progress: Progress | None) -> Contents:
    if any(os.path.lexists(f"{directory.database}{suffix}") for suffix in ("", "-wal", "-shm")):
        raise BackupError(
            f"{data_dir} has a store already: restore into another directory, or move {DATABASE_FILE}* away first"
        )
    with _new_file(directory.database) as partial:
        with _connection(file, f"backup {file}") as source:
            _check_ours(source, f"backup {file}")
            _copy(source, partial, progress)
        return _examine(partial, f"backup {file}")


@contextmanager
def _new_file(file: Path) -> Iterator[Path]:
    """A file to be filled that gets its name, durably, only when all went well, and never another file's name."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    except OSError as error:
        raise BackupError(f"{file} cannot be written: {error.strerror}") from None
    partial = Path(name)
    try:
        yield partial
        try:
            os.fsync(handle)
            os.link(partial, file)
            sync_directory(file.parent)
        except OSError as error:
            raise BackupError(f"{file} cannot be written: {error.strerror}") from None
    finally:
        os.close(handle)
        partial.unlink()


@contextmanager
def _connection(path: Path, what: str) -> Iterator[sqlite3.Connection]:
    """A connection for reading; SQLite's errors inside the block become BackupErrors about ``what``."""
    connection = None
    try:
        connection = connect(path, cache_kib=READER_CACHE_KIB, read_only=True)
        yield connection
    except sqlite3.Error as error:
        raise BackupError(f"{what} cannot be copied: {error_text(error)}") from None
    finally:
        if connection is not None:
            connection.close()


def _check_ours(connection: sqlite3.Connection, what: str) -> None:
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise BackupError(f"{what} was not written by tidegate")
    refuse_newer(schema_number(connection), len(embedded_migrations()), what)


def _copy(source: sqlite3.Connection, file: Path, progress: Progress | None) -> None:
    """Copy all pages to an empty file. It is synced later, as a whole."""
    target = sqlite3.connect(file, isolation_level=None)
    try:
        target.execute("PRAGMA journal_mode = OFF")
        target.execute("PRAGMA synchronous = OFF")

        def told(_status: int, remaining: int, total: int) -> None:
            if progress is not None:
                progress(total - remaining, total)

        source.backup(target, pages=STEP_PAGES, progress=told)
        target.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
    finally:
        target.close()


def _examine(file: Path, what: str) -> Contents:
    """Check pages, indexes and the logs of all conversations. Raises BackupError."""
    with _connection(file, what) as connection:
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise BackupError(f"{what} is damaged: {found}")
        broken = connection.execute(_BROKEN_LOG).fetchone()
        if broken is not None:
            conversation_id, first, last, count = broken
            raise BackupError(
                f"{what} is damaged: conversation {conversation_id} has {count} entries between {first} and {last}"
            )
        conversations, entries = connection.execute(_COUNTS).fetchone()
    return Contents(conversations, entries, file.stat().st_size)
