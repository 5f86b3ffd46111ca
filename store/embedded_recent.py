"""Where recent entries stand, in memory, so that a commit writes the log only and not its index.

Entries go into one table in order of arrival: a group of 500 fills 20 pages. Their index is ordered by conversation,
and 500 entries of 500 conversations would change 500 pages of it, each written to the write-ahead log in full. So the
index is written later: the positions of new entries gather in a *generation*; when it is full it is *frozen*, and
following groups write it to the index in slices, in order of the index, many entries to a page. (Measured at 10,000
conversations and groups of 500: 600 bytes of log for each entry instead of 4,100, and a quarter of the time.)

After a restart, the entries behind ``indexed_through`` are read back from the log; some of them may be in the index
already. Of each conversation, the index holds the oldest entries up to some seq, and a generation those that follow.

The writer thread adds; reader threads look up at any time. Generations only grow and positions never change, and a
generation goes away only after the index has all of it. So a reader that takes the generations *before* its snapshot
of the database begins finds every entry of the snapshot, in the one or in the other.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import chain
from typing import Final

from msgspec import Struct

GENERATION_ENTRIES: Final = 32_768
"""Entries of one generation. At most two are in memory: about 1 MB, or 20 MB if each entry has another conversation;
and at most so many entries are read back after a restart (some 60 ms)."""

INDEX_ENTRIES_PER_ENTRY: Final = 2
"""Index rows that a group writes for each entry of its own: a frozen generation is done before the next is full."""

INDEX_ENTRIES_MIN: Final = 128
"""Index rows that a group writes at least, while there are any."""

POSITION_MAX: Final = 2**63 - 1
"""Largest position there can be: no bound at all."""


class Run:
    """Consecutive entries of one conversation: the entry ``first_seq + n`` stands at ``positions[n]``."""

    __slots__ = ("first_seq", "positions")

    def __init__(self, first_seq: int) -> None:
        self.first_seq = first_seq
        self.positions = array("q")


Generation = dict[int, Run]
"""Runs by conversation key."""

Generations = tuple[Generation, ...]
"""What a reader takes along: the frozen generation, if there is one, and the growing one."""


INDEX_ROWS_PER_PAGE: Final = 256
"""Rows of the index that a page takes, roughly."""


class Slice(Struct):
    """Index rows to be written next (conversation, seq, position, …) and where the slice after them begins."""

    rows: list[int]
    next_key: int = 0
    next_offset: int = 0
    pages: int = 0  # an estimate of the pages of the index that the slice changes
    indexed_through: int | None = None  # set when the slice is its generation's last


class Recent:
    """The positions that are not in the index yet. Changed by the writer thread only."""

    def __init__(self) -> None:
        self._growing: Generation = {}
        self._count = 0
        self._last_position = 0
        self._frozen: Generation = {}
        self._frozen_keys: list[int] = []
        self._frozen_through = 0
        self._at = (0, 0)
        self.generations: Generations = (self._growing,)

    def add(self, key: int, seq: int, position: int, count: int = 1) -> None:
        """Note ``count`` entries of a conversation from ``seq`` and ``position`` on; they follow those noted before."""
        run = self._growing.get(key)
        if run is None:
            run = self._growing[key] = Run(seq)
        assert seq == run.first_seq + len(run.positions), "entries are noted in order and without a gap"
        if count == 1:
            run.positions.append(position)
        else:
            run.positions.extend(range(position, position + count))
        self._count += count
        self._last_position = position + count - 1

    def freeze_if_full(self) -> None:
        """Begin a new generation when this one is full and the one before is indexed."""
        if self._count < GENERATION_ENTRIES or self._frozen:
            return
        self._frozen, self._growing, self._count = self._growing, {}, 0
        self._frozen_keys = sorted(self._frozen)
        self._frozen_through = self._last_position
        self._at = (0, 0)
        self.generations = (self._frozen, self._growing)

    def next_slice(self, entries: int) -> Slice | None:
        """The index rows that a group of so many entries writes along; None when there are none."""
        if not self._frozen:
            return None
        wanted = max(INDEX_ENTRIES_MIN, entries * INDEX_ENTRIES_PER_ENTRY)
        at, offset = self._at
        rows: list[int] = []
        while wanted > 0 and at < len(self._frozen_keys):
            key = self._frozen_keys[at]
            run = self._frozen[key]
            positions = run.positions[offset : offset + wanted]
            seqs = range(run.first_seq + offset, run.first_seq + offset + len(positions))
            rows.extend(
                chain.from_iterable((key, seq, position) for seq, position in zip(seqs, positions, strict=True))
            )
            wanted -= len(positions)
            offset += len(positions)
            if offset == len(run.positions):
                at, offset = at + 1, 0
        pages = at + 1 - self._at[0] + len(rows) // (3 * INDEX_ROWS_PER_PAGE)
        done = at == len(self._frozen_keys)
        return Slice(rows, at, offset, pages, self._frozen_through if done else None)

    def indexed(self, written: Slice) -> None:
        """Note that a slice is durable."""
        self._at = (written.next_key, written.next_offset)
        if written.indexed_through is not None:
            self._frozen, self._frozen_keys = {}, []
            self.generations = (self._growing,)


def last_seq(generations: Generations, key: int, through: int = POSITION_MAX) -> int:
    """The newest seq of a conversation that stands at ``through`` or before it, 0 if there is none in here.

    Generations grow while they are read: a reader names the last position of its snapshot, or it would learn of an
    entry that it cannot see and overlook the one before.
    """
    run, count = _last_run(generations, key, through)
    return run.first_seq + count - 1 if run is not None else 0


def last_position(generations: Generations, key: int, through: int = POSITION_MAX) -> int:
    """Where the newest entry of a conversation up to ``through`` stands, 0 if there is none in here."""
    run, count = _last_run(generations, key, through)
    return run.positions[count - 1] if run is not None else 0


def _last_run(generations: Generations, key: int, through: int) -> tuple[Run | None, int]:
    """The newest run with an entry at ``through`` or before it, and how many of its entries stand there."""
    for generation in reversed(generations):
        run = generation.get(key)
        if run is not None and (count := bisect_right(run.positions, through)):
            return run, count
    return None, 0


def places(generations: Generations, key: int, after_seq: int, before_seq: int) -> Iterator[tuple[int, int]]:
    """Seqs and positions of a conversation's entries between two seqs (both excluded), oldest first."""
    for generation in generations:
        run = generation.get(key)
        if run is not None:
            first = run.first_seq
            positions = run.positions[max(0, after_seq + 1 - first) : max(0, before_seq - first)]
            yield from enumerate(positions, max(first, after_seq + 1))
