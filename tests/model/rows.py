"""Rows, segments and quorum reads as the worlds of this folder see them.

How many replicas hold a row is told by three levels, whatever the replication factor. A quorum read sees every row that
a quorum holds, and of those that fewer hold any selection: which replicas answer, and when each of them looks, is not
ours to choose. With blocking read repair all it saw is held by a quorum afterwards. That is more freedom than real
replicas have, so what holds here holds there; it also covers a tail that is read page by page.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
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

Merged = tuple[int, int, int, int]
"""The same, with the oldest epoch that it stands for before the others: since, epoch, first seq, bucket."""

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


@cache
def merged(segments: tuple[Segment, ...]) -> tuple[Merged, ...]:
    """What the conversation's row keeps of them: what covers nothing any more is left out, and neighbours in one bucket
    become one as soon as another follows them."""
    kept: list[Merged] = []
    for epoch, first_seq, bucket in segments:
        while kept and kept[-1][2] >= first_seq:
            kept.pop()
        if len(kept) > 1 and kept[-2][3] == kept[-1][3]:
            kept[-2:] = [_joined(*kept[-2:])]
        kept.append((epoch, epoch, first_seq, bucket))
    return tuple(kept)


def merged_with_the_last(segments: tuple[Segment, ...]) -> tuple[Merged, ...]:
    """What one might do instead: merge the last segment, too."""
    kept = merged(segments)
    return (*kept[:-2], _joined(*kept[-2:])) if len(kept) > 1 and kept[-2][3] == kept[-1][3] else kept


def first_of_equals(segments: tuple[Segment, ...]) -> tuple[Merged, ...]:
    """What one might do instead: of segments that begin at one seq the first stays."""
    return merged(tuple(s for at, s in enumerate(segments) if all(s[1] != earlier[1] for earlier in segments[:at])))


def _joined(earlier: Merged, later: Merged) -> Merged:
    return (earlier[0], later[1], earlier[2], earlier[3])


def resolve(
    seen: Iterable[Key],
    segments: tuple[Segment, ...],
    keep: Callable[[tuple[Segment, ...]], tuple[Merged, ...]] = merged,
) -> Log:
    """The log that counts: from seq 1, as long as a row of the covering segment was seen; the newest of its epochs."""
    there = sorted(seen)
    kept = keep(segments)
    log: list[tuple[int, int]] = []
    while cover := next((each for each in reversed(kept) if each[2] <= len(log) + 1), None):
        since, until, _, bucket = cover
        fitting = [k for k in there if k[0] == len(log) + 1 and since <= k[1] <= until and k[2] == bucket]
        if not fitting:
            break
        log.append(fitting[-1][1:])
    return tuple(log)


def resolve_by_epoch(seen: Iterable[Key]) -> Log:
    """What looks right at first and is not: of each seq the row of the highest epoch, never below an earlier one's."""
    there = sorted(seen)
    log: list[tuple[int, int]] = []
    while candidates := [k for k in there if k[0] == len(log) + 1 and (not log or k[1] >= log[-1][0])]:
        log.append(candidates[-1][1:])
    return tuple(log)
