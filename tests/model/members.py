"""Who the members of a conversation are, when owners change between an entry and the member rows it causes.

An entry that adds or removes a member is a row of the log, and besides it changes rows elsewhere: the member rows,
which are read when a conversation is loaded. No transaction spans the two. The owner writes the entry's row first.
When all up to it is durable it checks its lease, writes the member rows with the entry's timestamp, and acknowledges
when they are durable; until then it appends nothing behind the entry. So at most the last entry that counts can have
its member rows missing, and a successor writes those again, once its own segment is recorded, before it answers
anything.

One member row stands for all of them: the newest timestamp wins in each by itself. Its value is the entry that wrote
it. How owners follow one another is the business of ``ownership.py``, late changes of the conversation's row of
``takeover.py``.

What must hold: the members that an owner has read when it loads, and whatever it does to them later, are those that a
replay of its log gives; and a quorum can read every change that was shown to anybody.

    python -m tests.model.members              all worlds, then a counterexample for each rule left out
"""

import enum
from collections.abc import Iterator
from typing import NamedTuple

from tests.model import explore
from tests.model.explore import Breach, State, Step
from tests.model.rows import LEVELS, QUORUM, SENT, Rows, arrivals, put, quorum_reads


class Rule(enum.Enum):
    """What keeps the promise; each can be left out."""

    NOTHING_BEHIND_A_CHANGE = "nothing is appended behind a member change until its member rows are durable"
    LEASE_BEFORE_MEMBERS = "the lease is checked when the entry is durable, before its member rows are written"
    ALL_BEFORE_DURABLE = "member rows are written when every entry before theirs is durable too"
    ACK_BEHIND_MEMBERS = "a member change is acknowledged when its member rows are durable"
    WRITTEN_AGAIN = "a successor writes the member rows of the last entry that counts again before it reads them"
    SEGMENT_BEFORE_MEMBERS = "a successor writes member rows only when its own segment is recorded"
    TIME_GROWS_WITH_SEQ = "an entry's timestamp is above that of the entry before it, whoever's clock is behind"


class Bounds(NamedTuple):
    """How many entries each owner appends, and what its clock shows at first, by epoch."""

    appends: tuple[int, ...]
    clocks: tuple[int, ...]


WORLDS = {
    "a fast clock first": Bounds(appends=(2, 1, 1), clocks=(10, 0, 5)),
    "a slow clock first": Bounds(appends=(2, 1, 0), clocks=(0, 10, 5)),
}
LARGE_WORLDS = {
    "a fast clock first, large": Bounds(appends=(2, 2, 0), clocks=(10, 0, 5)),
    "four owners": Bounds(appends=(2, 1, 1, 0), clocks=(10, 0, 5, 0)),
}

OFF, CLAIMED, ROW_READ, RECORDING, SETTLING, LOADED, STOPPED = range(7)
TEXT, CHANGE = 0, 1
KINDS = ("message", "member change")

Entry = tuple[int, int, int]  # epoch, kind, timestamp
Value = tuple[int, int, int]  # of the member row: timestamp, seq, epoch of the entry that wrote it; () if none did


class Owner(NamedTuple):
    """The owner of one epoch."""

    phase: int = OFF
    leased: bool = False
    row: tuple[tuple[int, int], ...] = ()  # segments as read: epoch, first seq
    log: tuple[Entry, ...] = ()
    last: int = 0
    time: int = 0  # the last timestamp it saw or gave
    change: int = 0  # seq of the member change in progress, 0 if there is none
    appended: int = 0
    members: Value | tuple[()] = ()


