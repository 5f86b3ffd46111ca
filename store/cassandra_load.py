"""Making, reading and taking over conversations: their rows, which only lightweight transactions change.

A transaction whose outcome is unknown may be applied at any later time. It is found out by repeating the very same one:
each names the nonce that it replaces and the nonce that it leaves, so it is applied at most once, and as soon as the
row has another nonce than the one it names, it never will be.
"""

import secrets
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct

from protocol.codec import decode_entry
from protocol.frames import ConversationKind, Entry
from store import segments as rule
from store.cassandra_log import OpenLog
from store.cassandra_members import (
    Roster,
    after_entry,
    before_entry,
    before_entry_of_channel,
    change_rows,
    members_of,
    read_roster,
    read_stays_of_entry,
)
from store.cassandra_reads import Tail, read_tail
from store.entries import NO_CHANGES, ConversationRecord, Loaded, StoredEntry, changes_of
from store.interface import NotWritten, OutcomeUnknown, StaleEpoch, StoreError, Unavailable
from store.segments import Segment, Segments
from store.tables import ConversationRow, EntryWrite, Tables

ATTEMPTS_MAX: Final = 4
"""Times that a call tries to change a row, which changes under it or does not tell what became of it."""


class Opened(Struct, frozen=True):
    """A conversation that was taken over."""

    row: ConversationRow
    tail: Tail


def new_nonce() -> str:
    """A value that no row had before."""
    return secrets.token_hex(12)


def row_of(record: ConversationRecord, first: StoredEntry, epoch: int) -> ConversationRow:
    """The row of a new conversation, whose first entry is written by the owner of ``epoch``."""
    segment = Segment(epoch, 1, 0, first.entry.time_us)
    return ConversationRow(
        record.conversation_id,
        record.kind,
        record.creator,
        record.created_us,
        first.encoded,
        (segment,),
        new_nonce(),
    )


