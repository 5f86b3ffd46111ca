"""The other nodes' leases: who is alive, and marking dead who is not.

A lease is dead when its row says so, and another node may only say so after it watched the nonce stand still for a full
lease, on its own clock, through reads that all succeeded: after an outage of the store everybody gets a lease's time to
renew. Marking dead names the nonce that stood still, so an owner that renewed at the last moment stays alive.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog
import trio

from gateway.cluster.joining import RENEWALS_OF_THE_LIVING, asks_elsewhere, conflict
from gateway.cluster.lease import Lease, machine_seconds
from store.coordination import Coordination, LeaseRecord
from store.interface import Unavailable
from store.recurring import Recurring

WATCH_S: Final = 1.0
"""Seconds between two looks at the leases: what a takeover may take longer than a lease."""

WATCH_GAP_SHARE: Final = 0.5
"""Share of a lease between two looks above which this node itself must have been asleep: its watches begin again."""

YOUNG_SHARE: Final = 2.0
"""Leases that a node looks for an older one in whose way it is: those renewals are seen by then."""

log = structlog.get_logger(__name__)


class Watch:
    """Knows which incarnations live, as of the last look that succeeded.

    Attributes:
        live: living incarnations by name, this node's own among them.
        dead: incarnations whose row is still there and says so.
        looked_s: when the last look that succeeded began, seconds of the clock; -1 before the first.
        marked_dead: incarnations that this node marked dead, ever.
        on_look: called after each look that succeeded.
        on_change: called after a look that changed who lives, or what a living row says besides its nonce.
    """

    def __init__(
        self,
        coordination: Coordination,
        lease: Lease,
        *,
        lease_s: float,
        clock: Callable[[], float] = machine_seconds,
    ) -> None:
        self.live: Mapping[str, LeaseRecord] = {}
        self.dead: Sequence[str] = ()
        self.looked_s = -1.0
        self.marked_dead = 0
        self.on_change: list[Callable[[], None]] = []
        self.on_look: list[Callable[[], None]] = []
        self._coordination = coordination
        self._lease = lease
        self._lease_s = lease_s
        self._clock = clock
        self._watched: dict[str, tuple[int, float, int]] = {}  # nonce, since when, and renewals seen
        self._began_s: float | None = None  # the first look that succeeded
        self._wake = trio.Event()
        self._trouble = Recurring("leases not read", "leases read again")

    def now_s(self) -> float:
        """The clock that ``looked_s`` is of."""
        return self._clock()

    def wake(self) -> None:
        """Look again soon: something is said to have changed."""
        self._wake.set()

    def is_dead(self, incarnation: str) -> bool:
        """Whether the last look did not find it alive. An empty name is nobody's, and so dead."""
        return incarnation not in self.live

    def unrenewed_s(self) -> dict[str, float]:
        """For each other living incarnation, seconds since this node saw its lease renewed, or saw it at all."""
        now_s = self._clock()
        return {name: now_s - since_s for name, (_nonce, since_s, _renewals) in self._watched.items()}

    @property
    def contested(self) -> bool:
        """Whether a node lives that asks another datacenter and began when this one did: one of them will give way."""
        here = self._lease.record.datacenter
        return self._young(self._clock()) and any(asks_elsewhere(here, row.datacenter) for row in self.live.values())

    def _young(self, now_s: float) -> bool:
        return self._began_s is None or now_s - self._began_s < self._lease_s * YOUNG_SHARE

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look until cancelled; started after the first look that succeeded.

        Raises:
            CannotJoin: this node is in the way of one that renews its lease, and was there before.
        """
        started = False
        while True:
            try:
                await self.look()
            except Unavailable as error:
                self._trouble.came(error=str(error))
                self._watched.clear()
            else:
                self._trouble.over()
                if not started:
                    task_status.started()
                    started = True
            with trio.move_on_after(WATCH_S):
                await self._wake.wait()
            self._wake = trio.Event()

    async def look(self) -> None:
        """Read the leases and mark dead whose nonce stood still for a lease. Raises Unavailable, CannotJoin."""
        began_s = self._clock()
        if began_s - self.looked_s > self._lease_s * WATCH_GAP_SHARE:
            self._watched.clear()
        rows = await self._coordination.leases()
        silent = self._note(rows)
        for row in silent:
            if await self._coordination.mark_dead(row.incarnation, row.nonce):
                self.marked_dead += 1
                log.warning("node marked dead", node=row.node, incarnation=row.incarnation, silent_s=self._lease_s)
        if silent:
            rows = await self._coordination.leases()
        self.looked_s = began_s
        self.dead = [row.incarnation for row in rows if not row.alive]
        self._set_live({row.incarnation: row for row in rows if row.alive})
        for notify in self.on_look:
            notify()

    def _note(self, rows: Sequence[LeaseRecord]) -> list[LeaseRecord]:
        """Take notice of renewals; those returned stood still for a lease."""
        # The clock is read behind the answer: a renewal is never counted from before it was seen.
        now_s = self._clock()
        if self._began_s is None:
            self._began_s = now_s
        silent = []
        watched: dict[str, tuple[int, float, int]] = {}
        for row in rows:
            if not row.alive or row.incarnation == self._lease.incarnation:
                continue
            nonce, since_s, renewals = self._watched.get(row.incarnation, (-1, now_s, -1))
            if row.nonce != nonce:
                since_s, renewals = now_s, renewals + 1
                if renewals >= RENEWALS_OF_THE_LIVING:
                    self._give_way(row, now_s)
            elif now_s - since_s >= self._lease_s:
                silent.append(row)
            watched[row.incarnation] = (row.nonce, since_s, renewals)
        self._watched = watched
        return silent

    def _give_way(self, other: LeaseRecord, now_s: float) -> None:
        """Two living nodes in conflict: the younger gives way, or one of the two when they are of an age."""
        own = self._lease.record
        reason = conflict(own, other)
        if (
            reason is not None
            and self._young(now_s)
            and (-other.nonce, other.incarnation) < (-own.nonce, own.incarnation)
        ):
            raise reason

    def _set_live(self, live: dict[str, LeaseRecord]) -> None:
        before, self.live = self.live, live
        if {name: _face(row) for name, row in before.items()} != {name: _face(row) for name, row in live.items()}:
            log.info("nodes alive", nodes=sorted(row.node for row in live.values()))
            for notify in self.on_change:
                notify()


def _face(row: LeaseRecord) -> tuple[bool, bool]:
    return row.owns, row.draining
