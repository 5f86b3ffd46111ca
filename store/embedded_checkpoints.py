"""Moves pages from the write-ahead log to the database file, in a thread of its own, so that commits do not wait.

SQLite would do it in the middle of a commit once the log has 1,000 pages; with fdatasync and scattered pages that is a
pause of up to hundreds of milliseconds. Here a second connection does it (``PASSIVE``, which blocks nobody). Such a
checkpoint never catches up with a busy writer, so when the log is long the writer itself moves the few pages that are
left, between two commits; the next commit then begins at the start of the log file. That file keeps its size: syncing
a file that does not grow is faster.

SQLite before 3.51.3 can lose pages when a checkpoint begins in the very moment in which a writer starts the log file
anew (the "WAL-reset bug"), which a writer does only if all of the log has been moved. That moment is never met here: a
checkpoint starts only after a commit that began when no checkpoint ran, so that there is something in the log to move;
nobody but this module moves anything, and the writer never moves pages while this thread does.
"""

import sqlite3
import threading
from queue import SimpleQueue
from typing import Final

from store.embedded_database import error_text

CHECKPOINT_PAGES: Final = 512
"""Pages written to the log (an estimate, 4 KiB each) after which a checkpoint starts: 2 MiB, which takes some
milliseconds to move and sync. After 16 MiB it took 30 to 100 ms, and commits waited for the disk as long; pages that
change often are moved more often now, which the processor does not notice."""

LOG_PAGES_MAX: Final = 16_384
"""Pages in the log file (64 MiB) above which the writer makes it begin anew. It bounds the file, unless a backup in
progress holds on to it, and the time that a restart takes."""


class Checkpointer:
    """One thread that runs a checkpoint when told to.

    Attributes:
        idle: no checkpoint runs. Set to False by ``start`` only.
        log_is_long: the writer should move what is left, see ``finish_in``.
        error: what the last checkpoint failed of, or None. Nothing is lost then: the log keeps the pages.
        checkpoints: how many were done.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.idle = True
        self.log_is_long = False
        self.error: str | None = None
        self.checkpoints = 0
        self._connection = connection
        self._orders: SimpleQueue[bool] = SimpleQueue()

    def start(self) -> None:
        """Run a checkpoint. Only after a commit that changed something and that began while ``idle`` was true."""
        assert self.idle
        self.idle = False
        self._orders.put(True)

    def stop(self) -> None:
        """End the loop after the checkpoint in progress."""
        self._orders.put(False)

    def loop(self) -> None:
        """Work until ``stop``. Runs in the checkpoint thread."""
        threading.current_thread().name = "tidegate store checkpoints"
        while self._orders.get():
            pages = self._move(self._connection)
            self.log_is_long = pages > LOG_PAGES_MAX
            self.idle = True

    def finish_in(self, writer: sqlite3.Connection) -> None:
        """Move what is left, in the writer thread between two transactions and while ``idle`` is true."""
        assert self.idle
        self.log_is_long = False
        self._move(writer)

    def close(self) -> None:
        """Close the connection; the loop does not run."""
        self._connection.close()

    def _move(self, connection: sqlite3.Connection) -> int:
        """Checkpoint; returns the pages in the log, 0 if it failed."""
        try:
            _busy, pages, _moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            self.error = f"pages cannot be moved from the write-ahead log to the database: {error_text(error)}"
            return 0
        self.error = None
        self.checkpoints += 1
        return int(pages)
