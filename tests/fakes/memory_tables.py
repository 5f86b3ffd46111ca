"""Cassandra's tables in memory, as one replica would hold them, which fail when told to.

``verdicts`` is asked before each write and transaction: by name of the method, what to do with it. ``lost`` applies it
and answers OutcomeUnknown; ``unknown`` answers that without applying it; ``refused`` answers NotWritten; ``late``
answers OutcomeUnknown and applies it when ``arrive`` is called. Everything else is applied and answered.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial

import trio
from msgspec.structs import replace

from store.coordination import LeaseRecord
from store.interface import NotWritten, OutcomeUnknown, StoreError, Unavailable
from store.segments import Segments
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

Log = dict[tuple[int, int], tuple[int, bytes]]
"""Rows of entries: by seq and epoch, when each was written (microseconds) and what."""

Logs = dict[tuple[str, int], Log]
"""By conversation and bucket."""


def put_entries(logs: Logs, write: EntryWrite) -> None:
    """Write rows as one replica does: of two writes of the same row the later one stays, whichever comes first."""
    rows = logs.setdefault((write.conversation_id, write.bucket), {})
    for stored in write.entries:
        cell = (stored.entry.time_us, stored.encoded)
        key = (stored.entry.seq, write.epoch)
        rows[key] = max(cell, rows.get(key, cell))


class MemoryTables:
    """Implements Tables.

    Attributes:
        verdicts: by method, what becomes of its next calls.
        failing: every read raises Unavailable while set.
        held: entry writes wait for ``answer()``.
        calls: names of all methods called, in order.
    """

    def __init__(self) -> None:
        self.verdicts: dict[str, deque[str]] = {}
        self.failing = False
        self.held = False
        self.calls: list[str] = []
        self.conversations: dict[str, ConversationRow] = {}
        self.logs: Logs = {}
        self.stays_: dict[tuple[str, str, int], dict[str, int]] = {}
        self.by_user: dict[tuple[str, str, int], dict[str, object]] = {}
        self.described: dict[str, tuple[int, str, int]] = {}
        self.seen: dict[str, int] = {}
        self.lease_rows: dict[str, LeaseRecord] = {}
        self.slots_row: SlotsRow | None = None
        self._late: list[Callable[[], object]] = []
        self._queue: deque[tuple[Sequence[EntryWrite], EntriesDone]] = deque()

    def arrive(self) -> None:
        """Apply what was under way all the time."""
        late, self._late = self._late, []
        for apply in late:
            apply()

    def _judge(self, method: str, apply: Callable[[], object]) -> StoreError | None:
        """Do what the next verdict on a method says; None: apply it and answer."""
        self.calls.append(method)
        verdicts = self.verdicts.get(method)
        verdict = verdicts.popleft() if verdicts else ""
        if verdict == "refused":
            return NotWritten("refused")
        if verdict == "lost":
            apply()
        elif verdict == "late":
            self._late.append(apply)
        return OutcomeUnknown(verdict) if verdict else None

    async def _change(self, method: str, apply: Callable[[], bool]) -> bool:
        error = self._judge(method, apply)
        await trio.lowlevel.checkpoint()
        if error is not None:
            raise error
        return apply()

    async def _read(self, method: str) -> None:
        self.calls.append(method)
        await trio.lowlevel.checkpoint()
        if self.failing:
            raise Unavailable("no quorum")

    # --- Conversations and their logs ---------------------------------------------------------------------------

    async def conversation(self, conversation_id: str, *, serial: bool) -> ConversationRow | None:
        await self._read("conversation")
        return self.conversations.get(conversation_id)

    async def insert_conversation(self, row: ConversationRow) -> bool:
        return await self._change("insert_conversation", partial(self._insert, row))

    def _insert(self, row: ConversationRow) -> bool:
        return self.conversations.setdefault(row.conversation_id, row) is row

    async def change_segments(self, conversation_id: str, nonce: str, new_nonce: str, segments: Segments) -> bool:
        def apply() -> bool:
            row = self.conversations.get(conversation_id)
            if row is None or row.nonce != nonce:
                return False
            self.conversations[conversation_id] = ConversationRow(
                conversation_id, row.kind, row.creator, row.created_us, row.first, segments, new_nonce
            )
            return True

        return await self._change("change_segments", apply)

    def write_entries(self, writes: Sequence[EntryWrite], done: EntriesDone) -> None:
        assert writes
        self._queue.append((writes, done))
        if not self.held:
            trio.lowlevel.current_trio_token().run_sync_soon(self.answer)

    def answer(self, at: int = 0) -> None:
        """Write, or not, what waits at a place of the queue, and answer it."""
        writes, done = self._queue[at]
        del self._queue[at]
        results = []
        for write in writes:
            error = self._judge("write_entries", partial(put_entries, self.logs, write))
            if error is None:
                put_entries(self.logs, write)
            results.append((write, error))
        done(results)

    @property
    def queued(self) -> int:
        return len(self._queue)

    async def entries(
        self, conversation_id: str, bucket: int, *, after_seq: int, before_seq: int, limit: int, newest: bool
    ) -> list[EntryRow]:
        await self._read("entries")
        rows = self.logs.get((conversation_id, bucket), {})
        keys = sorted((key for key in rows if after_seq < key[0] < before_seq), reverse=newest)
        return [EntryRow(*key, rows[key][1]) for key in keys[:limit]]

    # --- Members and users --------------------------------------------------------------------------------------

    async def members(self, conversation_id: str, *, after: tuple[str, int] | None, limit: int) -> Members:
        await self._read("members")
        keys = sorted(
            key[1:] for key in self.stays_ if key[0] == conversation_id and (after is None or key[1:] > after)
        )
        return self._members(conversation_id, keys[:limit])

    async def stays(self, conversation_id: str, users: Collection[str]) -> Members:
        await self._read("stays")
        keys = sorted(key[1:] for key in self.stays_ if key[0] == conversation_id and key[1] in users)
        return self._members(conversation_id, keys)

    def _members(self, conversation_id: str, keys: Sequence[tuple[str, int]]) -> Members:
        described_us, title, count = self.described.get(conversation_id, (0, "", 0))
        rows = [MemberRow(*key, *_pointers(self.stays_[conversation_id, *key])) for key in keys]
        return Members(title, count, rows, described_us)

    async def involvements(self, user: str, *, after: tuple[str, int] | None, limit: int) -> list[InvolvementRow]:
        await self._read("involvements")
        keys = sorted(key[1:] for key in self.by_user if key[0] == user and (after is None or key[1:] > after))
        found = []
        for conversation_id, joined_seq in keys[:limit]:
            row = self.by_user[user, conversation_id, joined_seq]
            left, delivered, read = _pointers(row)
            found.append(InvolvementRow(conversation_id, joined_seq, left, row["kind"], row["peer"], delivered, read))
        return found

    async def last_seen(self, users: Collection[str]) -> dict[str, int]:
        await self._read("last_seen")
        return {user: self.seen[user] for user in users if user in self.seen}

    async def write(self, rows: Sequence[RowWrite]) -> None:
        def apply() -> bool:
            for row in rows:
                self._apply(row)
            return True

        await self._change("write", apply)

    def _apply(self, row: RowWrite) -> None:
        match row:
            case MemberJoined(conversation_id, user, joined_seq, kind, peer):
                self.stays_.setdefault((conversation_id, user, joined_seq), {})
                self.by_user.setdefault((user, conversation_id, joined_seq), {}).update(kind=kind, peer=peer)
            case MemberLeft(conversation_id, user, joined_seq, left_seq):
                self.stays_[conversation_id, user, joined_seq]["left"] = left_seq
                self.by_user[user, conversation_id, joined_seq]["left"] = left_seq
            case Described(conversation_id, title, member_count, time_us):
                new = (time_us, title, member_count)
                self.described[conversation_id] = max(new, self.described.get(conversation_id, new))
            case PointersRaised(conversation_id, user, joined_seq, delivered_seq, read_seq):
                for cells in (
                    self.stays_[conversation_id, user, joined_seq], self.by_user[user, conversation_id, joined_seq]
                ):  # fmt: skip
                    cells["delivered"] = max(cells.get("delivered", 0), delivered_seq)
                    cells["read"] = max(cells.get("read", 0), read_seq)
            case LastSeen(user, seen_ms):
                self.seen[user] = max(seen_ms, self.seen.get(user, 0))

    # --- Leases and slots ---------------------------------------------------------------------------------------

    async def leases(self) -> list[LeaseRecord]:
        await self._read("leases")
        return list(self.lease_rows.values())

    async def lease(self, incarnation: str) -> LeaseRecord | None:
        await self._read("lease")
        return self.lease_rows.get(incarnation)

    async def insert_lease(self, lease: LeaseRecord) -> bool:
        return await self._change("insert_lease", lambda: self.lease_rows.setdefault(lease.incarnation, lease) is lease)

    async def replace_lease(self, lease: LeaseRecord, nonce: int) -> bool:
        def apply() -> bool:
            row = self.lease_rows.get(lease.incarnation)
            if row is None or row.nonce != nonce or not row.alive:
                return False
            self.lease_rows[lease.incarnation] = lease
            return True

        return await self._change("replace_lease", apply)

    async def mark_lease_dead(self, incarnation: str, nonce: int) -> bool:
        def apply() -> bool:
            row = self.lease_rows.get(incarnation)
            if row is None or row.nonce != nonce:
                return False
            self.lease_rows[incarnation] = replace(row, alive=False)
            return True

        return await self._change("mark_lease_dead", apply)

    async def delete_lease(self, incarnation: str) -> bool:
        def apply() -> bool:
            row = self.lease_rows.get(incarnation)
            if row is None or row.alive:
                return False
            del self.lease_rows[incarnation]
            return True

        return await self._change("delete_lease", apply)

    async def slots(self) -> SlotsRow | None:
        await self._read("slots")
        return self.slots_row

    async def insert_slots(self, row: SlotsRow) -> bool:
        return await self._change("insert_slots", partial(self._replace_slots, row, None))

    async def replace_slots(self, row: SlotsRow, version: int) -> bool:
        return await self._change("replace_slots", partial(self._replace_slots, row, version))

    def _replace_slots(self, row: SlotsRow, version: int | None) -> bool:
        if (self.slots_row.version if self.slots_row is not None else None) != version:
            return False
        self.slots_row = row
        return True


def _pointers(cells: dict[str, int]) -> tuple[int, int, int]:
    return cells.get("left", 0), cells.get("delivered", 0), cells.get("read", 0)
