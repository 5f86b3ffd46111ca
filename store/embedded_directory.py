"""The data directory of the embedded store: private to its owner, and used by one process at a time."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from store.embedded_database import error_text
from store.interface import StoreError

DATABASE_FILE = "tidegate.db"
LOCK_FILE = "lock"


class DataDirLocked(StoreError):
    """Another process uses the data directory. The message names its pid."""


class DataDirUnusable(StoreError):
    """The data directory cannot be made, entered or written to. The message says which and what to do."""


class DataDirectory:
    """A locked data directory. The lock is the kernel's (flock): it ends with the process, however that ends."""

    def __init__(self, path: Path, lock: int, made: Sequence[Path] = ()) -> None:
        """``made``: the lock file and the directories that were not there before, the innermost first."""
        self.path = path
        self._lock = lock
        self._made = made

    @property
    def database(self) -> Path:
        """The database file. SQLite keeps ``-wal`` and ``-shm`` files beside it."""
        return self.path / DATABASE_FILE

    @classmethod
    def lock(cls, path: Path) -> "DataDirectory":
        """Make the directory (mode 0700) if there is none, and lock it.

        Raises:
            DataDirLocked: another process holds the lock.
            DataDirUnusable: not a directory, or no permission.
        """
        path = path.absolute()
        file = path / LOCK_FILE
        while True:
            try:
                made = [each for each in (file, path, *path.parents) if not each.exists()]
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise unusable(path, error) from None
            try:
                _lock(path, lock)
                if _is_there(path, lock):
                    return cls(path, lock, made)
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)  # ``discard`` in another process removed it before this one had it: lock what others will

    @classmethod
    def inherit(cls, path: Path, lock: int) -> "DataDirectory":
        """Take over a directory with the locked descriptor of the process that had it; that is this one's from now on.

        The kernel's lock belongs to what all copies of the descriptor refer to: nobody else can come between.
        """
        return cls(path.absolute(), lock)

    @property
    def lock_descriptor(self) -> int:
        """What holds the lock, for a process that is to ``inherit`` it."""
        return self._lock

    def make_database(self) -> None:
        """Make an empty database file that only its owner may read, if there is none; durable on return.

        Raises DataDirUnusable.
        """
        try:
            os.close(os.open(self.database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            sync_directory(self.path)
            sync_directory(self.path.parent)
        except OSError as error:
            raise unusable(self.path, error) from None

    def note_holder(self) -> None:
        """Note this process's id as that of the holder."""
        _note_pid(self._lock)

    def unlock(self) -> None:
        """Let the next process in. The lock file stays, and is ready for it."""
        os.close(self._lock)

    def discard(self) -> None:
        """Let the next process in, and remove what ``lock`` made, for who could not use it; directories if empty.

        Whoever opened the lock file before notices that it is gone, and locks a new one.
        """
        with contextlib.suppress(OSError):  # not empty any more, or not to be written to: it stays
            for each in self._made:
                if each == self.path / LOCK_FILE:
                    each.unlink()
                else:
                    each.rmdir()
        os.close(self._lock)


def _lock(path: Path, lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise DataDirLocked(
            f"data directory {path} is in use by another tidegate process (pid {holder}): "
            "stop that one first, or choose another directory with --data-dir"
        ) from None
    except OSError as error:
        raise unusable(path, error) from None
    _note_pid(lock)


def _is_there(path: Path, lock: int) -> bool:
    """Whether the open lock file is still that of the directory. Raises DataDirUnusable."""
    try:
        return os.path.samestat(os.stat(path / LOCK_FILE), os.fstat(lock))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unusable(path, error) from None


def _note_pid(lock: int) -> None:
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)
    except OSError as error:  # a full disk: the pid only helps the next one's error message
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
        del error


def holder_pid(path: Path) -> int | None:
    """The process that has the data directory now; None where nobody has, or it cannot be told.

    The file alone does not tell: it keeps the pid of a process that has ended.
    """
    try:
        lock = os.open(path / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdecimal() else None
    else:
        return None
    finally:
        os.close(lock)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def unusable(path: Path, error: OSError) -> DataDirUnusable:
    """Say what is wrong with a data directory."""
    # mkdir says "File exists" of a file in its place, which nobody would understand
    reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror or str(error)
    if error.filename and Path(error.filename).absolute() != path.absolute():
        reason += f" ({Path(error.filename).name})"
    return _unusable(path, reason)


def unusable_database(directory: DataDirectory, error: sqlite3.Error) -> DataDirUnusable:
    """Say what is wrong with a database, or with the directory in which SQLite has to write beside it."""
    if getattr(error, "sqlite_errorname", "").startswith("SQLITE_READONLY"):
        return _unusable(directory.path, error_text(error))
    return DataDirUnusable(f"database {directory.database} cannot be used: {error_text(error)}")


def _unusable(path: Path, reason: str) -> DataDirUnusable:
    return DataDirUnusable(
        f"data directory {path} cannot be used: {reason}: it must be a directory that this user may write to, "
        "and so must be the files in it; choose another one with --data-dir"
    )
