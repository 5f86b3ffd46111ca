"""The log of one conversation while its owners change, hang, come late and open buckets.

Owners of epochs 1, 2, 3, … follow one another. ``ownership.py`` checks the other half and hands over this: when the
owner of an epoch begins to load, no owner before it acknowledges or answers any more (its lease has ended, or it has
drained). Whatever it had begun goes on all the same: its rows and its changes of the conversation's row arrive at any
later time.

A change of the conversation's row is a lightweight transaction on the row's version. Its outcome can stay unknown,
and then a SERIAL read that shows the old version settles nothing: the change may still be on its way. It is settled
by being seen in the row, or by a newer version.

What must hold: all that anybody has observed (an acknowledgement, an answered read) stands at the beginning of all
that is observed later, every quorum can read it, and no seq and epoch is ever given to two entries.

    python -m tests.model.takeover             all worlds, then a counterexample for each rule left out
"""

import enum
from collections.abc import Iterator
from typing import NamedTuple

from tests.model import explore, rows
from tests.model.explore import Breach, State, Step
from tests.model.rows import LEVELS, QUORUM, Log, Rows, Segment, arrivals, put, quorum_reads


class Rule(enum.Enum):
    """What keeps the promise; each can be left out."""

    SEGMENTS = "a row counts if its epoch is that of the segment covering its seq, not if its epoch is the highest"
    LAST_RECORDED_COVERS = "of two segments that begin at the same seq the one recorded last counts"
    LAST_NOT_MERGED = "the last segment, behind which nothing has begun, is not merged with those before it"
    SEGMENT_BY_LWT = "an owner that loads records its segment by compare-and-set"
    BUCKET_BY_LWT = "an owner that opens a bucket records the segment by compare-and-set"
    EXACT_SEGMENT = "a change of unknown outcome is recognised by the very segment, not by its epoch"
    BUCKET_WHEN_DURABLE = "a bucket is opened only when all that was sent to the one before it is durable"
    NOTHING_BEHIND_AN_OPENING = "nothing is appended while the outcome of opening a bucket is unknown"
    LEASE_BEFORE_ACK = "the lease is checked before each acknowledgement and answer"
    READ_REPAIR = "what a quorum read has seen is held by a quorum before the read returns"
    FORGET_WHEN_QUIET = "a conversation leaves the memory of its owner only when nothing of it is in flight"


LEFT_OUT = {
    Rule.LAST_RECORDED_COVERS: rows.first_of_equals,
    Rule.LAST_NOT_MERGED: rows.merged_with_the_last,
}


class Bounds(NamedTuple):
    """How often each owner may do what, by epoch; there are as many owners as figures."""

    appends: tuple[int, ...]
    attempts: tuple[int, ...]  # changes of the conversation's row sent while loading
    buckets: tuple[int, ...] = (0, 0, 0, 0)
    forgets: tuple[int, ...] = (0, 0, 0, 0)


WORLDS = {
    "takeovers": Bounds(appends=(2, 1, 1, 0), attempts=(1, 1, 1, 1)),
    "late changes of the conversation's row": Bounds(appends=(2, 1, 0), attempts=(1, 2, 2)),
    "buckets": Bounds(appends=(2, 2, 0), attempts=(1, 1, 1), buckets=(1, 0, 0)),
    "a bucket after a takeover": Bounds(appends=(2, 1, 0), attempts=(1, 1, 1), buckets=(0, 1, 0)),
    "forgetting": Bounds(appends=(2, 1, 0), attempts=(1, 1, 1), forgets=(1, 1, 0)),
}
LARGE_WORLDS = {
    "takeovers, large": Bounds(appends=(3, 2, 1, 0), attempts=(1, 1, 1, 1)),
    "late changes of the conversation's row, large": Bounds(appends=(2, 1, 1, 0), attempts=(2, 2, 2, 1)),
    "buckets, large": Bounds(appends=(2, 2, 0), attempts=(1, 2, 1), buckets=(1, 1, 0)),
    "forgetting, large": Bounds(appends=(2, 2, 0), attempts=(2, 2, 1), buckets=(1, 0, 0), forgets=(1, 1, 0)),
}