class Loader:
    """Reads and changes conversation rows for one owner.

    Args:
        tables: where they are.
        write_entries: writes entries and waits until they are durable; raises NotWritten or OutcomeUnknown.
        may_speak: whether this node is sure to own a conversation under an epoch.
    """

    def __init__(
        self,
        tables: Tables,
        write_entries: Callable[[EntryWrite], Awaitable[None]],
        may_speak: Callable[[str, int], bool],
    ) -> None:
        self._tables = tables
        self._write_entries = write_entries
        self._may_speak = may_speak

    async def create(self, row: ConversationRow) -> bool:
        """Make a conversation's row; False if there is one. What follows from it, ``open`` writes.

        Raises NotWritten or OutcomeUnknown. After a cancellation the row may or may not be there.
        """
        error: StoreError = OutcomeUnknown("")
        unknown = False
        for _ in range(ATTEMPTS_MAX):
            try:
                if await self._tables.insert_conversation(row):
                    return True
                if not unknown:
                    return False
                found = await self._tables.conversation(row.conversation_id, serial=True)
            except NotWritten as refusal:
                if not unknown:
                    raise
                error = refusal
            except (OutcomeUnknown, Unavailable) as trouble:
                unknown, error = True, trouble
            else:
                return found is not None and found.nonce == row.nonce
        raise OutcomeUnknown(f"it is not known whether conversation {row.conversation_id} was made ({error})")

    async def open(self, log: OpenLog, epoch: int | None, entries_min: int) -> Opened | None:
        """Become the owner under ``epoch`` (None: stay what the row says); fills ``log``. None: no such conversation.

        Raises:
            StaleEpoch: a newer epoch is recorded.
            Unavailable: something could not be read or written, or its outcome stays unknown.

        Cancelling leaves the epoch recorded or not, and ``log`` as it was.
        """
        conversation_id = log.conversation_id
        for _ in range(ATTEMPTS_MAX):
            row = await self._tables.conversation(conversation_id, serial=True)
            if row is None:
                return None
            last = row.segments[-1]
            if epoch is not None and last.epoch > epoch:
                raise StaleEpoch(f"conversation {conversation_id} belongs to epoch {last.epoch}, not {epoch}")
            tail = await self._tail(row, max(1, entries_min))
            if epoch is not None and last.epoch < epoch:
                taken = rule.with_segment(row.segments, Segment(epoch, tail.head_seq + 1, last.bucket, last.opened_us))
                nonce = new_nonce()
                if not await self._take(row, nonce, taken):
                    continue
                row = ConversationRow(
                    row.conversation_id, row.kind, row.creator, row.created_us, row.first, taken, nonce
                )
            _fill(log, row, tail)
            return Opened(row, tail)
        raise Unavailable(f"conversation {conversation_id} changes hands all the time: try again")

    async def _tail(self, row: ConversationRow, entries_min: int) -> Tail:
        """The end of a log; its first entry, which the row has, is written if nobody did."""
        tail = await read_tail(self._tables, row.conversation_id, row.segments, entries_min)
        if tail.head_seq:
            return tail
        first, segment = StoredEntry(decode_entry(row.first), row.first), row.segments[0]
        try:
            await self._write_entries(EntryWrite(row.conversation_id, segment.bucket, segment.epoch, [first]))
        except (NotWritten, OutcomeUnknown) as error:
            raise Unavailable(str(error)) from None
        # Read again, not assumed: whoever wrote it before may have appended since.
        tail = await read_tail(self._tables, row.conversation_id, row.segments, entries_min)
        if not tail.head_seq:
            raise Unavailable(f"the first entry of {row.conversation_id} was written and is not there: try again")
        return tail

    async def _take(self, row: ConversationRow, nonce: str, taken: Segments) -> bool:
        try:
            return await change_segments(self._tables, row.conversation_id, row.nonce, nonce, taken)
        except (NotWritten, OutcomeUnknown) as error:
            raise Unavailable(str(error)) from None

    async def loaded(self, log: OpenLog, opened: Opened, entries: int) -> Loaded:
        """What an owner needs, with the newest ``entries`` entries; the last entry's member rows are written again.

        Raises Unavailable. After a cancellation some member rows may be written: they are written again next time.
        """
        row, tail = opened.row, opened.tail
        last = decode_entry(tail.rows[-1].encoded)
        if row.kind is ConversationKind.CHANNEL:
            some, described_us = await read_stays_of_entry(self._tables, row.conversation_id, last)
            roster = await self._redo(log, last, before_entry_of_channel(some, described_us, last))
            roster.stays = []
        else:
            everybody = await read_roster(self._tables, row.conversation_id)
            changes = changes_of(last) != NO_CHANGES
            roster = await self._redo(log, last, before_entry(everybody, last.seq) if changes else everybody)
        log.title, log.member_count = roster.title, roster.member_count
        record = ConversationRecord(row.conversation_id, row.kind, roster.title, row.creator, row.created_us)
        newest = tail.rows[-entries:] if entries else []
        stored = [StoredEntry(decode_entry(each.encoded), each.encoded) for each in newest]
        members = members_of(roster.stays)
        return Loaded(record, members, tail.head_seq, last.time_us, stored, roster.member_count)

    async def _redo(self, log: OpenLog, last: Entry, before: Roster) -> Roster:
        """Write the member rows of the last entry again; answers the roster with it. Raises Unavailable."""
        if changes_of(last) == NO_CHANGES:
            return before
        conversation_id = log.conversation_id
        if not self._may_speak(conversation_id, log.last.epoch):
            raise Unavailable(f"this node is not sure to own {conversation_id}")
        changed = change_rows(conversation_id, log.kind, last, before)
        try:
            await self._tables.write(changed.rows)
        except (NotWritten, OutcomeUnknown) as error:
            raise Unavailable(str(error)) from None
        return after_entry(before, last.seq, changed)


def _fill(log: OpenLog, row: ConversationRow, tail: Tail) -> None:
    """Put what was read into a log that has nothing under way."""
    log.loaded = True
    log.kind = row.kind
    log.segments, log.nonce = row.segments, row.nonce
    log.head_seq = log.sent_seq = tail.head_seq
    log.rows.clear()
    log.doubt, log.new_segment = False, None
    bucket_begins = next(each.first_seq for each in row.segments if each.bucket == log.last.bucket)
    log.bucket_bytes = (tail.head_seq + 1 - bucket_begins) * tail.row_bytes


async def change_segments(tables: Tables, conversation_id: str, nonce: str, new_nonce: str, taken: Segments) -> bool:
    """Replace the segments of a row that has ``nonce``; False if it has not. Repeats what has no known outcome.

    Raises:
        NotWritten: nothing was sent.
        OutcomeUnknown: it was applied, or may be at any later time while the row has ``nonce``.
    """
    unknown: StoreError | None = None
    for _ in range(ATTEMPTS_MAX):
        try:
            if await tables.change_segments(conversation_id, nonce, new_nonce, taken):
                return True
            # An earlier attempt, perhaps of an earlier call, may have been the one that was applied.
            row = await tables.conversation(conversation_id, serial=True)
        except NotWritten as error:
            if unknown is None:
                raise
            unknown = error
        except (OutcomeUnknown, Unavailable) as error:
            unknown = error
        else:
            return row is not None and row.nonce == new_nonce
    raise OutcomeUnknown(f"it is not known whether the row of {conversation_id} was changed ({unknown})")