class Members:
    """State: rows of the log, segments, writes of the member row, owners."""

    def __init__(self, bounds: Bounds, without: Rule | None = None) -> None:
        self.bounds = bounds
        self.off = without

    def start(self) -> State:
        """Nobody owns the conversation, nothing is in it."""
        return ((), (), (), (Owner(),) * len(self.bounds.appends))

    def steps(self, state: State) -> Iterator[Step]:
        """Writes arrive; owners lose their leases and do whatever comes next."""
        log_rows, segments, writes, owners = state
        for key, level, new in arrivals(log_rows):
            yield ("{} {} of epoch {} reaches {}", KINDS[key[2]], key[0], key[1], LEVELS[level]), (new, *state[1:])
        for value, level, new in arrivals(writes):
            yield ("the member row of entry {} of epoch {} reaches {}", *value[1:], LEVELS[level]), (
                log_rows, segments, new, owners,
            )  # fmt: skip
        for at, owner in enumerate(owners):
            if owner.phase == OFF:
                if at == 0 or (owners[at - 1].phase != OFF and not owners[at - 1].leased):
                    yield ("epoch {} begins", at + 1), _put(state, at, Owner(CLAIMED, True))
                continue
            if owner.leased:
                yield ("the lease of epoch {} ends", at + 1), _put(state, at, owner._replace(leased=False))
            if owner.phase == LOADED:
                yield from self._append(state, at, owner)
                yield from self._write_members(state, at, owner)
                yield from self._speak(state, at, owner)
            else:
                yield from self._load(state, at, owner)

    def _load(self, state: State, at: int, owner: Owner) -> Iterator[Step]:
        log_rows, segments, writes, _ = state
        epoch = at + 1
        if owner.phase == CLAIMED and segments and segments[-1][0] > epoch:
            yield ("epoch {} finds a newer epoch and stops", epoch), _put(state, at, Owner(STOPPED, owner.leased))
        elif owner.phase == CLAIMED:
            new = Owner(ROW_READ, owner.leased, segments)
            yield ("epoch {} reads the conversation's row", epoch), _put(state, at, new)
        elif owner.phase == ROW_READ:
            for seen, new_rows in quorum_reads(log_rows):
                log = resolve(seen, owner.row)
                new = owner._replace(phase=RECORDING, log=log, last=len(log), time=log[-1][2] if log else 0)
                early = writes
                if self.off is Rule.SEGMENT_BEFORE_MEMBERS and log and log[-1][1] == CHANGE:
                    early = _written(writes, (log[-1][2], len(log), log[-1][0]))
                words = ("epoch {} reads the tail and finds head {}", epoch, len(log))
                yield words, _put(state, at, new, rows=new_rows, writes=early)
        elif owner.phase == RECORDING and segments == owner.row:
            recorded = (*segments, (epoch, owner.last + 1))
            words = ("epoch {} records its segment from {}", epoch, owner.last + 1)
            yield words, _put(state, at, owner._replace(phase=SETTLING, row=recorded), segments=recorded)
        elif owner.phase == RECORDING:
            yield ("epoch {} finds the row changed", epoch), _put(state, at, Owner(CLAIMED, owner.leased))
        elif owner.phase == SETTLING:
            yield from self._settle(state, at, owner)

    def _settle(self, state: State, at: int, owner: Owner) -> Iterator[Step]:
        """Writes the member rows of the last entry again, then reads all of them."""
        writes = state[2]
        last = owner.log[-1] if owner.log else (0, TEXT, 0)
        value = (last[2], owner.last, last[0])
        if last[1] == CHANGE and self.off is not Rule.WRITTEN_AGAIN:
            if value not in dict(writes):
                words = ("epoch {} writes the member row of entry {} again", at + 1, owner.last)
                yield words, _put(state, at, owner, writes=_written(writes, value))
            if dict(writes).get(value) != QUORUM:
                return
        for found in {max(seen, default=()) for seen, _ in quorum_reads(writes)}:
            words = ("epoch {} reads the members: {}", at + 1, _shown(found))
            yield words, _put(state, at, owner._replace(phase=LOADED, members=found))

    def _append(self, state: State, at: int, owner: Owner) -> Iterator[Step]:
        if owner.appended == self.bounds.appends[at]:
            return
        if owner.change and self.off is not Rule.NOTHING_BEHIND_A_CHANGE:
            return
        seq, clock = owner.last + 1, self.bounds.clocks[at] + owner.appended
        time = clock if self.off is Rule.TIME_GROWS_WITH_SEQ else max(clock, owner.time + 1)
        for kind in (TEXT, CHANGE):
            if kind == CHANGE and owner.change:
                continue
            change = seq if kind == CHANGE else owner.change
            new = owner._replace(last=seq, time=time, change=change, appended=owner.appended + 1)
            words = ("epoch {} sends {} {} with time {}", at + 1, KINDS[kind], seq, time)
            yield words, _put(state, at, new, rows=put(state[0], (seq, at + 1, kind, time)))

    def _write_members(self, state: State, at: int, owner: Owner) -> Iterator[Step]:
        """The row of a member change is durable, and it is its turn: now the member row."""
        if not owner.change or (not owner.leased and self.off is not Rule.LEASE_BEFORE_MEMBERS):
            return
        if owner.change != len(owner.log) + 1 and self.off is not Rule.ALL_BEFORE_DURABLE:
            return
        key, level = _own(state[0], owner.change, at + 1)
        value = (key[3], owner.change, at + 1)
        if level == QUORUM and value not in dict(state[2]):
            words = ("epoch {} writes the member row of entry {}", at + 1, owner.change)
            yield words, _put(state, at, owner, writes=_written(state[2], value))

    def _speak(self, state: State, at: int, owner: Owner) -> Iterator[Step]:
        if not owner.leased:
            return
        log_rows, _, writes, _ = state
        epoch, seq = at + 1, len(owner.log) + 1
        yield ("epoch {} answers a read with {} entries", epoch, seq - 1), _breach(owner, writes) or state
        if seq > owner.last:
            return
        key, level = _own(log_rows, seq, epoch)
        value = (key[3], seq, epoch)
        durable = dict(writes).get(value) == QUORUM or self.off is Rule.ACK_BEHIND_MEMBERS
        if level == QUORUM and (key[2] == TEXT or durable):
            new = owner._replace(log=(*owner.log, key[1:]))
            if key[2] == CHANGE:
                new = new._replace(members=value, change=0)
            words = ("epoch {} acknowledges {} {}", epoch, KINDS[key[2]], seq)
            yield words, _breach(new, writes) or _put(state, at, new)


