"""The writer thread of the embedded store: takes what is queued, commits it as one group, tells what became of it.

Errors. A group whose statements fail is rolled back: nothing of it can ever appear. A failed COMMIT is different when
the failure is that of fdatasync: the group's pages stand in the write-ahead log, perhaps on the disk, perhaps only in
the kernel's cache, and a process that is killed now would find them there when it starts again. Nothing is read back
to find out, because after a failed fdatasync the kernel's pages prove nothing. Instead the writer commits a probe,
which SQLite puts in the very place of the failed group: once that is durable, the group is surely gone. Until then
every write is answered with OutcomeUnknown, and its owner appends the same rows again.
"""

import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, Generic, TypeVar

import trio

from store.embedded_checkpoints import CHECKPOINT_PAGES, Checkpointer
from store.embedded_database import WRITER_CACHE_KIB, connect, not_written, outcome_unknown
from store.embedded_log import Log
from store.embedded_recent import Recent
from store.entries import Append
from store.interface import Done, Outcome, StoreError

GROUP_ENTRIES_MAX: Final = 4_096
"""Entries after which a group takes no more batches: bounds the time of one transaction (some 20 ms)."""

PROBE_INTERVAL_S: Final = 1.0
"""Seconds between two probes of a disk that refused the last write."""

SURELY_VOID: Final = frozenset((sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_BUSY))
"""Error codes of a COMMIT that wrote no commit record: it is written last, and only then synced."""

T = TypeVar("T")


class Job(ABC):
    """One thing for the writer to do. ``weight`` is what it counts for in a group, in entries."""

    weight = 1

    @abstractmethod
    def apply(self, log: Log) -> None:
        """Do it, inside a transaction, in the writer thread."""

    @abstractmethod
    def fail(self, make_error: Callable[[], StoreError]) -> None:
        """Take back what ``apply`` found: its transaction failed."""

    @abstractmethod
    def finish(self) -> None:
        """Tell whoever waits, in the trio thread."""


class AppendJob(Job):
    """A batch of appends."""

    def __init__(self, batch: Sequence[Append], done: Done) -> None:
        self._batch = batch
        self._done = done
        self._outcomes: list[Outcome] = []
        self.weight = sum(len(append.entries) for append in batch)

    def apply(self, log: Log) -> None:
        take = log.append
        self._outcomes = [(append, take(append)) for append in self._batch]

    def fail(self, make_error: Callable[[], StoreError]) -> None:
        self._outcomes = [(append, make_error()) for append in self._batch]

    def finish(self) -> None:
        self._done(self._outcomes)


class CallJob(Job, Generic[T]):
    """A function on the log, whose result somebody awaits."""

    def __init__(self, function: Callable[[Log], T]) -> None:
        self._function = function
        self._result: T | StoreError
        self._finished = trio.Event()

    def apply(self, log: Log) -> None:
        try:
            self._result = self._function(log)
        except StoreError as error:
            self._result = error

    def fail(self, make_error: Callable[[], StoreError]) -> None:
        self._result = make_error()

    def finish(self) -> None:
        self._finished.set()

    async def wait(self) -> T:
        """The function's result, once it is durable. Cancelling gives up waiting; the writer still does it."""
        await self._finished.wait()
        if isinstance(self._result, StoreError):
            raise self._result
        return self._result


