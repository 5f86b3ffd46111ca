"""The tables on a real Cassandra, by its Python driver."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

import msgspec
import structlog
import trio
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, Session
from cassandra.query import BoundStatement

from protocol.frames import ConversationKind
from store.cassandra_binding import Binding
from store.cassandra_grouping import Grouping, Landing, replica_sets, tell
from store.cassandra_migrations import check_schema
from store.cassandra_requests import Requests, Rows
from store.cassandra_session import (
    DRIVER_ERRORS,
    READS,
    SERIAL_READS,
    Access,
    asked_datacenter,
    connect,
    open_cluster,
    replication_of,
)
from store.cassandra_statements import prepare
from store.coordination import LeaseRecord
from store.interface import NotWritten, StoreError, Unavailable
from store.recurring import Recurring
from store.replication import doubts
from store.segments import Segment, Segments
from store.tables import (
    ConversationRow,
    Described,
    EntriesDone,
    EntryRow,
    EntryWrite,
    InvolvementRow,
    LastSeen,
    MemberJoined,
    MemberLeft,
    MemberRow,
    Members,
    PointersRaised,
    RowWrite,
    SlotsRow,
)

CONNECT_AGAIN_S: Final = 1.0
"""Seconds before a node that found no Cassandra looks again."""

END_WAIT_S: Final = 10.0
"""Seconds that ending tables wait for requests under way: more than each of them may take."""

TRANSACTION: Final = 2
"""Partitions that a transaction counts as: it may fail when it is half done."""

log = structlog.get_logger(__name__)

_decode_segments: Final = msgspec.msgpack.Decoder(tuple[Segment, ...]).decode
_encode: Final = msgspec.msgpack.Encoder().encode


class CassandraTables:
    """Implements ``store.tables.Tables``. Use: ``await nursery.start(tables.run)``, then call it.

    Attributes:
        waiting_for: what ``run`` waits for before it starts, in words; empty once it has started.
        reads: statements sent that read, those behind a transaction whose outcome is unknown included, ever.
        datacenter: whose replicas alone are asked; empty: those of all are, or it is not known yet.
    """

    def __init__(self, access: Access, requests_max: int, *, patient: bool = True) -> None:
        """Describe where they are; nothing is connected yet.

        Args:
            access: how to get in.
            requests_max: requests under way at once.
            patient: whether ``run`` waits for a Cassandra that is not there, as nodes do.
        """
        self._access = access
        self._patient = patient
        self._requests_max = requests_max
        self.waiting_for = "no connection to Cassandra was tried yet"
        self.reads = 0
        self.datacenter = ""
        self._requests: Requests | None = None
        self._bindings: dict[str, Binding] = {}
        self._replicas_of: Callable[[bytes], object] = lambda _key: None

    @property
    def requests(self) -> int:
        """Requests sent so far, a batch being one."""
        return self._requests.sent if self._requests is not None else 0

    @property
    def statements(self) -> int:
        """Statements sent so far, those in batches counted each."""
        return self._requests.statements if self._requests is not None else 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, waiting for Cassandra as long as it takes; serve until cancelled, then let requests end.

        Raises CannotUse or a schema error: waiting will not help; Unavailable only where it is not ``patient``.
        """
        cluster, session = await self._connect()
        try:
            requests = self._requests = Requests(session, self._requests_max)
            self._replicas_of = replica_sets(cluster.metadata, self._access.keyspace)
            task_status.started()
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(END_WAIT_S):
                    await requests.finished()
                self._requests = None
                requests.refuse_waiting()
                await trio.to_thread.run_sync(cluster.shutdown)

    async def _connect(self) -> tuple[Cluster, Session]:
        absence = Recurring("waiting for Cassandra", "Cassandra is there")
        while True:
            try:
                connected = await trio.to_thread.run_sync(self._connect_now)
            except Unavailable as error:
                if not self._patient:
                    raise
                self.waiting_for = str(error)
                absence.came(reason=str(error))
            else:
                absence.over()
                self.waiting_for = ""
                return connected
            await trio.sleep(CONNECT_AGAIN_S)

    def _connect_now(self) -> tuple[Cluster, Session]:
        access = self._access
        cluster = open_cluster(access)
        try:
            session = connect(cluster, access)
            check_schema(session, access.keyspace)
            for doubt in doubts(replication_of(cluster, access), access.consistency, access.datacenter):
                log.warning("the keyspace's copies", keyspace=access.keyspace, doubt=doubt)
            self._bindings = {name: Binding(each) for name, each in prepare(session).items()}
            self.datacenter = asked_datacenter(cluster, access)
        except BaseException as error:
            cluster.shutdown()
            if isinstance(error, DRIVER_ERRORS) and not isinstance(error, StoreError):
                raise Unavailable(f"Cassandra failed while its statements were prepared ({error})") from None
            raise
        return cluster, session

    # --- Running statements -------------------------------------------------------------------------------------

    async def _read(self, name: str, values: Sequence[Any], profile: object = READS) -> Rows:
        if self._requests is None:
            raise Unavailable("there is no session with Cassandra")
        self.reads += 1
        return await self._requests.run(self._bind(name, values), 0, profile)

    async def _transact(self, name: str, values: Sequence[Any]) -> bool:
        if self._requests is None:
            raise NotWritten("there is no session with Cassandra")
        rows = await self._requests.run(self._bind(name, values), TRANSACTION, EXEC_PROFILE_DEFAULT)
        return bool(rows[0][0])

    def _bind(self, name: str, values: Sequence[Any]) -> BoundStatement:
        return self._bindings[name](values)

    # --- Conversations and their logs ---------------------------------------------------------------------------

    async def conversation(self, conversation_id: str, *, serial: bool) -> ConversationRow | None:
        """See ``ConversationTables.conversation``."""
        rows = await self._read("conversation", (conversation_id,), SERIAL_READS if serial else READS)
        if not rows:
            return None
        _, kind, creator, created_us, first, segments, nonce = rows[0]
        kind = ConversationKind(kind)
        return ConversationRow(conversation_id, kind, creator, created_us, first, _decode_segments(segments), nonce)

    async def insert_conversation(self, row: ConversationRow) -> bool:
        """See ``ConversationTables.insert_conversation``."""
        values = (int(row.kind), row.creator, row.created_us, row.first, _encode(row.segments), row.nonce)
        return await self._transact("insert_conversation", (row.conversation_id, *values))

    async def change_segments(self, conversation_id: str, nonce: str, new_nonce: str, segments: Segments) -> bool:
        """See ``ConversationTables.change_segments``."""
        return await self._transact("change_segments", (_encode(segments), new_nonce, conversation_id, nonce))

    def write_entries(self, writes: Sequence[EntryWrite], done: EntriesDone) -> None:
        """See ``ConversationTables.write_entries``."""
        if self._requests is None:
            error = NotWritten("there is no session with Cassandra")
            trio.lowlevel.current_trio_token().run_sync_soon(done, [(write, error) for write in writes])
            return
        grouping = Grouping(self._replicas_of)
        bind = self._bindings["entry"]
        for write in writes:
            landing = Landing(write, done)
            for stored in write.entries:
                entry, encoded = stored.entry, stored.encoded
                values = (write.conversation_id, write.bucket, entry.seq, write.epoch, encoded, entry.time_us)
                grouping.add(bind(values), len(encoded), landing)
            landing.close()
        for request in grouping.requests(_landed):
            self._requests.submit(request)

    async def entries(
        self, conversation_id: str, bucket: int, *, after_seq: int, before_seq: int, limit: int, newest: bool
    ) -> list[EntryRow]:
        """See ``ConversationTables.entries``."""
        name = "entries_newest" if newest else "entries_oldest"
        rows = await self._read(name, (conversation_id, bucket, after_seq, before_seq, limit))
        return [EntryRow(*row) for row in rows]

    # --- Members and users --------------------------------------------------------------------------------------

    async def members(self, conversation_id: str, *, after: tuple[str, int] | None, limit: int) -> Members:
        """See ``ConversationTables.members``."""
        if after is None:
            return _members(await self._read("members", (conversation_id, limit)))
        return _members(await self._read("members_after", (conversation_id, *after, limit)))

    async def stays(self, conversation_id: str, users: Collection[str]) -> Members:
        """See ``ConversationTables.stays``."""
        return _members(await self._read("stays", (conversation_id, list(users))))

    async def involvements(self, user: str, *, after: tuple[str, int] | None, limit: int) -> list[InvolvementRow]:
        """See ``ConversationTables.involvements``."""
        if after is None:
            rows = await self._read("involvements", (user, limit))
        else:
            rows = await self._read("involvements_after", (user, *after, limit))
        return [
            InvolvementRow(
                conversation_id, joined, left or 0, ConversationKind(kind), peer or "", delivered or 0, read or 0
            )
            for conversation_id, joined, left, kind, peer, delivered, read in rows
        ]

    async def last_seen(self, users: Collection[str]) -> dict[str, int]:
        """See ``ConversationTables.last_seen``."""
        return dict(await self._read("last_seen", (list(users),)))

    async def write(self, rows: Sequence[RowWrite]) -> None:
        """See ``ConversationTables.write``."""
        if self._requests is None:
            raise NotWritten("there is no session with Cassandra")
        grouping = Grouping(self._replicas_of)
        for row in rows:
            for name, values in _statements_of(row):
                grouping.add(self._bind(name, values), ROW_VALUES_BYTES, None)
        answered = trio.Event()
        outcomes: list[StoreError | None] = []
        requests = grouping.requests(lambda _landings, error: _count(outcomes, error, len(requests), answered))
        if not requests:
            return
        for request in requests:
            self._requests.submit(request)
        await answered.wait()
        errors = [error for error in outcomes if error is not None]
        if errors:
            unsure = [error for error in errors if not isinstance(error, NotWritten)]
            raise (unsure or errors)[0]

    # --- Leases and slots ---------------------------------------------------------------------------------------

    async def leases(self) -> list[LeaseRecord]:
        """See ``CoordinationTables.leases``."""
        return [_lease(row) for row in await self._read("leases", ())]

    async def lease(self, incarnation: str) -> LeaseRecord | None:
        """See ``CoordinationTables.lease``."""
        rows = await self._read("lease", (incarnation,), SERIAL_READS)
        return _lease(rows[0]) if rows else None

    async def insert_lease(self, lease: LeaseRecord) -> bool:
        """See ``CoordinationTables.insert_lease``."""
        return await self._transact("insert_lease", msgspec.structs.astuple(lease))

    async def replace_lease(self, lease: LeaseRecord, nonce: int) -> bool:
        """See ``CoordinationTables.replace_lease``."""
        incarnation, *rest = msgspec.structs.astuple(lease)
        return await self._transact("replace_lease", (*rest, incarnation, nonce))

    async def mark_lease_dead(self, incarnation: str, nonce: int) -> bool:
        """See ``CoordinationTables.mark_lease_dead``."""
        return await self._transact("mark_lease_dead", (incarnation, nonce))

    async def delete_lease(self, incarnation: str) -> bool:
        """See ``CoordinationTables.delete_lease``."""
        return await self._transact("delete_lease", (incarnation,))

    async def slots(self) -> SlotsRow | None:
        """See ``CoordinationTables.slots``."""
        rows = await self._read("slots", (), SERIAL_READS)
        return SlotsRow(*rows[0]) if rows else None

    async def insert_slots(self, row: SlotsRow) -> bool:
        """See ``CoordinationTables.insert_slots``."""
        return await self._transact("insert_slots", (row.version, row.nonce, row.table))

    async def replace_slots(self, row: SlotsRow, version: int) -> bool:
        """See ``CoordinationTables.replace_slots``."""
        return await self._transact("replace_slots", (row.version, row.nonce, row.table, version))


