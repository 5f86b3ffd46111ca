"""The statements that the cluster's store and coordination run on Cassandra's tables, one small method each, no logic.

``store/cassandra_driver.py`` runs them on a real Cassandra; the simulation has three replicas of its own. The tables
and why they are as they are: ``schema/cassandra/``.

Consistency. *Serial* reads and the changes marked as lightweight transactions are linearizable, each on its own
partition. Other reads and writes are at quorum, and reads repair the replicas they read before they answer. A cell
keeps the value with the highest timestamp; every write here names its timestamp, in microseconds where none is said,
so that writing the same again changes nothing and late arrivals do no harm.

Errors, all of ``store.interface``: a read that cannot be answered raises Unavailable. A write or a lightweight
transaction raises NotWritten only when nothing of it was sent or taken, and otherwise OutcomeUnknown: it may be
applied, and it may still be applied at any later time. After a cancellation the same holds.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from msgspec import Struct

from protocol.frames import ConversationKind
from store.coordination import LeaseRecord
from store.entries import StoredEntry
from store.interface import StoreError
from store.segments import Segments


class ConversationRow(Struct, frozen=True):
    """A row of ``conversations``: made and changed by lightweight transactions only.

    Attributes:
        conversation_id: its key.
        kind: direct or group.
        creator: the user who created it.
        created_us: when, microseconds since the Unix epoch.
        first: the encoded first entry. So a conversation exists with its first entry or not at all, and whoever finds
            the log without that entry can put it there.
        segments: whose rows count, see ``store.segments``.
        nonce: changes with every change of the row; never the same value twice.
    """

    conversation_id: str
    kind: ConversationKind
    creator: str
    created_us: int
    first: bytes
    segments: Segments
    nonce: str


class EntryWrite(Struct, frozen=True, gc=False):
    """Entries of one conversation for one partition of ``log_entries``; each with its own time as timestamp."""

    conversation_id: str
    bucket: int
    epoch: int
    entries: Sequence[StoredEntry]


class EntryRow(Struct, frozen=True, gc=False):
    """A row of ``log_entries``. Whether it counts is for ``store.segments`` to say."""

    seq: int
    epoch: int
    encoded: bytes


class MemberRow(Struct, frozen=True, gc=False):
    """A row of ``members``: one stay of a user in a conversation.

    ``left_seq`` is the seq of the entry that ended it, 0 while it lasts.
    """

    user: str
    joined_seq: int
    left_seq: int
    delivered_seq: int
    read_seq: int


class Members(Struct, frozen=True):
    """A page of ``members``, by user and joined_seq.

    ``title`` and ``member_count`` are the conversation's, as of the entry with the time ``described_us``.
    """

    title: str
    member_count: int
    rows: list[MemberRow]
    described_us: int


class InvolvementRow(Struct, frozen=True, gc=False):
    """A row of ``conversations_by_user``: one stay of a user in a conversation, seen from the user.

    ``left_seq`` is 0 while it lasts; ``peer`` is the other user of a direct conversation (the user itself in a note to
    self), empty in a group.
    """

    conversation_id: str
    joined_seq: int
    left_seq: int
    kind: ConversationKind
    peer: str
    delivered_seq: int
    read_seq: int


class MemberJoined(Struct, frozen=True, gc=False):
    """A stay begins: in ``members`` and ``conversations_by_user``, with the entry's time as timestamp."""

    conversation_id: str
    user: str
    joined_seq: int
    kind: ConversationKind
    peer: str
    time_us: int


class MemberLeft(Struct, frozen=True, gc=False):
    """A stay ends: ``left_seq`` in ``members`` and ``conversations_by_user``, with the entry's time as timestamp."""

    conversation_id: str
    user: str
    joined_seq: int
    left_seq: int
    time_us: int


class Described(Struct, frozen=True, gc=False):
    """Title and number of members, one value each per conversation, in ``members``; the entry's time is timestamp."""

    conversation_id: str
    title: str
    member_count: int
    time_us: int


class PointersRaised(Struct, frozen=True, gc=False):
    """Pointers of one stay, in ``members`` and ``conversations_by_user``.

    Each is its own timestamp, so that the highest wins in whatever order they arrive. One that is 0 is not written.
    """

    conversation_id: str
    user: str
    joined_seq: int
    delivered_seq: int
    read_seq: int