class Writer:
    """A queue of jobs and the loop that works it off in a thread of its own.

    Attributes:
        finished: jobs whose outcome is known, for the trio thread to call ``finish`` on, in order.
        error: what the last write failed of, None while writes succeed.
        commits: transactions committed so far; far fewer than appends when groups form.
        on_commit: called in the writer thread after each, with its weight in entries and how many seconds it took.
    """

    def __init__(
        self,
        database: Path,
        connection: sqlite3.Connection,
        recent: Recent,
        checkpointer: Checkpointer,
        notify: Callable[[], None],
    ) -> None:
        """``notify`` is called in the writer thread when ``finished`` has something new."""
        self.finished: deque[Job] = deque()
        self.error: StoreError | None = None
        self.commits = 0
        self.on_commit: Callable[[int, float], None] = lambda _entries, _seconds: None
        self._database = database
        self._connection = connection
        self._recent = recent
        self._checkpointer = checkpointer
        self._log = Log(connection, recent)
        self._notify = notify
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._unresolved: sqlite3.Error | None = None

    def submit(self, job: Job) -> None:
        """Queue a job. Never blocks; what may wait here is bounded by the owner (``pending_sends_max``)."""
        self._queue.put(job)

    def stop(self) -> None:
        """End the loop once everything queued before is done."""
        self._queue.put(None)

    def loop(self) -> None:
        """Work until ``stop``. Runs in the writer thread."""
        threading.current_thread().name = "tidegate store writer"
        running = True
        while running:
            group, running = self._take()
            if self.error is not None:
                self._probe()
            if group:
                self._do(group)
                self.finished.extend(group)
                self._notify()

    def close(self) -> None:
        """Close the connection; the loop does not run."""
        self._connection.close()

    def _take(self) -> tuple[list[Job], bool]:
        """Wait for a job and take all that are queued behind it; nothing when it is time to probe."""
        group: list[Job] = []
        weight = 0
        try:
            job = self._queue.get(timeout=None if self.error is None else PROBE_INTERVAL_S)
            while job is not None:
                group.append(job)
                weight += job.weight
                if weight >= GROUP_ENTRIES_MAX:
                    return group, True
                job = self._queue.get_nowait()
        except Empty:
            return group, True
        return group, False

    def _do(self, group: Sequence[Job]) -> None:
        """Commit a group; afterwards each of its jobs knows its outcome."""
        if self._unresolved is not None:
            _fail(group, partial(outcome_unknown, self._unresolved))
            return
        may_checkpoint = self._checkpointer.idle
        committing = False
        began_s = time.monotonic()
        try:
            self._log.begin()
            for job in group:
                job.apply(self._log)
            part = self._log.write_rows()
            committing = True
            changed = self._log.commit()
        except sqlite3.Error as error:
            self._failed(group, error, committing)
            return
        if part is not None:
            self._recent.indexed(part)
        self._recent.freeze_if_full()
        self.commits += changed
        if changed:
            self.on_commit(sum(job.weight for job in group), time.monotonic() - began_s)
        if changed and may_checkpoint:
            self._checkpoint()

    def _checkpoint(self) -> None:
        """After a commit that began while no checkpoint ran: see to it that the write-ahead log does not grow on."""
        if self._checkpointer.log_is_long:
            self._checkpointer.finish_in(self._connection)
        elif self._log.pages_written >= CHECKPOINT_PAGES:
            self._log.pages_written = 0
            self._checkpointer.start()

    def _failed(self, group: Sequence[Job], error: sqlite3.Error, committing: bool) -> None:
        self._roll_back()
        self.error = not_written(error)
        if committing and getattr(error, "sqlite_errorcode", None) not in SURELY_VOID:
            self._unresolved = error
            self.error = outcome_unknown(error)
            self._probe()
        _fail(group, partial(not_written if self._unresolved is None else outcome_unknown, error))

    def _probe(self) -> None:
        """Try whether the disk takes writes; if so, all is well again and no failed group can reappear."""
        try:
            self._log.begin()
            self._log.probe()
            self._log.commit()
        except sqlite3.Error as error:
            self._roll_back()
            self.error = not_written(error) if self._unresolved is None else outcome_unknown(error)
        else:
            self.error = self._unresolved = None

    def _roll_back(self) -> None:
        """End the transaction, with a new connection if it cannot be ended in this one."""
        try:
            self._log.roll_back()
        except sqlite3.Error:
            self._connection.close()
            # The readers' connections are open still, so closing this one neither moves nor recovers any page.
            with suppress(sqlite3.Error):  # the next transaction fails on the closed connection and comes here again
                self._connection = connect(self._database, cache_kib=WRITER_CACHE_KIB)
                self._log = Log(self._connection, self._recent)


def _fail(group: Sequence[Job], make_error: Callable[[], StoreError]) -> None:
    for job in group:
        job.fail(make_error)
