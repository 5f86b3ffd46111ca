"""Which rows of a conversation's log count: the one rule that everything else asks here.

A conversation's own row, changed by lightweight transaction only, lists its *segments*, oldest first. A segment says:
from ``first_seq`` on (and up to where the next segment begins), entries are those that the owner of ``epoch`` wrote
into ``bucket``. A row of the log counts if, and only if, its epoch and bucket are those of the segment that covers its
seq. So what a former owner, paused for long, still writes lies outside its segment and counts for nobody.

So that takeovers do not make that list longer for ever, neighbours in one bucket are merged as soon as a later segment
follows them. Of a merged segment, the row with the highest epoch of its seq counts. That is the same row: whoever came
after its owner began behind it, so nobody wrote that seq under a later epoch; and it is durable, because something
begins behind it, so every quorum shows it. In the last segment this would be wrong: its owner's row of a seq may not be
there yet, and a former owner's may. ``tests/model`` checks both.

Three things hold at all times, and the functions below lean on them:

- Epochs never fall from segment to segment, and first seqs rise strictly.
- A segment begins only behind entries that are durable: an owner's first segment behind the head that it read at
  quorum, a new bucket when all that was sent to the old one is durable. So a gap can only be in the last segment.
- An owner sends no row whose seq is more than WINDOW_ENTRIES above its head, the last entry that it knows durable with
  all before it. So in the last segment, too, only the newest WINDOW_ENTRIES seqs can have a gap among them.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from typing import Final, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

WINDOW_ENTRIES: Final = 512
"""Entries of one conversation that may be under way at once, and so the rows in which a new owner looks for a gap.
At 20 ms an append this allows 25,000 entries a second in one conversation."""


class Row(Protocol):
    """What of a row decides whether it counts."""

    @property
    def seq(self) -> int: ...
    @property
    def epoch(self) -> int: ...


R = TypeVar("R", bound=Row)


class Segment(Struct, frozen=True, array_like=True, gc=False):
    """Who wrote a stretch of the log, and where.

    Attributes:
        epoch: of the owner that wrote it.
        first_seq: the seq of its first entry; its last one is told by where the next segment begins.
        bucket: the partition of the log that holds it; counted from 0.
        opened_us: the time of the bucket's first entry, microseconds since the Unix epoch.
        since_epoch: of a merged segment the oldest epoch in it, ``epoch`` being the newest; 0 if it is of one.
    """

    epoch: int
    first_seq: int
    bucket: int
    opened_us: int
    since_epoch: int = 0


Segments = tuple[Segment, ...]


class Stretch(Struct, frozen=True, gc=False):
    """Consecutive seqs of one segment: ``after_seq < seq < before_seq``."""

    segment: Segment
    after_seq: int
    before_seq: int


def covering(segments: Segments, seq: int) -> Segment | None:
    """The segment that says who wrote ``seq``; None below the first one."""
    at = bisect_right(segments, seq, key=_first_seq)
    return segments[at - 1] if at else None


def counting(segments: Segments, bucket: int, rows: Iterable[R]) -> list[R]:
    """Those of a bucket's rows that count: the rule of the log.

    Args:
        segments: of the conversation.
        bucket: where the rows are from.
        rows: in the order of their seqs, up or down, and of each seq all that a quorum showed.
    """
    found: list[R] = []
    for row in rows:
        segment = covering(segments, row.seq)
        if segment is None or segment.bucket != bucket:
            continue
        if not (segment.since_epoch or segment.epoch) <= row.epoch <= segment.epoch:
            continue
        if not found or found[-1].seq != row.seq:
            found.append(row)
        elif row.epoch > found[-1].epoch:
            found[-1] = row
    return found


def with_segment(segments: Segments, new: Segment) -> Segments:
    """The segments after ``new`` was added: what would cover nothing any more is left out, neighbours are merged.

    Raises:
        ValueError: an older epoch, or a segment that would take entries from an earlier one.
    """
    if segments:
        last = segments[-1]
        if new.epoch < last.epoch:
            raise ValueError(f"a segment of epoch {new.epoch} cannot follow one of epoch {last.epoch}")
        if new.first_seq < last.first_seq:
            raise ValueError(f"a segment from {new.first_seq} cannot follow one from {last.first_seq}")
    closed: list[Segment] = []
    for each in segments:
        if each.first_seq == new.first_seq:
            break  # nothing was written between them
        if closed and closed[-1].bucket == each.bucket:
            closed[-1] = _merged(closed[-1], each)
        else:
            closed.append(each)
    return (*closed, new)


def _merged(earlier: Segment, later: Segment) -> Segment:
    return replace(earlier, epoch=later.epoch, since_epoch=earlier.since_epoch or earlier.epoch)


def head_of(last: Segment, rows: Collection[tuple[int, int]]) -> int:
    """The seq of the last entry that counts without a gap before it.

    Args:
        last: the last segment of a conversation.
        rows: seq and epoch of rows of its bucket: all rows of its newest WINDOW_ENTRIES seqs at least (see
            ``window_begins``), in any order. Others do not matter.
    """
    seqs = {seq for seq, epoch in rows if epoch == last.epoch and seq >= last.first_seq}
    if not seqs:
        return last.first_seq - 1
    head = window_begins(last, max(seqs)) - 1
    while head + 1 in seqs:
        head += 1
    return head


def window_begins(last: Segment, newest_seq: int) -> int:
    """The first seq of the last segment that may be missing when there is a row of its epoch with ``newest_seq``."""
    return max(last.first_seq, newest_seq - WINDOW_ENTRIES + 1)


def stretches(segments: Segments, after_seq: int, before_seq: int) -> Iterator[Stretch]:
    """What to read for the entries between two seqs (both excluded), oldest first."""
    for at, segment in enumerate(segments):
        end = segments[at + 1].first_seq if at + 1 < len(segments) else before_seq
        after, before = max(after_seq, segment.first_seq - 1), min(before_seq, end)
        if before - after > 1:
            yield Stretch(segment, after, before)


def unbroken(seqs: Iterable[int]) -> int:
    """How many of these seqs, which rise, follow each other without a gap from the first one on."""
    count, expected = 0, None
    for seq in seqs:
        if expected is not None and seq != expected:
            break
        count, expected = count + 1, seq + 1
    return count


def _first_seq(segment: Segment) -> int:
    return segment.first_seq