def resolve(seen: frozenset[tuple[int, int, int, int]], segments: tuple[tuple[int, int], ...]) -> tuple[Entry, ...]:
    """The log that counts, as in ``rows.resolve``, with what the entries are."""
    there = {key[:2]: key[1:] for key in seen}
    log: list[Entry] = []
    while epochs := [epoch for epoch, first in segments if first <= len(log) + 1]:
        if (len(log) + 1, epochs[-1]) not in there:
            break
        log.append(there[len(log) + 1, epochs[-1]])
    return tuple(log)


def replay(log: tuple[Entry, ...]) -> Value | tuple[()]:
    """What the member row has to be after these entries."""
    changes = ((time, seq, epoch) for seq, (epoch, kind, time) in enumerate(log, 1) if kind == CHANGE)
    return max(changes, key=lambda value: value[1], default=())


def _breach(owner: Owner, writes: Rows) -> Breach | None:
    wanted = replay(owner.log)
    if owner.members != wanted:
        return Breach(f"its members are of {_shown(owner.members)}, its log says {_shown(wanted)}")
    certain = max((value for value, level in writes if level == QUORUM), default=())
    if certain < wanted:
        return Breach(f"a quorum may show the members of {_shown(certain)}, the log says {_shown(wanted)}")
    return None


def _shown(value: Value | tuple[()]) -> str:
    return f"entry {value[1]} of epoch {value[2]}" if value else "no entry"


def _own(log_rows: Rows, seq: int, epoch: int) -> tuple[tuple[int, int, int, int], int]:
    return next((key, level) for key, level in log_rows if key[:2] == (seq, epoch))


def _written(writes: Rows, value: Value) -> Rows:
    return writes if value in dict(writes) else put(writes, value, SENT)


def _put(state: State, at: int, owner: Owner, **new: object) -> State:
    owners = (*state[3][:at], owner, *state[3][at + 1 :])
    return (new.get("rows", state[0]), new.get("segments", state[1]), new.get("writes", state[2]), owners)


SHOWN_IN = dict.fromkeys(Rule, "a fast clock first")
"""For each rule the world in which its absence shows."""


if __name__ == "__main__":
    explore.report(
        "The member rows of a conversation while its owners change.", Members, WORLDS, LARGE_WORLDS, SHOWN_IN
    )
