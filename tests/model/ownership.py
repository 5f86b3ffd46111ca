"""Leases and one slot: who may speak for the conversations of the slot, and when.

Nodes renew their lease rows, watch one another, mark a silent one's lease dead, claim its slots, and hand a slot over
to one another. All of it is lightweight transactions: each may take effect at any time after it was sent, as long as
its condition holds, and its sender learns of it at any time after that, or never. Time passes in ticks, for all
clocks alike (a clock's error is what the margin of a lease is for); a node that does nothing while time passes is a
paused one. A node that starts again is another node here: it has another incarnation, and with it another lease.

What must hold, and what ``takeover.py`` builds on: when a node begins to load under an epoch, no node speaks
(acknowledges, or answers a read) under an older one any more; and an epoch has one owner ever.

    python -m tests.model.ownership            all worlds, then a counterexample for each rule left out
"""

import enum
from collections.abc import Iterator
from typing import NamedTuple

from tests.model import explore
from tests.model.explore import Breach, State, Step, Words

LEASE_TICKS = 2
NAMES = "ABC"


class Rule(enum.Enum):
    """What keeps the promise; each can be left out."""

    LEASE_BEFORE_ACK = "the lease is checked before each acknowledgement and answer"
    LEASE_FROM_SENDING = "a lease counts from when its renewal was sent, not from when that was answered"
    SUSPENSION_COUNTS = "the clock of a lease goes on while its machine is suspended"
    WATCH_A_FULL_LEASE = "a lease is marked dead only when its nonce stood still for a full lease"
    MARK_ON_THE_NONCE = "a lease is marked dead only if its nonce is still the one that was watched"
    MARK_BEFORE_CLAIM = "a lease is marked dead before its slots are claimed"
    DEAD_BY_ITS_ROW = (
        "an owner is dead when its lease row says so, not when an earlier look at the leases did not show it"
    )
    CLAIM_BY_LWT = "a slot is claimed by compare-and-set on the version of the slot table"
    DRAIN_BEFORE_HANDOVER = "a slot is handed over when none of its appends is in flight"
    SILENT_ONCE_HANDED_OVER = "nothing is answered from when the handover was sent"
    SETTLE_BEFORE_RESUMING = (
        "a slot whose handover has an unknown outcome is taken back by a newer version, not by a read"
    )


class Bounds(NamedTuple):
    """What may happen how often in a world."""

    nodes: int
    versions: int  # changes of the slot table
    renewals: tuple[int, ...]  # by node
    mortal: tuple[int, ...]  # nodes whose lease may end; the others renew theirs all the time
    handovers: bool
    joins: tuple[int, ...] = ()  # nodes that take their lease later


WORLDS = {
    "leases": Bounds(nodes=3, versions=2, renewals=(2, 1, 0), mortal=(0, 1), handovers=False),
    "handover": Bounds(nodes=2, versions=4, renewals=(1, 0), mortal=(0,), handovers=True),
    "handover and takeover": Bounds(nodes=3, versions=5, renewals=(1, 0, 0), mortal=(0,), handovers=True),
    "a node joins": Bounds(nodes=3, versions=4, renewals=(0, 0, 0), mortal=(0,), handovers=True, joins=(2,)),
}
LARGE_WORLDS = {
    "leases, large": Bounds(nodes=3, versions=3, renewals=(2, 2, 0), mortal=(0, 1), handovers=False),
    "handover, large": Bounds(nodes=2, versions=6, renewals=(1, 1), mortal=(0, 1), handovers=True),
    "handover and takeover, large": Bounds(nodes=3, versions=5, renewals=(0, 0, 0), mortal=(0, 1), handovers=True),
    "a node joins, large": Bounds(nodes=3, versions=5, renewals=(1, 0, 0), mortal=(0,), handovers=True, joins=(2,)),
}


class Renewal(NamedTuple):
    """A renewal on its way, or applied and not yet answered."""

    nonce: int
    left: int  # ticks of lease that it is still worth
    applied: bool


class Lease(NamedTuple):
    """A lease row."""

    nonce: int = 0
    alive: bool = True
    taken: bool = True


NOBODY, ACCEPTING, DRAINING, HANDED = "nobody", "accepting", "draining", "handed over"


