"""The embedded store: SQLite in WAL mode with synchronous=FULL, one writer thread with group commit, readers apart."""

import sqlite3
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import Concatenate, Final, ParamSpec

import trio

from store import embedded_queries as queries
from store.embedded_checkpoints import Checkpointer
from store.embedded_database import READER_CACHE_KIB, WRITER_CACHE_KIB, begin_log, connect, error_text, unavailable
from store.embedded_directory import (
    DATABASE_FILE,
    DataDirectory,
    DataDirLocked,
    DataDirUnusable,
    unusable,
    unusable_database,
)
from store.embedded_log import Log, read_back
from store.embedded_recent import Generations, Recent
from store.embedded_writer import AppendJob, CallJob, Job, T, Writer
from store.entries import (
    Append,
    ConversationRecord,
    Involvement,
    Loaded,
    MemberRecord,
    Membership,
    ReceiptRecord,
    Search,
    StoredEntry,
)
from store.interface import Done, NotWritten, OutcomeUnknown, StoreError, Unavailable
from store.migrations import SchemaTooNew, embedded_migrations, migrate, refuse_newer, schema_number

__all__ = ["DataDirLocked", "DataDirUnusable", "EmbeddedStore", "SchemaTooNew", "SchemaTooOld"]

READERS_MAX: Final = 4
"""Reads at once: each has a connection and, while it runs, a thread. More would only fight for the same two or so
cores; a read takes some 50 us."""

P = ParamSpec("P")


class SchemaTooOld(StoreError):
    """The database's schema would have to change first. The message gives both schema numbers."""