class LastSeen(Struct, frozen=True, gc=False):
    """When a user was last online, in ``last_seen``: milliseconds since the Unix epoch, which are timestamp as well."""

    user: str
    seen_ms: int


RowWrite = MemberJoined | MemberLeft | Described | PointersRaised | LastSeen

EntriesDone = Callable[[Sequence[tuple[EntryWrite, StoreError | None]]], None]
"""Receives what became of entry writes, some at a time, in any order: None means all its rows are durable at quorum.
The writes are the very objects that were given."""


class SlotsRow(Struct, frozen=True):
    """The one row of ``slots``. ``table`` is the encoded slot table; ``nonce`` changes with every change."""

    version: int
    nonce: str
    table: bytes


class ConversationTables(Protocol):
    """Conversations, their logs, and what is kept of users. All methods belong to the trio thread."""

    async def conversation(self, conversation_id: str, *, serial: bool) -> ConversationRow | None:
        """The row; not serial, it shows at least every change that was known to be applied before."""

    async def insert_conversation(self, row: ConversationRow) -> bool:
        """Lightweight transaction: insert unless there is one; False: there is."""

    async def change_segments(self, conversation_id: str, nonce: str, new_nonce: str, segments: Segments) -> bool:
        """Lightweight transaction: replace segments and nonce if the nonce is ``nonce``; False: it is not."""

    def write_entries(self, writes: Sequence[EntryWrite], done: EntriesDone) -> None:
        """Write rows of logs. A plain call that returns at once; ``done`` is told of each write once, and later.

        Writes of several partitions may travel together; each may still become durable, or not, on its own.
        """

    async def entries(
        self, conversation_id: str, bucket: int, *, after_seq: int, before_seq: int, limit: int, newest: bool
    ) -> list[EntryRow]:
        """At most ``limit`` rows with after_seq < seq < before_seq, those of all epochs.

        The first ones ordered by seq and epoch, or with ``newest`` the last ones, in falling order.
        """

    async def members(self, conversation_id: str, *, after: tuple[str, int] | None, limit: int) -> Members:
        """The first ``limit`` rows behind the user and joined_seq of ``after``, those of the past included."""

    async def stays(self, conversation_id: str, users: Collection[str]) -> Members:
        """All rows of these users in a conversation."""

    async def involvements(self, user: str, *, after: tuple[str, int] | None, limit: int) -> list[InvolvementRow]:
        """The first ``limit`` rows of a user behind that conversation and joined_seq, those of the past included."""

    async def last_seen(self, users: Collection[str]) -> dict[str, int]:
        """When users were last online; those never seen are missing."""

    async def write(self, rows: Sequence[RowWrite]) -> None:
        """Write rows; all are durable at quorum on return, and after an error each may be or not be."""


class CoordinationTables(Protocol):
    """Leases and slots. Written by lightweight transactions only."""

    async def leases(self) -> list[LeaseRecord]:
        """All rows, in no order: a scan at quorum, which shows at least every change known to be applied before.

        (Serial reads exist for single partitions only, and one partition for all leases would make all renewals of
        a cluster wait for each other.)
        """

    async def lease(self, incarnation: str) -> LeaseRecord | None:
        """One row, by a serial read."""

    async def insert_lease(self, lease: LeaseRecord) -> bool:
        """Insert unless there is one; False: there is."""

    async def replace_lease(self, lease: LeaseRecord, nonce: int) -> bool:
        """Replace the row if it has ``nonce`` and is alive; False: not so, or there is none."""

    async def mark_lease_dead(self, incarnation: str, nonce: int) -> bool:
        """Set ``alive`` to false if the row has ``nonce``; False: it has another, or there is none."""

    async def delete_lease(self, incarnation: str) -> bool:
        """Delete the row if it is not alive; False: it is alive, or there is none."""

    async def slots(self) -> SlotsRow | None:
        """The row, by a serial read."""

    async def insert_slots(self, row: SlotsRow) -> bool:
        """Insert unless there is one; False: there is."""

    async def replace_slots(self, row: SlotsRow, version: int) -> bool:
        """Replace the row if it has ``version``; False: it has another, or there is none."""


class Tables(ConversationTables, CoordinationTables, Protocol):
    """All statements."""