class Node(NamedTuple):
    """A node: its lease as it knows it, what it watches, and what it takes itself for in the slot."""

    left: int = LEASE_TICKS
    renewal: Renewal | None = None
    sent: int = 0  # nonce of the last renewal sent
    watch: tuple[int, int, int] | None = None  # node, nonce, ticks to wait
    role: str = NOBODY
    epoch: int = 0  # the last epoch of which it knew itself the owner
    in_flight: bool = False
    version: int = 0  # of the slot table, as its handover asked for
    known: tuple[int, ...] = ()  # who was alive at its last look; kept only where that is taken for the truth


class Slot(NamedTuple):
    """The slot's part of the slot table, and the table's version."""

    version: int = 0
    owner: int = 0
    epoch: int = 1
    next: int | None = None


PLAIN = -1
Change = tuple[int, int, int]  # version asked for (or PLAIN), owner, epoch


class Ownership:
    """State: lease rows, slot, changes of it and marks on their way, owners so far, nodes, newest epoch loaded."""

    def __init__(self, bounds: Bounds, without: Rule | None = None) -> None:
        self.bounds = bounds
        self.nodes = range(bounds.nodes)
        self.off = without

    def start(self) -> State:
        """The first node owns the slot and accepts; all leases are fresh."""
        first = Node(role=ACCEPTING, epoch=1)
        others = (Node(),) * (self.bounds.nodes - 1)
        leases = tuple(Lease(0, False, False) if at in self.bounds.joins else Lease() for at in self.nodes)
        return (leases, Slot(), (), (), ((1, 0),), (first, *others), 1)

    def steps(self, state: State) -> Iterator[Step]:
        """Time passes, changes take effect, nodes do whatever comes next."""
        leases, slot, _, _, owners, nodes, _ = state
        yield from self._time(state)
        yield from self._lease_changes(state)
        yield from self._slot_changes(state)
        if len({epoch for epoch, _ in owners}) < len(owners):
            yield ("epoch {} has two owners", slot.epoch), Breach("both take themselves for the owner")
        for at in self.nodes:
            if not leases[at].taken:
                yield ("{} takes its lease", NAMES[at]), _put(state, leases=_set(leases, at, Lease()))
                continue
            yield from self._renew(state, at)
            yield from self._watch(state, at)
            yield from self._claim(state, at)
            yield from self._own(state, at)
            if nodes[at].role != NOBODY:
                yield from self._speak(state, at)
                yield from self._hand_over(state, at)
        if self.bounds.handovers and slot.next is None and slot.version < self.bounds.versions:
            for to in self.nodes:
                if to != slot.owner and leases[to].taken:
                    new = slot._replace(version=slot.version + 1, next=to)
                    yield ("{} is to be the next owner", NAMES[to]), _put(state, slot=new)

    def _time(self, state: State) -> Iterator[Step]:
        nodes = state[5]
        passed = tuple(_older(node) if at in self.bounds.mortal else _watched(node) for at, node in enumerate(nodes))
        if passed != nodes:
            yield ("a tick passes",), _put(state, nodes=passed)
        if self.off is Rule.SUSPENSION_COUNTS and passed[1:] != nodes[1:]:
            yield ("a tick passes, A's machine being suspended",), _put(state, nodes=(nodes[0], *passed[1:]))

    def _lease_changes(self, state: State) -> Iterator[Step]:
        leases, _, _, marks, _, nodes, _ = state
        for at, node in enumerate(nodes):
            if node.renewal and not node.renewal.applied and leases[at] == (node.renewal.nonce - 1, True, True):
                new = node._replace(renewal=node.renewal._replace(applied=True))
                renewed = _set(leases, at, Lease(node.renewal.nonce))
                open_marks = marks if self.off is Rule.MARK_ON_THE_NONCE else tuple(m for m in marks if m[0] != at)
                yield (
                    ("the renewal {} of {} is applied", node.renewal.nonce, NAMES[at]),
                    _put(state, leases=renewed, nodes=_set(nodes, at, new), marks=open_marks),
                )
        for mark in marks:
            at, nonce = mark
            if leases[at].alive and (leases[at].nonce == nonce or self.off is Rule.MARK_ON_THE_NONCE):
                dead = _set(leases, at, leases[at]._replace(alive=False))
                yield ("the lease of {} is marked dead", NAMES[at]), self._marked(state, at, dead)

    def _marked(self, state: State, at: int, leases: tuple[Lease, ...]) -> State:
        """Forgets what cannot matter any more: other marks, who watches, a renewal that comes too late."""
        marks, nodes = state[3], list(state[5])
        for other, node in enumerate(nodes):
            if node.watch and node.watch[0] == at:
                nodes[other] = node._replace(watch=None)
        late = nodes[at].renewal is None or not nodes[at].renewal.applied
        nodes[at] = nodes[at]._replace(sent=self.bounds.renewals[at], renewal=None if late else nodes[at].renewal)
        return _put(state, leases=leases, marks=tuple(m for m in marks if m[0] != at), nodes=tuple(nodes))

    def _slot_changes(self, state: State) -> Iterator[Step]:
        _, slot, changes, _, owners, _, _ = state
        for change in changes:
            version, owner, epoch = change
            if version not in (slot.version, PLAIN):
                continue
            new = Slot(slot.version + 1, owner, epoch)
            rest = tuple(c for c in changes if c != change and c[0] in (new.version, PLAIN))
            known = tuple(sorted({*owners, (epoch, owner)}))
            yield (
                ("the slot goes to {} with epoch {}, version {}", NAMES[owner], epoch, new.version),
                _put(state, slot=new, changes=rest, owners=known),
            )

    def _renew(self, state: State, at: int) -> Iterator[Step]:
        node = state[5][at]
        if node.renewal is None and node.sent < self.bounds.renewals[at]:
            new = node._replace(sent=node.sent + 1, renewal=Renewal(node.sent + 1, LEASE_TICKS, False))
            yield ("{} sends the renewal {}", NAMES[at], new.sent), _node(state, at, new)
        if node.renewal and node.renewal.applied:
            worth = LEASE_TICKS if self.off is Rule.LEASE_FROM_SENDING else node.renewal.left
            new = node._replace(left=max(node.left, worth), renewal=None)
            yield ("{} learns that it is applied", NAMES[at]), _node(state, at, new)

    def _watch(self, state: State, at: int) -> Iterator[Step]:
        leases, _, _, marks, _, nodes, _ = state
        for other in self.bounds.mortal:
            if other == at or not leases[other].alive:
                continue
            nonce, watch = leases[other].nonce, nodes[at].watch
            if watch is None or watch[:2] != (other, nonce):
                new = nodes[at]._replace(watch=(other, nonce, LEASE_TICKS))
                yield ("{} sees the nonce {} of {}", NAMES[at], nonce, NAMES[other]), _node(state, at, new)
            if watch is not None and watch[0] == other and (watch[2] == 0 or self.off is Rule.WATCH_A_FULL_LEASE):
                if self.off is Rule.MARK_BEFORE_CLAIM or (other, watch[1]) in marks:
                    continue
                if watch[1] == nonce or self.off is Rule.MARK_ON_THE_NONCE:  # with another nonce it would be void
                    words = ("{} sends a mark for the lease of {}, nonce {}", NAMES[at], NAMES[other], watch[1])
                    yield words, _put(state, marks=tuple(sorted((*marks, watch[:2]))))

    def _claim(self, state: State, at: int) -> Iterator[Step]:
        leases, slot, _, _, _, nodes, _ = state
        watch = nodes[at].watch
        gone = not leases[slot.owner].alive
        if self.off is Rule.DEAD_BY_ITS_ROW:
            alive = tuple(node for node, lease in enumerate(leases) if lease.alive)
            gone = bool(nodes[at].known) and slot.owner not in nodes[at].known
            if alive != nodes[at].known:
                words = ("{} looks at the leases: {} are alive", NAMES[at], [NAMES[node] for node in alive])
                yield words, _node(state, at, nodes[at]._replace(known=alive))
        if self.off is Rule.MARK_BEFORE_CLAIM:
            gone = watch == (slot.owner, leases[slot.owner].nonce, 0)
        if slot.owner != at and gone and slot.version < self.bounds.versions:
            words = ("{} claims the slot at version {}", NAMES[at], slot.version)
            yield from self._send(state, words, at, slot.epoch + 1, nodes[at], lwt=self.off is not Rule.CLAIM_BY_LWT)

    def _own(self, state: State, at: int) -> Iterator[Step]:
        """Learns, however late, that it was made the owner, and begins to load."""
        owners, nodes, newest = state[4:]
        for epoch, owner in owners:
            if owner == at and epoch > nodes[at].epoch:
                new = nodes[at]._replace(role=ACCEPTING, epoch=epoch, in_flight=False, version=0)
                yield (
                    ("{} learns that it owns epoch {} and loads", NAMES[at], epoch),
                    _put(state, nodes=_set(nodes, at, new), newest=max(newest, epoch)),
                )

    def _speak(self, state: State, at: int) -> Iterator[Step]:
        node, newest = state[5][at], state[6]
        if node.role == ACCEPTING and not node.in_flight and self.bounds.handovers:
            yield ("{} sends an append", NAMES[at]), _node(state, at, node._replace(in_flight=True))
        if not node.left and self.off is not Rule.LEASE_BEFORE_ACK:
            return
        too_late = Breach(f"epoch {node.epoch} speaks when epoch {newest} has begun to load")
        if node.in_flight:
            words = ("{} acknowledges its append under epoch {}", NAMES[at], node.epoch)
            yield words, too_late if newest > node.epoch else _node(state, at, node._replace(in_flight=False))
        silent = node.role == HANDED and self.off is not Rule.SILENT_ONCE_HANDED_OVER
        if not silent and newest > node.epoch:
            yield ("{} answers a read under epoch {}", NAMES[at], node.epoch), too_late

    def _hand_over(self, state: State, at: int) -> Iterator[Step]:
        slot, node = state[1], state[5][at]
        mine = slot.owner == at and slot.epoch == node.epoch
        if node.role == ACCEPTING and mine and slot.next is not None:
            yield ("{} drains", NAMES[at]), _node(state, at, node._replace(role=DRAINING))
        drained = not node.in_flight or self.off is Rule.DRAIN_BEFORE_HANDOVER
        if node.role == DRAINING and mine and slot.next is None:
            yield (
                ("{} finds the handover called off and goes on", NAMES[at]),
                _node(state, at, node._replace(role=ACCEPTING)),
            )
        if node.role == DRAINING and mine and slot.next is not None and drained and slot.version < self.bounds.versions:
            new = node._replace(role=HANDED, version=slot.version)
            words = ("{} hands over to {} at version {}", NAMES[at], NAMES[slot.next], slot.version)
            yield from self._send(state, words, slot.next, slot.epoch + 1, new, by=at)
        if node.role != HANDED:
            return
        if not mine:
            new = node._replace(role=NOBODY, in_flight=False, version=0)
            yield ("{} learns that the slot is another's", NAMES[at]), _node(state, at, new)
        elif slot.version > node.version or self.off is Rule.SETTLE_BEFORE_RESUMING:
            new = node._replace(role=ACCEPTING, version=0)
            yield ("{} finds version {} still its own and goes on", NAMES[at], slot.version), _node(state, at, new)
        elif slot.version < self.bounds.versions:
            words = ("{} takes the slot back at version {}", NAMES[at], slot.version)
            yield from self._send(state, words, at, node.epoch, node)

    def _send(
        self, state: State, words: Words, owner: int, epoch: int, node: Node, *, by: int | None = None, lwt: bool = True
    ) -> Iterator[Step]:
        """One more change of the slot on its way (the same one twice is one)."""
        slot, changes = state[1], state[2]
        change: Change = (slot.version if lwt else PLAIN, owner, epoch)
        sent = tuple(sorted({*changes, change}))
        nodes = state[5] if by is None else _set(state[5], by, node)
        yield words, _put(state, changes=sent, nodes=nodes)


