"""Connections to the embedded database, and what its errors mean."""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from store.interface import NotWritten, OutcomeUnknown, Unavailable

BUSY_TIMEOUT_S: Final = 10.0
"""Seconds that SQLite waits for a lock. Nobody but this process writes; a backup's last moment may hold one briefly."""

WRITER_CACHE_KIB: Final = 65_536
"""Page cache of the writer: holds the pages that a group changes, so that none is spilled before its commit."""

READER_CACHE_KIB: Final = 8_192
"""Page cache of one reader: the inner pages of all indexes; leaves come from the kernel's cache."""


def connect(path: Path, *, cache_kib: int, read_only: bool = False) -> sqlite3.Connection:
    """Open an existing database file in autocommit mode, to be used by one thread at a time.

    Settings, and why:
        synchronous=FULL: a commit returns after fdatasync of the write-ahead log.
        wal_autocheckpoint=0: checkpoints are started by the writer, see ``embedded_checkpoints``.
        mmap_size=0: an I/O error in mapped memory is a signal that kills the process, not an error code.
        page_size stays 4096: smaller pages make more overflow, larger ones more log for each change of the index.

    Raises sqlite3.Error.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_TIMEOUT_S,
        cached_statements=256,
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def begin_log(connection: sqlite3.Connection, path: Path) -> None:
    """Turn the write-ahead log on and make durable whatever an earlier process left in it.

    That one may have been killed between writing a commit and syncing it. SQLite finds such a commit again, from the
    kernel's cache; it must be on the disk before anybody sees it, and copying it to the database file puts it there
    even if an earlier fdatasync has failed.

    Raises:
        sqlite3.Error: the database is damaged, or locked by something that is no tidegate.
        OSError: the log could not be synced.
    """
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # finds what was left
    with suppress(FileNotFoundError):
        log = os.open(f"{path}-wal", os.O_RDWR | os.O_CLOEXEC)  # SQLite holds no lock on this file that closing ends
        try:
            os.fsync(log)
        finally:
            os.close(log)
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.OperationalError as error:
        if not is_disk_full(error):  # on a full disk, reads must go on; the log is synced
            raise


def error_text(error: sqlite3.Error) -> str:
    """What SQLite says, with the name of its error code (which tells a full disk from a broken one)."""
    name = getattr(error, "sqlite_errorname", None)
    return f"{error} ({name})" if name else str(error)


def unavailable(error: sqlite3.Error) -> Unavailable:
    """The error of a read."""
    return Unavailable(f"the database cannot be read: {error_text(error)}")


def is_disk_full(error: sqlite3.Error) -> bool:
    """Whether an error says that there is no room (on the disk, in a quota, or below a size limit)."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL


def not_written(error: sqlite3.Error) -> NotWritten:
    """The error of a write that surely left nothing behind."""
    if is_disk_full(error):
        return NotWritten("the disk is full: nothing was stored; free some space and it goes on by itself")
    return NotWritten(f"nothing was stored: {error_text(error)}")


def outcome_unknown(error: sqlite3.Error) -> OutcomeUnknown:
    """The error of a write that may or may not be durable."""
    return OutcomeUnknown(f"whether it was stored is not known: {error_text(error)}")
