"""The store of a cluster: conversations in Cassandra's tables, each appended to by the node that owns it.

What makes it safe is told in ``store/segments.py`` (which rows count), ``store/cassandra_load.py`` (taking over) and
``store/cassandra_log.py`` (appending). A read of a conversation that this node owns shows exactly what is durable. Of
others it shows at least everything that was acknowledged before it began, and perhaps what is under way: who has to
know a head for certain asks the owner.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Final, TypeVar

import trio

from protocol.codec import decode_entry_head
from store import cassandra_reads as reads
from store.cassandra_append import Appender
from store.cassandra_load import Loader, row_of
from store.cassandra_log import OpenLog
from store.cassandra_members import (
    Roster,
    change_rows,
    chunks,
    involvement,
    members_of,
    read_involvements,
    read_members,
    read_stays,
)
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
from store.interface import Done, NotWritten, OutcomeUnknown, StaleEpoch, StoreError, Unavailable
from store.segments import Segments
from store.tables import ConversationRow, EntryWrite, LastSeen, PointersRaised, Tables

LOGS_MAX: Final = 65_536
"""Conversations that the store remembers without anything under way: some 600 bytes each. Eight times what an owner
holds in memory by default (``loaded_conversations_max``), so that none of its appends has to read a row first."""

READS_AT_ONCE: Final = 16
"""Reads that one call has under way: one user with a thousand conversations must not hold up everybody else's reads."""

USERS_PER_READ: Final = 20
"""Users that one read of times online names; each lies in a partition of its own."""

END_WAIT_S: Final = 10.0
"""Seconds that an ending store waits for what is under way; more than Cassandra takes to answer, one way or other."""

PROBE_INTERVAL_S: Final = 1.0
"""Seconds between two looks whether Cassandra answers again, after a write failed."""

PROBE_ID: Final = "probe"
"""A conversation id that none has: they begin with d, g or c."""

BEING_TAKEN_OVER: Final = "it is being taken over"

T = TypeVar("T")
R = TypeVar("R")


