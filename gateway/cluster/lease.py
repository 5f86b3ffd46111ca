"""This node's own lease: renewed by lightweight transaction, and trusted only as long as nobody can have taken it.

The lease is counted from the moment a renewal that is known to be applied was *sent*. A watcher on another node counts
from the moment it *saw* that renewal, which is later; so this node falls silent before any watcher's wait is over, by a
margin for clocks that run at different speeds. No clock is ever compared across machines.
"""

import secrets
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from time import CLOCK_BOOTTIME, clock_gettime
from typing import Final

import structlog
import trio
from msgspec import Struct
from msgspec.structs import replace

from store.coordination import Coordination, LeaseRecord
from store.interface import Unavailable
from store.recurring import Recurring

LEASE_MARGIN_SHARE: Final = 0.1
"""Share of a lease that its owner does not use: clocks of two machines may differ in speed by a tenth and all holds."""

RETRY_S: Final = 0.25
"""Seconds until a renewal that failed is tried again: forty times within a lease of 10 s."""

ANSWER_MAX_SHARE: Final = 0.3
"""Share of a lease after which no answer is waited for before the store is asked again, because it may be lost: three
such times fit a lease. One that comes later counts all the same: a store that is slow is not away."""

log = structlog.get_logger(__name__)


class Fenced(Exception):
    """This incarnation was marked dead by another node: it owns nothing any more, and never will again."""


def machine_seconds() -> float:
    """Seconds since the machine started, the time that it was suspended included: a laptop's lid ends leases too."""
    return clock_gettime(CLOCK_BOOTTIME)


class LeaseState(Struct, array_like=True):
    """What another process of this machine has to know to keep a lease.

    Attributes:
        nonce: the last renewal known to be in the row.
        tried: the last one that was ever tried.
        sent_s: when each was sent that may be in the row, seconds of the clock.
        valid_until_s: until when nobody can have taken anything, seconds of the clock.
    """

    nonce: int
    tried: int
    sent_s: dict[int, float]
    valid_until_s: float