def _watched(node: Node) -> Node:
    """A tick later, the node's own lease being renewed all the time."""
    if node.watch is None or not node.watch[2]:
        return node
    return node._replace(watch=(*node.watch[:2], node.watch[2] - 1))


def _older(node: Node) -> Node:
    """A tick later."""
    renewal = node.renewal
    if renewal and renewal.left:
        renewal = renewal._replace(left=renewal.left - 1)
    return _watched(node)._replace(left=max(0, node.left - 1), renewal=renewal)


def _set(things: tuple, at: int, new: object) -> tuple:
    return (*things[:at], new, *things[at + 1 :])


def _node(state: State, at: int, node: Node) -> State:
    return (*state[:5], _set(state[5], at, node), state[6])


def _put(state: State, **new: object) -> State:
    names = ("leases", "slot", "changes", "marks", "owners", "nodes", "newest")
    return tuple(new.get(name, old) for name, old in zip(names, state, strict=True))


SHOWN_IN = dict.fromkeys(Rule, "leases") | {
    Rule.DEAD_BY_ITS_ROW: "a node joins",
    Rule.DRAIN_BEFORE_HANDOVER: "handover",
    Rule.SILENT_ONCE_HANDED_OVER: "handover",
    Rule.SETTLE_BEFORE_RESUMING: "handover",
}
"""For each rule the world in which its absence shows."""


if __name__ == "__main__":
    explore.report("Leases and one slot: who may speak, and when.", Ownership, WORLDS, LARGE_WORLDS, SHOWN_IN)