class EmbeddedStore:
    """A ``store.interface.Store`` in a directory of this machine.

    Use: ``store = EmbeddedStore.open(path)``, then ``await nursery.start(store.run)``. Before that and after ``run``
    has ended, writes fail with NotWritten and reads with Unavailable. ``close`` is for a store that was never run.
    """

    def __init__(self, directory: DataDirectory, connections: list[sqlite3.Connection], recent: Recent) -> None:
        """Use ``open``. ``connections``: for the writer, for checkpoints, and for readers."""
        writer, checkpoints, *readers = connections
        self._directory = directory
        self._readers = readers
        self._reading = trio.CapacityLimiter(len(readers))
        self._recent = recent
        self._checkpointer = Checkpointer(checkpoints)
        self._writer = Writer(directory.database, writer, recent, self._checkpointer, self._notify)
        self._running = False
        self._ended = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._news = trio.Event()

    @classmethod
    def open(cls, data_dir: Path) -> "EmbeddedStore":
        """Lock the directory, making it if need be, and bring its database up to date. Blocks.

        Raises:
            DataDirLocked: another process uses it; the message names its pid.
            DataDirUnusable: it cannot be made or written to, or its database is damaged.
            SchemaTooNew: the database was written by a newer tidegate.
        """
        directory = DataDirectory.lock(data_dir)
        return cls._open(directory, inherited=False)

    @classmethod
    def inherit(cls, data_dir: Path, lock: int) -> "EmbeddedStore":
        """Open the store of a process that is about to end, with its lock, while it has it open and is ``quiet``.

        The lock's descriptor belongs to the store from now on, also when this raises: the other process has its own
        copy, and holds the directory as before. Call ``note_holder`` when that one cannot go on any more. Blocks.

        Raises:
            DataDirUnusable, SchemaTooNew: as ``open`` does.
            SchemaTooOld: the schema would have to change, and the other process could not go on then.
        """
        return cls._open(DataDirectory.inherit(data_dir, lock), inherited=True)

    @classmethod
    def _open(cls, directory: DataDirectory, *, inherited: bool) -> "EmbeddedStore":
        connections: list[sqlite3.Connection] = []
        try:
            directory.make_database()
            writer = connect(directory.database, cache_kib=WRITER_CACHE_KIB)
            connections.append(writer)
            if inherited:
                # Whoever had it has synced what it acknowledged, and is alive to say that no write of its failed.
                _require_current(writer, directory.database)
            else:
                begin_log(writer, directory.database)
                migrate(writer, embedded_migrations(), f"database {directory.database}")
            connections.append(connect(directory.database, cache_kib=READER_CACHE_KIB))
            connections.extend(
                connect(directory.database, cache_kib=READER_CACHE_KIB, read_only=True) for _ in range(READERS_MAX)
            )
            return cls(directory, connections, read_back(writer))
        except BaseException as error:
            for connection in connections:
                connection.close()
            directory.unlock()
            if isinstance(error, sqlite3.Error):
                raise unusable_database(directory, error) from None
            if isinstance(error, OSError):
                raise unusable(directory.path, error) from None
            raise

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then finish what was queued, tell its outcome, and close everything."""
        self._token = trio.lowlevel.current_trio_token()
        self._running = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                try:
                    task_status.started()
                    await trio.sleep_forever()
                finally:
                    self._stop()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.close)

    def close(self) -> None:
        """Close a store that does not run. Blocks for a moment."""
        self._writer.close()
        self._checkpointer.close()
        for reader in self._readers:
            reader.close()
        self._directory.unlock()

    @property
    def writable(self) -> bool:
        """False while the last write failed for a reason that concerns all of them; heals within about a second."""
        return self._writer.error is None

    @property
    def quiet(self) -> bool:
        """Whether nothing is being moved in the database: with nothing queued, nobody writes to it any more."""
        return self._checkpointer.idle

    @property
    def lock_descriptor(self) -> int:
        """What holds the directory's lock, for a process that is to ``inherit`` the store."""
        return self._directory.lock_descriptor

    def note_holder(self) -> None:
        """Note this process's id beside the lock, after ``inherit``."""
        self._directory.note_holder()

    @property
    def write_error(self) -> StoreError | None:
        """Why the store is not writable, None while it is."""
        return self._writer.error

    @property
    def trouble(self) -> str:
        """See ``Store.trouble``: a failed write, or else a failed checkpoint, which only makes the log grow."""
        return str(self._writer.error or self._checkpointer.error or "")

    @property
    def commits(self) -> int:
        """Transactions made durable so far."""
        return self._writer.commits

    def observe_commits(self, observe: Callable[[int, float], None]) -> None:
        """Call ``observe`` after each commit, in the writer thread, with its size in entries and its seconds."""
        self._writer.on_commit = observe

    def append(self, batch: Sequence[Append], done: Done) -> None:
        """See ``Store.append``. What waits here is bounded by the owner, which bounds the sends in progress."""
        job = AppendJob(batch, done)
        if self._running:
            self._writer.submit(job)
        else:
            job.fail(_closed)
            _finish_soon(job)

    async def take_over(self, conversation_id: str, epoch: int, tail_entries_max: int) -> Loaded | None:
        """See ``Store.take_over``. Goes through the writer's queue, so it sees every append made before it."""
        try:
            exists = await self._call(lambda log: log.take_over(conversation_id, epoch))
        except (NotWritten, OutcomeUnknown) as error:
            raise Unavailable(str(error)) from None
        if not exists:
            return None
        return await self._read(queries.load, conversation_id, tail_entries_max)

    async def create(self, record: ConversationRecord, first: StoredEntry, epoch: int) -> bool:
        """See ``Store.create``."""
        return await self._call(lambda log: log.create(record, first, epoch))

    async def read(
        self, conversation_id: str, *, after_seq: int, before_seq: int, limit: int, newest: bool
    ) -> list[bytes]:
        """See ``Store.read``."""
        return await self._read(queries.entries, conversation_id, after_seq, before_seq, limit, newest=newest)

    async def find(
        self, conversation_id: str, sender: str, client_msg_id: str, since_us: int, *, after_seq: int, before_seq: int
    ) -> Search:
        """See ``Store.find``. Cancelling is safe."""
        return await self._read(
            queries.find, conversation_id, sender, client_msg_id, since_us, after_seq=after_seq, before_seq=before_seq
        )

    async def find_members(self, conversation_id: str, users: Collection[str]) -> dict[str, MemberRecord]:
        """See ``Store.find_members``. Cancelling is safe."""
        return await self._read(queries.find_members, conversation_id, users)

    async def list_members(self, conversation_id: str, *, after: str, limit: int) -> list[MemberRecord]:
        """See ``Store.list_members``. Cancelling is safe."""
        return await self._read(queries.list_members, conversation_id, after, limit)

    async def memberships(self, user: str, known: Sequence[Involvement | Membership] | None = None) -> list[Membership]:
        """See ``Store.memberships``. Cancelling is safe."""
        found = await self._read(queries.memberships, user)
        if known is None:
            return found
        wanted = {each.conversation_id for each in known}
        return [each for each in found if each.conversation_id in wanted]

    async def involvements(self, user: str) -> list[Involvement]:
        """See ``Store.involvements``. Cancelling is safe."""
        return await self._read(queries.involvements, user)

    async def acquainted(self, user: str, others: Collection[str]) -> set[str]:
        """See ``Store.acquainted``. Cancelling is safe."""
        return await self._read(queries.acquainted, user, others)

    async def save_receipts(self, receipts: Sequence[ReceiptRecord]) -> None:
        """See ``Store.save_receipts``."""
        if receipts:
            await self._call(lambda log: log.save_receipts(receipts))

    async def save_last_seen(self, seen_ms: Sequence[tuple[str, int]]) -> None:
        """See ``Store.save_last_seen``."""
        if seen_ms:
            await self._call(lambda log: log.save_last_seen(seen_ms))

    async def last_seen(self, users: Collection[str]) -> dict[str, int]:
        """See ``Store.last_seen``. Cancelling is safe."""
        return await self._read(queries.last_seen, users)

    async def _call(self, function: Callable[[Log], T]) -> T:
        if not self._running:
            raise _closed()
        job = CallJob(function)
        self._writer.submit(job)
        return await job.wait()

    async def _read(
        self, query: Callable[Concatenate[sqlite3.Connection, Generations, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if not self._running:
            raise Unavailable("the store is closed")
        return await trio.to_thread.run_sync(
            self._in_snapshot,
            lambda connection, generations: query(connection, generations, *args, **kwargs),
            limiter=self._reading,
        )

    def _in_snapshot(self, query: Callable[[sqlite3.Connection, Generations], T]) -> T:
        """Run a query of any number of statements on one state of the database, in a reader thread."""
        connection = self._readers.pop()  # as many as the limiter has tokens
        try:
            generations = self._recent.generations  # before the snapshot, which begins with the first SELECT
            connection.execute("BEGIN")
            return query(connection, generations)
        except sqlite3.Error as error:
            raise unavailable(error) from None
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._readers.append(connection)

    def _stop(self) -> None:
        self._running = False
        self._writer.stop()

    async def _write(self) -> None:
        """Run the writer thread and tell its outcomes, to the last one, even when cancelled."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell)
                nursery.start_soon(_in_thread, self._checkpointer.loop)
                try:
                    await _in_thread(self._writer.loop)
                finally:
                    self._checkpointer.stop()
                self._ended = True
                self._news.set()
            for _ in range(READERS_MAX):  # reads in progress keep their connections until they are done
                await self._reading.acquire_on_behalf_of(object())

    async def _tell(self) -> None:
        finished = self._writer.finished
        try:
            while finished or not self._ended:
                await self._news.wait()
                self._news = trio.Event()
                while finished:
                    finished.popleft().finish()
                    # A group has many batches, and telling of one takes a millisecond or two: let others in between.
                    await trio.lowlevel.checkpoint()
        finally:
            self._stop()  # a callback may have failed: the threads must end, or nobody would hear of it

    def _notify(self) -> None:
        """Called in the writer thread."""
        assert self._token is not None
        self._token.run_sync_soon(self._wake, idempotent=True)

    def _wake(self) -> None:
        self._news.set()


def require_current(data_dir: Path) -> None:
    """Make sure that a database, which another process may have open, needs no change for this program. Blocks.

    Raises:
        SchemaTooOld, SchemaTooNew: it is of another schema.
        DataDirUnusable: it cannot be read.
    """
    database = data_dir.absolute() / DATABASE_FILE
    try:
        with closing(connect(database, cache_kib=READER_CACHE_KIB, read_only=True)) as connection:
            _require_current(connection, database)
    except sqlite3.Error as error:
        raise DataDirUnusable(f"database {database} cannot be used: {error_text(error)}") from None


def _require_current(connection: sqlite3.Connection, database: Path) -> None:
    found, known = schema_number(connection), len(embedded_migrations())
    refuse_newer(found, known, f"database {database}")
    if found < known:
        raise SchemaTooOld(
            f"database {database} is of schema {found}, and this tidegate needs {known}: "
            "stop the node and start the new one, which brings it up to date"
        )


def _closed() -> StoreError:
    return NotWritten("the store is closed: nothing was stored")


async def _in_thread(loop: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(loop, limiter=trio.CapacityLimiter(1))


def _finish_soon(job: Job) -> None:
    trio.lowlevel.current_trio_token().run_sync_soon(job.finish)
