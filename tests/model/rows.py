"""Rows, segments and quorum reads as the worlds of this folder see them.

How many replicas hold a row is told by three levels, whatever the replication factor. A quorum read sees every row that
a quorum holds, and of those that fewer hold any selection: which replicas answer, and when each of them looks, is not
ours to choose. With blocking read repair all it saw is held by a quorum afterwards. That is more freedom than real
replicas have, so what holds here holds there; it also covers a tail that is read page by page.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

SENT, PARTIAL, QUORUM = 0, 1, 2
"""Levels of a write: no replica has it yet (it may come at any later time), some have it, a quorum has it."""

LEVELS = ("no replica", "a replica", "a quorum")

Key = tuple[int, int, int]
"""A row of the log: seq, epoch, bucket."""

Rows = tuple[tuple[Any, int], ...]
"""Sorted pairs of a key and its level."""

Segment = tuple[int, int, int]
"""Epoch, first seq, bucket. A conversation's segments stand in the order in which they were recorded."""

Log = tuple[tuple[int, int], ...]
"""Which row counts for seq 1, 2, …: epoch and bucket of each."""


def arrivals(rows: Rows) -> Iterator[tuple[Any, int, Rows]]:
    """Each write that may come to more replicas: its key, its new level, all rows afterwards."""
    for at, (key, level) in enumerate(rows):
        if level < QUORUM:
            yield key, level + 1, (*rows[:at], (key, level + 1), *rows[at + 1 :])


def quorum_reads(rows: Rows, *, repair: bool = True) -> Iterator[tuple[frozenset[Any], Rows]]:
    """Every outcome of one quorum read: the keys seen, and the rows as the read leaves them."""
    certain = [key for key, level in rows if level == QUORUM]
    possible = [key for key, level in rows if level == PARTIAL]
    for count in range(len(possible) + 1):
        for lucky in combinations(possible, count):
            seen = frozenset((*certain, *lucky))
            yield seen, tuple((k, QUORUM if k in lucky else v) for k, v in rows) if repair and lucky else rows


def put(rows: Rows, key: Any, level: int = SENT) -> Rows:
    """The rows with one more."""
    return tuple(sorted((*rows, (key, level))))


def covering(segments: Sequence[Segment], seq: int) -> Segment | None:
    """The segment that a seq belongs to: of those that begin at or before it, the one recorded last."""
    return next((segment for segment in reversed(segments) if segment[1] <= seq), None)


def covering_by_first(segments: Sequence[Segment], seq: int) -> Segment | None:
    """What a search through segments sorted by their first seq finds instead."""
    return covering(sorted(segments, key=lambda segment: segment[1]), seq)


def resolve(seen: Iterable[Key], segments: Sequence[Segment], cover: Any = covering) -> Log:
    """The log that counts: from seq 1, as long as the row of the covering segment was seen."""
    there = frozenset(seen)
    log: list[tuple[int, int]] = []
    while (segment := cover(segments, len(log) + 1)) and (len(log) + 1, segment[0], segment[2]) in there:
        log.append((segment[0], segment[2]))
    return tuple(log)


def resolve_by_epoch(seen: Iterable[Key]) -> Log:
    """What looks right at first and is not: of each seq the row of the highest epoch, never below an earlier one's."""
    there = sorted(seen)
    log: list[tuple[int, int]] = []
    while candidates := [k for k in there if k[0] == len(log) + 1 and (not log or k[1] >= log[-1][0])]:
        log.append(candidates[-1][1:])
    return tuple(log)