class CassandraStore:
    """A ``store.interface.Store`` on the tables of a cluster.

    Use: run the tables, then ``await nursery.start(store.run)``. Before that and after ``run`` has ended, writes fail
    with NotWritten.
    """

    def __init__(self, tables: Tables, may_speak: Callable[[str, int], bool]) -> None:
        """Make a store.

        Args:
            tables: the statements, running already.
            may_speak: whether this node is sure, now, to own a conversation under an epoch. Asked before member rows
                are written, and before memory is trusted with what it knows of a conversation.
        """
        self._tables = tables
        self._may_speak = may_speak
        self._loader = Loader(tables, self._write_entries, may_speak)
        self._appender = Appender(tables, self._loader, may_speak, self._rested, self._noted)
        self._logs: OrderedDict[str, OpenLog] = OrderedDict()
        self._resting: dict[str, trio.Event] = {}
        self._running = False
        self._error: StoreError | None = None
        self._failed = trio.Event()

    # --- Life ---------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then wait for what is under way, up to END_WAIT_S, and tell its outcome."""
        ended = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._work, ended)
            nursery.start_soon(self._probe)
            self._running = True
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._running = False
                ended.set()

    async def _work(self, ended: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
        """Hold the nursery of all work on logs, which outlives a cancellation for a while."""
        with trio.CancelScope(shield=True):
            try:
                async with trio.open_nursery() as nursery:
                    self._appender.start(nursery)
                    task_status.started()
                    await ended.wait()
                    with trio.move_on_after(END_WAIT_S):
                        for log in list(self._logs.values()):
                            await self._rest(log)
                    nursery.cancel_scope.cancel()
            finally:
                self._appender.end(list(self._logs.values()))

    async def _probe(self) -> None:
        """After a write failed, find out when Cassandra answers again."""
        while True:
            await self._failed.wait()
            await trio.sleep(PROBE_INTERVAL_S)
            try:
                await self._tables.conversation(PROBE_ID, serial=False)
            except Unavailable as error:
                self._error = error
            else:
                self._noted(None)
                self._appender.finish_buckets(list(self._logs.values()))

    def _noted(self, error: StoreError | None) -> None:
        if error is not None and self._error is None:
            self._failed.set()
        elif error is None and self._error is not None:
            self._failed = trio.Event()
        self._error = error

    @property
    def writable(self) -> bool:
        """False while the last write failed; heals within about a second of Cassandra's answering again."""
        return self._error is None

    @property
    def trouble(self) -> str:
        """See ``Store.trouble``."""
        return str(self._error or "")

    @property
    def quiet(self) -> bool:
        """Whether the rows tell all that this store knows, and nothing is under way."""
        return all(log.forgettable for log in self._logs.values())

    # --- Logs in memory -----------------------------------------------------------------------------------------

    def _log(self, conversation_id: str) -> OpenLog:
        log = self._logs.get(conversation_id)
        if log is None:
            log = self._logs[conversation_id] = OpenLog(conversation_id)
            self._forget_some()
        else:
            self._logs.move_to_end(conversation_id)
        return log

    def _forget_some(self) -> None:
        """Forget the conversation that was used longest ago, unless the store's rows do not tell all of it yet."""
        if len(self._logs) > LOGS_MAX:
            oldest = next(iter(self._logs.values()))
            if oldest.forgettable:
                del self._logs[oldest.conversation_id]
            else:
                self._logs.move_to_end(oldest.conversation_id)

    def _rested(self, log: OpenLog) -> None:
        """A log has nothing under way any more."""
        event = self._resting.pop(log.conversation_id, None)
        if event is not None:
            event.set()
        if not log.loaded and log.forgettable:
            self._logs.pop(log.conversation_id, None)

    async def _rest(self, log: OpenLog) -> None:
        """Wait until nothing of a log is under way."""
        while not log.idle:
            await self._resting.setdefault(log.conversation_id, trio.Event()).wait()

    def _owned(self, conversation_id: str) -> OpenLog | None:
        """What memory knows of a conversation, if it is surely all there is to know."""
        log = self._logs.get(conversation_id)
        if log is None or not log.loaded or log.new_segment is not None:
            return None
        return log if self._may_speak(conversation_id, log.last.epoch) else None

    # --- Writing ------------------------------------------------------------------------------------------------

    def append(self, batch: Sequence[Append], done: Done) -> None:
        """See ``Store.append``. One write per append in the normal case; writes of many travel together."""
        if self._running:
            self._appender.append([self._log(append.conversation_id) for append in batch], batch, done)
        elif batch:
            refused = [(append, _closed()) for append in batch]
            trio.lowlevel.current_trio_token().run_sync_soon(done, refused)

    async def _write_entries(self, write: EntryWrite) -> None:
        """Write and wait. Raises NotWritten or OutcomeUnknown."""
        answered = trio.Event()
        errors: list[StoreError | None] = []

        def done(results: Sequence[tuple[EntryWrite, StoreError | None]]) -> None:
            errors.extend(error for _, error in results)
            answered.set()

        self._tables.write_entries([write], done)
        await answered.wait()
        self._noted(errors[0])
        if errors[0] is not None:
            raise errors[0]

    async def take_over(self, conversation_id: str, epoch: int, tail_entries_max: int) -> Loaded | None:
        """See ``Store.take_over``. Waits for what this store has under way in the conversation."""
        if not self._running:
            raise Unavailable("the store is closed")
        log = self._log(conversation_id)
        while not log.idle:
            await self._rest(log)
            log = self._log(conversation_id)
        log.busy = BEING_TAKEN_OVER
        loaded = None
        try:
            await self._finish(log, epoch)
            opened = await self._loader.open(log, epoch, tail_entries_max)
            if opened is not None:
                log.loaded = False
                loaded = await self._loader.loaded(log, opened, tail_entries_max)
                log.loaded = True
        finally:
            log.busy = ""
            if not log.loaded:
                self._appender.fail_waiting(log, NotWritten("the conversation could not be taken over"))
            self._appender.advance(log)
        return loaded

    async def _finish(self, log: OpenLog, epoch: int) -> None:
        """Before an owner takes over from itself: what is unknown has to become known. Raises Unavailable."""
        if not log.loaded or log.last.epoch != epoch:
            return
        if log.doubt:
            raise Unavailable("rows of unknown outcome have to be appended again first")
        if log.new_segment is not None:
            try:
                await self._appender.open_bucket(log, 0)
            except (NotWritten, OutcomeUnknown) as error:
                raise Unavailable(str(error)) from None
            except StaleEpoch:
                return  # the row says by whom it was taken over

    async def create(self, record: ConversationRecord, first: StoredEntry, epoch: int) -> bool:
        """See ``Store.create``. One lightweight transaction decides; it carries the first entry."""
        if not self._running:
            raise _closed()
        row = row_of(record, first, epoch)
        if await self._loader.create(row):
            await self._follow(row, first, epoch)
            return True
        if self._owned(record.conversation_id) is None:
            await self._complete(record.conversation_id)
        return False

    async def _follow(self, row: ConversationRow, first: StoredEntry, epoch: int) -> None:
        """Write what a new row promises. Raises OutcomeUnknown: whoever takes the conversation over does the rest."""
        segment = row.segments[0]
        changed = change_rows(row.conversation_id, row.kind, first.entry, Roster("", 0, []))
        try:
            await self._write_entries(EntryWrite(row.conversation_id, segment.bucket, epoch, [first]))
            if not self._may_speak(row.conversation_id, epoch):
                raise OutcomeUnknown("this node is not sure to be the owner any more")
            await self._tables.write(changed.rows)
        except StoreError as error:
            raise OutcomeUnknown(f"the conversation is there, its members may not be yet ({error})") from None

    async def _complete(self, conversation_id: str) -> None:
        """Write what is missing of a conversation whose creation was broken off; nothing if it is older than that."""
        row = await self._tables.conversation(conversation_id, serial=False)
        if row is None or row.segments[-1].first_seq > 2:
            return
        tail = await reads.read_tail(self._tables, conversation_id, row.segments, 1)
        if tail.head_seq <= 1:
            try:
                await self.take_over(conversation_id, row.segments[-1].epoch, 0)
            except StaleEpoch:
                return  # its present owner has done it

    async def save_receipts(self, receipts: Sequence[ReceiptRecord]) -> None:
        """See ``Store.save_receipts``. Without ``joined_seq`` a record costs a read."""
        if not receipts:
            return
        if not self._running:
            raise _closed()
        unknown: dict[str, set[str]] = {}
        for receipt in receipts:
            if not receipt.joined_seq:
                unknown.setdefault(receipt.conversation_id, set()).add(receipt.user)
        joined: dict[tuple[str, str], int] = {}
        try:
            for conversation_id, users in unknown.items():
                for stay in await read_stays(self._tables, conversation_id, users):
                    if not stay.left_seq:
                        joined[conversation_id, stay.user] = stay.joined_seq
        except Unavailable as error:
            raise NotWritten(str(error)) from None
        rows = []
        for each in receipts:
            joined_seq = each.joined_seq or joined.get((each.conversation_id, each.user), 0)
            if joined_seq:
                rows.append(
                    PointersRaised(each.conversation_id, each.user, joined_seq, each.delivered_seq, each.read_seq)
                )
        if rows:
            await self._tables.write(rows)

    async def save_last_seen(self, seen_ms: Sequence[tuple[str, int]]) -> None:
        """See ``Store.save_last_seen``."""
        if seen_ms:
            if not self._running:
                raise _closed()
            await self._tables.write([LastSeen(user, time_ms) for user, time_ms in seen_ms])

    # --- Reading ------------------------------------------------------------------------------------------------

    async def read(
        self, conversation_id: str, *, after_seq: int, before_seq: int, limit: int, newest: bool
    ) -> list[bytes]:
        """See ``Store.read``. Cancelling is safe."""
        if limit <= 0 or before_seq - after_seq <= 1:
            return []
        log = self._owned(conversation_id)
        if log is not None:
            return await self._between(
                conversation_id, log.segments, after_seq, min(before_seq, log.head_seq + 1), limit, newest
            )
        row = await self._tables.conversation(conversation_id, serial=False)
        if row is None:
            return []
        if newest:
            newest_rows = await reads.read_between(
                self._tables, conversation_id, row.segments, after_seq, before_seq, limit, newest=True
            )
            whole = reads.without_gap(newest_rows) == newest_rows
            if whole and newest_rows and newest_rows[-1].seq == before_seq - 1:
                return [each.encoded for each in newest_rows]
            head_seq = (await reads.read_tail(self._tables, conversation_id, row.segments, 0)).head_seq
            before_seq = min(before_seq, head_seq + 1)
        return await self._between(conversation_id, row.segments, after_seq, before_seq, limit, newest)

    async def _between(
        self, conversation_id: str, segments: Segments, after_seq: int, before_seq: int, limit: int, newest: bool
    ) -> list[bytes]:
        rows = await reads.read_between(
            self._tables, conversation_id, segments, after_seq, before_seq, limit, newest=newest
        )
        return [row.encoded for row in reads.without_gap(rows)]

    async def find(
        self, conversation_id: str, sender: str, client_msg_id: str, since_us: int, *, after_seq: int, before_seq: int
    ) -> Search:
        """See ``Store.find``. Cancelling is safe."""
        log = self._owned(conversation_id)
        if log is not None:
            segments, head_seq = log.segments, log.head_seq
        else:
            row = await self._tables.conversation(conversation_id, serial=False)
            if row is None:
                return Search(None, ended=False)
            segments = row.segments
            head_seq = (await reads.read_tail(self._tables, conversation_id, segments, 0)).head_seq
        return await reads.find(
            self._tables, conversation_id, segments, sender, client_msg_id, since_us,
            after_seq=after_seq, before_seq=min(before_seq, head_seq + 1),
        )  # fmt: skip

    async def find_members(self, conversation_id: str, users: Collection[str]) -> dict[str, MemberRecord]:
        """See ``Store.find_members``. Cancelling is safe."""
        return members_of(await read_stays(self._tables, conversation_id, users))

    async def list_members(self, conversation_id: str, *, after: str, limit: int) -> list[MemberRecord]:
        """See ``Store.list_members``. Cancelling is safe."""
        return await read_members(self._tables, conversation_id, after, limit)

    async def involvements(self, user: str) -> list[Involvement]:
        """See ``Store.involvements``. One read for some thousand conversations. Cancelling is safe."""
        return [involvement(row) for row in await read_involvements(self._tables, user)]

    async def memberships(self, user: str, known: Sequence[Involvement | Membership] | None = None) -> list[Membership]:
        """See ``Store.memberships``: one read, and up to three for each conversation. Cancelling is safe.

        Heads of conversations that other nodes own are as the log shows them.
        """
        if known is None:
            known = await self.involvements(user)
        found = await _gather(known, self._membership)
        return [each for each in found if each is not None]

    async def _membership(self, involved: Involvement | Membership) -> Membership | None:
        conversation_id = involved.conversation_id
        log = self._owned(conversation_id)
        if log is not None:
            segments, title, count = log.segments, log.title, log.member_count
            last_rows = await reads.read_between(
                self._tables, conversation_id, segments, 0, log.head_seq + 1, 1, newest=True
            )
        else:
            conversation = await self._tables.conversation(conversation_id, serial=False)
            if conversation is None:
                return None
            last_rows = (await reads.read_tail(self._tables, conversation_id, conversation.segments, 1)).rows
            described = await self._tables.members(conversation_id, after=None, limit=1)
            title, count = described.title, described.member_count
        if not last_rows:
            return None  # its first entry is being written
        last = decode_entry_head(last_rows[-1].encoded)
        return Membership(
            conversation_id,
            involved.kind,
            title,
            involved.joined_seq,
            last.seq,
            last.time_us,
            last_rows[-1].encoded,
            involved.delivered_seq,
            involved.read_seq,
            count,
            involved.peer,
        )

    async def acquainted(self, user: str, others: Collection[str]) -> set[str]:
        """See ``Store.acquainted``: a read for each of them. Cancelling is safe."""
        if not others:
            return set()
        mine = {row.conversation_id for row in await read_involvements(self._tables, user)}

        async def shares(other: str) -> str | None:
            theirs = await read_involvements(self._tables, other)
            return other if any(row.conversation_id in mine for row in theirs) else None

        return {other for other in await _gather(set(others), shares) if other is not None}

    async def last_seen(self, users: Collection[str]) -> dict[str, int]:
        """See ``Store.last_seen``. Cancelling is safe."""
        found: dict[str, int] = {}
        for part in await _gather(list(chunks(users, USERS_PER_READ)), self._tables.last_seen):
            found.update(part)
        return found


async def _gather(values: Iterable[T], read: Callable[[T], Awaitable[R]]) -> list[R]:
    """What ``read`` gives for each value, in no particular order; READS_AT_ONCE of them at a time."""
    found: list[R] = []
    limiter = trio.CapacityLimiter(READS_AT_ONCE)
    errors: list[StoreError] = []

    async def one(value: T, nursery: trio.Nursery) -> None:
        async with limiter:
            try:
                found.append(await read(value))
            except StoreError as error:
                errors.append(error)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for value in values:
            nursery.start_soon(one, value, nursery)
    if errors:
        raise errors[0]
    return found


def _closed() -> StoreError:
    return NotWritten("the store is closed: nothing was stored")
