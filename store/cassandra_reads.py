"""Reading logs: entries between two seqs, the head, and what somebody sent. Only rows that count are ever seen."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from protocol.codec import decode_entry
from store import segments as rule
from store.entries import Search, StoredEntry
from store.segments import Segment, Segments, Stretch
from store.tables import ConversationTables, EntryRow

PAGE_ROWS: Final = 256
"""Rows of one read: some 50 KB with ordinary messages."""

ROW_BYTES_ASSUMED: Final = 256
"""Bytes of an entry where none was seen."""

SEQ_MAX: Final = 2**63 - 1
"""Largest integer of a bigint column: a bound beyond it means the same as itself."""


class Tail(Struct, frozen=True):
    """The end of a log: the head, and the newest rows up to it, oldest first."""

    head_seq: int
    rows: list[EntryRow]

    @property
    def row_bytes(self) -> int:
        """The average size of its entries."""
        return sum(len(row.encoded) for row in self.rows) // len(self.rows) if self.rows else ROW_BYTES_ASSUMED


async def read_tail(tables: ConversationTables, conversation_id: str, segments: Segments, entries_min: int) -> Tail:
    """Find the head and read the newest entries up to it, ``entries_min`` of them if there are so many.

    The head is what the log shows now: the owner of the last segment may have rows under way behind it. Raises
    Unavailable. Cancelling is safe.
    """
    last = segments[-1]
    window = await _window(tables, conversation_id, last)
    head_seq = rule.head_of(last, [(row.seq, row.epoch) for row in window])
    rows = rule.counting(segments, last.bucket, (row for row in window if row.seq <= head_seq))
    rows.reverse()
    missing = entries_min - len(rows)
    if missing > 0:
        before_seq = rows[0].seq if rows else head_seq + 1
        older = await read_between(tables, conversation_id, segments, 0, before_seq, missing, newest=True)
        rows = older + rows
    return Tail(head_seq, rows)


async def _window(tables: ConversationTables, conversation_id: str, last: Segment) -> list[EntryRow]:
    """The newest rows of the last segment's bucket, newest first: as many as the head is to be sought in."""
    found: list[EntryRow] = []
    before_seq, begins = SEQ_MAX, None
    after_seq = last.first_seq - 1
    while True:
        stretch = Stretch(last, after_seq, before_seq)
        rows, more = await _page(tables, conversation_id, stretch, PAGE_ROWS, newest=True)
        found += rows
        if begins is None:
            newest = next((row.seq for row in rows if row.epoch == last.epoch), None)
            begins = rule.window_begins(last, newest) if newest is not None else None
        if not more or (begins is not None and rows[-1].seq <= begins):
            return found
        before_seq = rows[-1].seq


async def read_between(
    tables: ConversationTables,
    conversation_id: str,
    segments: Segments,
    after_seq: int,
    before_seq: int,
    limit: int,
    *,
    newest: bool,
) -> list[EntryRow]:
    """Rows that count between two seqs (both excluded), oldest first: the newest or the oldest ``limit`` of them.

    Where the owner has rows under way there may be gaps. Raises Unavailable. Cancelling is safe.
    """
    found: list[EntryRow] = []
    pieces = list(rule.stretches(segments, after_seq, min(before_seq, SEQ_MAX)))
    for stretch in reversed(pieces) if newest else pieces:
        if len(found) >= limit:
            break
        found += await _stretch(tables, conversation_id, segments, stretch, limit - len(found), newest=newest)
    if newest:
        found.reverse()
    return found


async def _stretch(
    tables: ConversationTables,
    conversation_id: str,
    segments: Segments,
    stretch: Stretch,
    limit: int,
    *,
    newest: bool,
) -> list[EntryRow]:
    """The first or last rows that count of one segment's stretch, in the order of reading."""
    found: list[EntryRow] = []
    segment, after_seq, before_seq = stretch.segment, stretch.after_seq, stretch.before_seq
    more = True
    while more and len(found) < limit:
        part = Stretch(segment, after_seq, before_seq)
        rows, more = await _page(tables, conversation_id, part, limit - len(found), newest=newest)
        found += rule.counting(segments, segment.bucket, rows)
        if more and newest:
            before_seq = rows[-1].seq
        elif more:
            after_seq = rows[-1].seq
    return found[:limit]


async def _page(
    tables: ConversationTables, conversation_id: str, stretch: Stretch, seqs: int, *, newest: bool
) -> tuple[list[EntryRow], bool]:
    """All rows of some seqs at one end of a stretch, and whether there may be more behind them.

    A seq has several rows where owners of several epochs wrote it: those that a page cuts apart are left for the next.
    """
    limit = min(seqs + 1, PAGE_ROWS)
    while True:
        rows = await tables.entries(
            conversation_id,
            stretch.segment.bucket,
            after_seq=stretch.after_seq,
            before_seq=stretch.before_seq,
            limit=limit,
            newest=newest,
        )
        if len(rows) < limit:
            return rows, False
        whole = [row for row in rows if row.seq != rows[-1].seq]
        if whole:
            return whole, True
        limit *= 2


async def find(
    tables: ConversationTables,
    conversation_id: str,
    segments: Segments,
    sender: str,
    client_msg_id: str,
    since_us: int,
    *,
    after_seq: int,
    before_seq: int,
) -> Search:
    """Walk backwards between two seqs (both excluded) to what ``sender`` appended under ``client_msg_id`` in its time.

    Raises Unavailable. Cancelling is safe.
    """
    while True:
        rows = await read_between(tables, conversation_id, segments, after_seq, before_seq, PAGE_ROWS, newest=True)
        for row in reversed(rows):
            entry = decode_entry(row.encoded)
            if entry.time_us < since_us:
                return Search(None, ended=True)
            if entry.client_msg_id == client_msg_id and entry.sender == sender:
                return Search(StoredEntry(entry, row.encoded), ended=False)
        if len(rows) < PAGE_ROWS:
            return Search(None, ended=False)
        before_seq = rows[0].seq


def without_gap(rows: Iterable[EntryRow]) -> list[EntryRow]:
    """The rows up to the first gap: behind it, an owner has rows under way."""
    found = list(rows)
    return found[: rule.unbroken(row.seq for row in found)]