ROW_VALUES_BYTES: Final = 160
"""Bytes of the values of a small row: ids of up to 64 characters, and numbers."""


def _landed(landings: Sequence[Landing], error: StoreError | None) -> None:
    landed: list[Landing] = []
    for landing in landings:
        landing.note(error, landed)
    tell(landed)


def _count(outcomes: list[StoreError | None], error: StoreError | None, expected: int, answered: trio.Event) -> None:
    outcomes.append(error)
    if len(outcomes) == expected:
        answered.set()


def _lease(row: tuple[Any, ...]) -> LeaseRecord:
    incarnation, node, nonce, alive, address, owns, draining, protocol, datacenter = row
    # There is no datacenter in a row of a tidegate that does not say it.
    return LeaseRecord(incarnation, node, nonce, alive, address, owns, draining, protocol, datacenter or "")


def _members(rows: Rows) -> Members:
    found = [
        MemberRow(user, joined, left or 0, delivered or 0, read or 0)
        for _, _, _, user, joined, left, delivered, read in rows
        if user is not None  # a title without members: they are being written
    ]
    title, count, described_us = rows[0][:3] if rows else ("", 0, 0)
    return Members(title or "", count or 0, found, described_us or 0)


def _statements_of(row: RowWrite) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The statements, by name and values, that write a row to each of its tables."""
    match row:
        case MemberJoined(conversation_id, user, joined_seq, kind, peer, time_us):
            yield "joined", (conversation_id, user, joined_seq, time_us)
            yield "joined_by_user", (user, conversation_id, joined_seq, int(kind), peer, time_us)
        case MemberLeft(conversation_id, user, joined_seq, left_seq, time_us):
            yield "left", (time_us, left_seq, conversation_id, user, joined_seq)
            yield "left_by_user", (time_us, left_seq, user, conversation_id, joined_seq)
        case Described(conversation_id, title, member_count, time_us):
            yield "described", (time_us, title, member_count, conversation_id)
        case PointersRaised(conversation_id, user, joined_seq, delivered_seq, read_seq):
            if delivered_seq == read_seq > 0:  # as after one's own send: half as many statements
                seq = read_seq
                yield "pointers", (seq, seq, seq, conversation_id, user, joined_seq)
                yield "pointers_by_user", (seq, seq, seq, user, conversation_id, joined_seq)
                return
            for name, seq in (("delivered", delivered_seq), ("read", read_seq)):
                if seq:
                    yield name, (seq, seq, conversation_id, user, joined_seq)
                    yield f"{name}_by_user", (seq, seq, user, conversation_id, joined_seq)
        case LastSeen(user, seen_ms):
            yield "seen", (user, seen_ms, seen_ms)