class Lease:
    """Keeps one incarnation alive in the eyes of the others.

    Attributes:
        incarnation: the unique name of this life of the node.
        lease_s: seconds that a renewal is good for.
        renewals: renewals applied, ever.
    """

    def __init__(
        self,
        coordination: Coordination,
        *,
        node: str,
        address: str,
        owns: bool,
        protocol: int,
        lease_s: float,
        renew_s: float,
        clock: Callable[[], float] = machine_seconds,
        incarnation: str = "",
    ) -> None:
        """``incarnation``: one that another process lives under until ``resume``; empty: a new one."""
        self.incarnation = incarnation or f"{node}:{secrets.token_urlsafe(6)}"
        self.renewals = 0
        self._coordination = coordination
        self._record = LeaseRecord(self.incarnation, node, 0, True, address, owns, False, protocol)
        self._sent_s: dict[int, float] = {}  # by nonce: those whose renewal may be in the row, now or later
        self._tried = 0
        self.lease_s = lease_s
        self._renew_s = renew_s
        self._clock = clock
        self._valid_until_s = -1.0
        self._draining = False
        self._fenced = False
        self._taken = False
        self._doubt_since_s: float | None = None
        self._trouble = Recurring("lease not renewed", "lease renewed again")
        self._wake = trio.Event()
        self._news = trio.Event()
        self._end = trio.CancelScope()

    @property
    def record(self) -> LeaseRecord:
        """The row as this node last wrote it."""
        return self._record

    @property
    def taken(self) -> bool:
        """Whether another process has taken it, in whose place this one goes on."""
        return self._taken

    @property
    def draining(self) -> bool:
        """Whether this node gives its slots away."""
        return self._draining

    @property
    def fenced(self) -> bool:
        """Whether this incarnation was found dead."""
        return self._fenced

    def valid(self) -> bool:
        """Whether nobody can have taken anything from this node yet. Asked before every acknowledgement."""
        return self._clock() < self._valid_until_s

    @property
    def remaining_s(self) -> float:
        """Seconds for which it stays valid without another renewal."""
        return max(0.0, self._valid_until_s - self._clock())

    def asks(self, datacenter: str) -> None:
        """Let the others know, with the next row, whose replicas alone this node asks; call it before ``run``."""
        self._record = replace(self._record, datacenter=datacenter)

    def drain(self) -> None:
        """Let the others know, with a renewal at once, that this node gives its slots away."""
        self._draining = True
        self._wake.set()

    def renew_soon(self) -> None:
        """Renew without waiting for the time."""
        self._wake.set()

    def state(self) -> LeaseState:
        """What a process has to know that goes on with this lease. A renewal under way does no harm."""
        return LeaseState(self._record.nonce, self._tried, dict(self._sent_s), self._valid_until_s)

    def resume(self, state: LeaseState) -> None:
        """Go on with the lease of a process that says nothing any more; call it before ``run``."""
        self._taken = True
        self._record = replace(self._record, nonce=state.nonce)
        self._tried, self._sent_s = state.tried, dict(state.sent_s)
        self._valid_until_s = state.valid_until_s
        self.renew_soon()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take the lease, however long the store lets it wait, then renew it until cancelled.

        Raises:
            Fenced: another node marked this incarnation dead.

        A cancellation leaves the row alive until ``release`` or until others have watched it stand still.
        """
        with self._end:
            async with trio.open_nursery() as nursery:
                if not self._taken:
                    await self._take()
                task_status.started()
                begun_s = trio.current_time()
                while True:
                    with trio.move_on_at(begun_s + self._renew_s):
                        await self._wake.wait()
                    begun_s = trio.current_time()
                    await self._renew_until_known(nursery)
        raise Fenced(
            f"{self.incarnation} was silent for longer than its lease of {self.lease_s:g} s and lost its slots"
        )

    async def release(self) -> None:
        """Mark this incarnation dead, so that others need not wait for it. Call it when nothing is acknowledged more.

        Raises Unavailable: then the others find out by watching. Cancelling leaves it to them, too.
        """
        self._valid_until_s = -1.0
        nonce = self._record.nonce
        while not await self._coordination.mark_dead(self.incarnation, nonce):
            row = self._own(await self._coordination.leases())
            if row is None or not row.alive:
                return
            nonce = row.nonce  # of a renewal that was under way when this node stopped renewing

    async def _take(self) -> None:
        absence = Recurring("waiting for the store, to take a lease", "store is there, to take a lease")
        while True:
            try:
                # Each try says another nonce: a row that is removed, and that a late try brings back, is known by it.
                taken = await self._coordination.take_lease(self._next())
                if taken:
                    self._note(self._tried)
                if taken or await self._read() is not None:  # entered by an earlier try whose answer was lost
                    self._sent_s.clear()
                    absence.over()
                    return
            except Unavailable as error:
                absence.came(error=str(error))
            await trio.sleep(RETRY_S)

    async def _renew_until_known(self, nursery: trio.Nursery) -> None:
        """Renew until a renewal is known to be in the row that was not before."""
        while True:
            self._wake = trio.Event()
            known = self._record.nonce
            await self._ask(nursery, partial(self._renew, self._next(), known))
            if self._record.nonce == known:
                await self._ask(nursery, self._read)
            if self._record.nonce > known:
                return
            self._say_doubt()
            await trio.sleep(RETRY_S)

    async def _ask(self, nursery: trio.Nursery, question: Callable[[], Awaitable[object]]) -> None:
        """Wait until it is answered, or a renewal is known otherwise, or patience ends. What is late counts, too."""
        over = trio.Event()

        async def ask() -> None:
            with trio.move_on_after(self.lease_s):  # what is known of a longer time ago is of no use
                await question()
            over.set()
            self._tell()

        nursery.start_soon(ask)
        known = self._record.nonce
        with trio.move_on_after(self.lease_s * ANSWER_MAX_SHARE):
            while not over.is_set() and self._record.nonce == known:
                await self._news.wait()

    async def _renew(self, lease: LeaseRecord, known: int) -> None:
        """Renew once, and note what comes of it."""
        try:
            applied = await self._coordination.renew_lease(lease, known)
        except Unavailable as error:
            if self._record.nonce == known:  # else a later one was applied meanwhile
                self._trouble.came(error=str(error), valid_for_s=round(self.remaining_s, 3))
            return
        if applied:
            self._note(lease.nonce)
        else:
            await self._read()  # an earlier one was applied, or it is dead

    def _next(self) -> LeaseRecord:
        """The row to write next. Its nonce was never tried before: an answer that was lost cannot be mistaken."""
        self._tried += 1
        self._sent_s[self._tried] = self._clock()
        return replace(self._record, nonce=self._tried, draining=self._draining)

    async def _read(self) -> int | None:
        """Note which renewal is in our row; None if it cannot be read, or if the row is dead or gone."""
        known = self._record.nonce
        try:
            row = self._own(await self._coordination.leases())
        except Unavailable:
            return None
        if row is not None and row.alive and known <= row.nonce < self._record.nonce:
            return self._record.nonce  # a later one has become known while this was read
        # A row with a renewal that was overtaken long ago was removed, and came back with an insertion that was late.
        if row is None or not row.alive or not (row.nonce == self._record.nonce or row.nonce in self._sent_s):
            self._fence()
            return None
        self._note(row.nonce)
        return row.nonce

    def _own(self, rows: Iterable[LeaseRecord]) -> LeaseRecord | None:
        return next((row for row in rows if row.incarnation == self.incarnation), None)

    def _fence(self) -> None:
        self._fenced = True
        self._valid_until_s = -1.0
        log.error("lease lost: another node marked this incarnation dead", incarnation=self.incarnation)
        self._end.cancel()

    def _note(self, nonce: int) -> None:
        """A renewal is known to be in the row."""
        if nonce <= self._record.nonce or self._fenced:
            return
        self.renewals += 1
        sent_s = self._sent_s[nonce]
        self._sent_s = {tried: when for tried, when in self._sent_s.items() if tried > nonce}
        self._record = replace(self._record, nonce=nonce)
        self._valid_until_s = sent_s + self.lease_s * (1 - LEASE_MARGIN_SHARE)
        self._tell()
        self._trouble.over()
        if self._doubt_since_s is not None and self.valid():
            log.warning("lease sure again", lasted_s=round(self._clock() - self._doubt_since_s, 1))
            self._doubt_since_s = None

    def _tell(self) -> None:
        """Something of the row has become known, or will not by what was asked."""
        self._news.set()
        self._news = trio.Event()

    def _say_doubt(self) -> None:
        if self._doubt_since_s is None and not self.valid():
            self._doubt_since_s = self._clock()
            log.warning("lease in doubt: nothing is acknowledged until the store answers in time")