OFF, CLAIMED, ROW_READ, RECORDING, LOADED, STOPPED = range(6)

ANY_VERSION = -1
Change = tuple[int, tuple[Segment, ...]]
"""A change of the conversation's row on its way: the version it asks for (the number of segments), the new row."""


class Owner(NamedTuple):
    """The owner of one epoch."""

    phase: int = OFF
    leased: bool = False
    row: tuple[Segment, ...] = ()  # the conversation's row as this owner knows it
    log: Log = ()  # in memory: what it found, then what it acknowledged
    last: int = 0  # the last seq it gave away
    wanted: Segment | None = None  # the segment it has sent and not seen
    attempts: int = 0
    appended: int = 0
    opened: int = 0
    forgot: int = 0


class Takeover:
    """State: rows, the conversation's row, changes of it on their way, owners, what was observed."""

    def __init__(self, bounds: Bounds, without: Rule | None = None) -> None:
        self.bounds = bounds
        self.epochs = len(bounds.appends)
        self.segments = without is not Rule.SEGMENTS
        self.segment_lwt = without is not Rule.SEGMENT_BY_LWT
        self.bucket_lwt = without is not Rule.BUCKET_BY_LWT
        self.exact = without is not Rule.EXACT_SEGMENT
        self.open_when_durable = without is not Rule.BUCKET_WHEN_DURABLE
        self.wait_for_opening = without is not Rule.NOTHING_BEHIND_AN_OPENING
        self.check_lease = without is not Rule.LEASE_BEFORE_ACK
        self.repair = without is not Rule.READ_REPAIR
        self.quiet = without is not Rule.FORGET_WHEN_QUIET
        self.keep = LEFT_OUT.get(without, rows.merged)

    def start(self) -> State:
        """Nobody owns the conversation, nothing is in it."""
        return ((), (), (), (Owner(),) * self.epochs, ())

    def steps(self, state: State) -> Iterator[Step]:
        """Rows and changes arrive; owners lose their leases and do whatever comes next."""
        log_rows, row, sent, owners, observed = state
        for key, level, new in arrivals(log_rows):
            yield ("row {} reaches {}", key, LEVELS[level]), (new, row, sent, owners, observed)
        for version, changed in sent:
            if version in (len(row), ANY_VERSION):
                left = tuple(c for c in sent if c[0] == ANY_VERSION and c[1] != changed)
                yield ("the conversation's row becomes {}", changed), (log_rows, changed, left, owners, observed)
        for at, owner in enumerate(owners):
            if owner.phase == OFF:
                if at == 0 or (owners[at - 1].phase != OFF and not owners[at - 1].leased):
                    yield ("epoch {} begins", at + 1), self._with(state, at, Owner(CLAIMED, True))
                continue
            if owner.leased:
                yield ("the lease of epoch {} ends", at + 1), self._with(state, at, owner._replace(leased=False))
            yield from LOADING[owner.phase](self, state, at, owner)

    def _with(self, state: State, at: int, owner: Owner, **changed: object) -> State:
        log_rows, row, sent, owners, observed = state
        owners = (*owners[:at], owner, *owners[at + 1 :])
        return (
            changed.get("rows", log_rows),
            row,
            changed.get("sent", sent),
            owners,
            changed.get("observed", observed),
        )

    def _claimed(self, state: State, at: int, owner: Owner) -> Iterator[Step]:
        """Reads the conversation's row (SERIAL); stops if a newer epoch is in it."""
        row = state[1]
        if row and row[-1][0] > at + 1:
            yield ("epoch {} finds a newer epoch and stops", at + 1), self._stopped(state, at, owner)
        else:
            new = owner._replace(phase=ROW_READ, row=row, log=(), wanted=None)
            yield ("epoch {} reads the conversation's row {}", at + 1, row), self._with(state, at, new)

    def _row_read(self, state: State, at: int, owner: Owner) -> Iterator[Step]:
        """Reads the tail at quorum and sends its segment, unless its own epoch is in the row already."""
        epoch, version = at + 1, len(owner.row)
        for seen, new_rows in quorum_reads(state[0], repair=self.repair):
            log = rows.resolve(seen, owner.row, self.keep) if self.segments else rows.resolve_by_epoch(seen)
            found = owner._replace(log=log, last=len(log))
            words = ("epoch {} reads the tail and finds head {}", epoch, len(log))
            if not self.segments or (version and owner.row[-1][0] == epoch):
                yield words, self._with(state, at, found._replace(phase=LOADED), rows=new_rows)
            elif owner.attempts < self.bounds.attempts[at]:
                segment = (epoch, len(log) + 1, owner.row[-1][2] if version else 0)
                new = found._replace(phase=RECORDING, wanted=segment, attempts=owner.attempts + 1)
                sent = self._sent(state, owner.row, segment, lwt=self.segment_lwt)
                yield (*words[:1], *words[1:]), self._with(state, at, new, rows=new_rows, sent=sent)

    def _recording(self, state: State, at: int, owner: Owner) -> Iterator[Step]:
        """Learns what became of its segment, or begins again."""
        row, epoch, version = state[1], at + 1, len(owner.row)
        mine = row[version : version + 1] == (owner.wanted,)
        if not self.segment_lwt:
            mine = owner.wanted in row
        if not self.exact:
            mine = any(segment[0] == epoch for segment in row)
        if mine:
            loaded = owner._replace(phase=LOADED, row=(*owner.row, owner.wanted), wanted=None)
            yield (
                ("epoch {} learns that its segment {} is recorded", epoch, owner.wanted),
                self._with(state, at, loaded),
            )
        else:
            again = owner._replace(phase=CLAIMED, row=(), log=(), last=0, wanted=None)
            yield (
                ("epoch {} does not find its segment {} and begins again", epoch, owner.wanted),
                self._with(state, at, again),
            )

    def _loaded(self, state: State, at: int, owner: Owner) -> Iterator[Step]:
        yield from self._speak(state, at, owner)
        epoch, seq = at + 1, owner.last + 1
        if owner.wanted is not None:
            yield from self._opening(state, at, owner)
        if owner.appended < self.bounds.appends[at] and (owner.wanted is None or not self.wait_for_opening):
            key = (seq, epoch, owner.row[-1][2] if owner.row else 0)
            new = owner._replace(last=seq, appended=owner.appended + 1)
            words = ("epoch {} sends row {}", epoch, key)
            if any(key == there for there, _ in state[0]):
                yield words, Breach(f"seq {seq} of epoch {epoch} is given to a second entry")
            else:
                yield words, self._with(state, at, new, rows=put(state[0], key))
        if owner.opened < self.bounds.buckets[at] and owner.wanted is None and self._may_open(state[0], at, owner):
            segment = (epoch, seq, owner.row[-1][2] + 1)
            new = owner._replace(opened=owner.opened + 1, wanted=segment)
            sent = self._sent(state, owner.row, segment, lwt=self.bucket_lwt)
            yield ("epoch {} opens a bucket with segment {}", epoch, segment), self._with(state, at, new, sent=sent)
        if owner.forgot < self.bounds.forgets[at] and (
            not self.quiet or (owner.last == len(owner.log) and not owner.wanted)
        ):
            new = Owner(CLAIMED, owner.leased, attempts=owner.attempts, appended=owner.appended, opened=owner.opened)
            yield (
                ("epoch {} forgets the conversation", epoch),
                self._with(state, at, new._replace(forgot=owner.forgot + 1)),
            )

    def _may_open(self, log_rows: Rows, at: int, owner: Owner) -> bool:
        """Whether all rows that an owner has sent have reached a quorum."""
        durable = {key[0] for key, level in log_rows if key[1] == at + 1 and level == QUORUM}
        return not self.open_when_durable or durable.issuperset(range(len(owner.log) + 1, owner.last + 1))

    def _opening(self, state: State, at: int, owner: Owner) -> Iterator[Step]:
        """Learns what became of the bucket; as long as that is unknown it sends the same change again."""
        row, version = state[1], len(owner.row)
        if row[version : version + 1] == (owner.wanted,):
            new = owner._replace(row=(*owner.row, owner.wanted), wanted=None)
            yield ("epoch {} learns that its bucket is open", at + 1), self._with(state, at, new)
        elif row != owner.row:
            yield ("epoch {} finds a newer epoch and stops", at + 1), self._stopped(state, at, owner)

    def _speak(self, state: State, at: int, owner: Owner) -> Iterator[Step]:
        if self.check_lease and not owner.leased:
            return
        log_rows, row, _, _, observed = state
        epoch, seq = at + 1, len(owner.log) + 1
        for key, level in log_rows:
            if key[0] == seq and key[1] == epoch and level == QUORUM and seq <= owner.last:
                log = (*owner.log, key[1:])
                words = ("epoch {} acknowledges {}", epoch, key)
                breach = self._breach(observed, log, log_rows, row)
                yield words, breach or self._with(state, at, owner._replace(log=log), observed=log)
        if owner.log != observed or not self.repair:
            words = ("epoch {} answers a read with {} entries", epoch, seq - 1)
            yield (
                words,
                self._breach(observed, owner.log, log_rows, row) or self._with(state, at, owner, observed=owner.log),
            )

    def _breach(self, observed: Log, log: Log, log_rows: Rows, row: tuple[Segment, ...]) -> Breach | None:
        if log[: len(observed)] != observed:
            return Breach(f"{observed} had been observed (epoch and bucket of seq 1, 2, …), now {log}")
        certain = [key for key, level in log_rows if level == QUORUM]
        stored = rows.resolve(certain, row, self.keep) if self.segments else rows.resolve_by_epoch(certain)
        if stored[: len(log)] != log:
            return Breach(f"{log} is shown, and a quorum of the store may show {stored}")
        return None

    def _sent(self, state: State, known: tuple[Segment, ...], segment: Segment, *, lwt: bool) -> tuple[Change, ...]:
        change = (len(known) if lwt else ANY_VERSION, (*known, segment))
        alive = (c for c in state[2] if c[0] in (len(state[1]), ANY_VERSION))
        new = {change} if change[0] in (len(state[1]), ANY_VERSION) else set()
        return tuple(sorted({*alive, *new}))

    def _stopped(self, state: State, at: int, owner: Owner) -> State:
        return self._with(state, at, Owner(STOPPED, owner.leased))

    def _silent(self, state: State, at: int, owner: Owner) -> Iterator[Step]:
        yield from ()


LOADING = {
    CLAIMED: Takeover._claimed,
    ROW_READ: Takeover._row_read,
    RECORDING: Takeover._recording,
    LOADED: Takeover._loaded,
    STOPPED: Takeover._silent,
}


SHOWN_IN = dict.fromkeys(Rule, "takeovers") | {
    Rule.BUCKET_BY_LWT: "buckets",
    Rule.EXACT_SEGMENT: "late changes of the conversation's row",
    Rule.BUCKET_WHEN_DURABLE: "a bucket after a takeover",
    Rule.NOTHING_BEHIND_AN_OPENING: "buckets",
    Rule.FORGET_WHEN_QUIET: "forgetting",
}
"""For each rule the world in which its absence shows."""


if __name__ == "__main__":
    explore.report("The log of one conversation while its owners change.", Takeover, WORLDS, LARGE_WORLDS, SHOWN_IN)
