"""A simulated Cassandra of three replicas, and one node's way to it. A seed decides what is slow, lost or late.

Rows of ``entries`` lie on each replica by itself: a write is durable when two replicas have it, a read asks two and
repairs both before it answers. Rows that lightweight transactions change, and member rows, are kept once, as Paxos
makes them linearizable; what the network does to requests and answers is the same for all.

Time is that of the simulation's virtual clock (MockClock).
"""

import random
from collections.abc import Callable, Sequence

import trio

from store.interface import NotWritten, OutcomeUnknown, StoreError, Unavailable
from store.tables import EntriesDone, EntryRow, EntryWrite, SlotsRow
from tests.fakes.memory_tables import MemoryTables

REPLICAS = 3
QUORUM = 2

TIMEOUT_S = 2.0
"""Seconds until a request without an answer is given up, its outcome unknown."""

LATE_S = 30.0
"""Seconds by which what was given up may still be applied."""

Log = dict[tuple[int, int], tuple[int, bytes]]


class Cassandra:
    """What all nodes share.

    Attributes:
        rows: everything but the logs.
        logs: by replica, conversation and bucket.
        unknown_share: share of writes and transactions whose outcome is not told.
        unknowns: how many there were.
    """

    def __init__(self, rng: random.Random, nursery: trio.Nursery) -> None:
        self.rng = rng
        self.rows = MemoryTables()
        self.logs: list[dict[tuple[str, int], Log]] = [{} for _ in range(REPLICAS)]
        self.unknown_share = 0.0
        self.unknowns = 0
        self._nursery = nursery

    def later(self, delay_s: float, call: Callable[[], object]) -> None:
        """Let something happen whatever becomes of the node that asked for it."""
        self._nursery.start_soon(self._later, delay_s, call)

    async def _later(self, delay_s: float, call: Callable[[], object]) -> None:
        await trio.sleep(delay_s)
        call()

    def delay_s(self) -> float:
        """Of one way: some milliseconds, rarely much more."""
        rng = self.rng
        return rng.expovariate(1 / 0.3) if rng.random() < 0.01 else rng.expovariate(1 / 0.004)


class NodeTables(MemoryTables):
    """Implements Tables for one node.

    Attributes:
        cut: requests do not reach Cassandra.
        stalled_until_s: before that, nothing of this node gets through in either direction; then all of it does.
        dead: the node was killed; nobody is there to be answered.
    """

    def __init__(self, cassandra: Cassandra) -> None:
        self.cassandra = cassandra
        super().__init__()
        rows = cassandra.rows
        self.conversations = rows.conversations
        self.stays_, self.by_user = rows.stays_, rows.by_user
        self.described, self.seen = rows.described, rows.seen
        self.lease_rows = rows.lease_rows
        self.cut = False
        self.stalled_until_s = 0.0
        self.dead = trio.Event()

    @property
    def slots_row(self) -> SlotsRow | None:  # type: ignore[override]
        return self.cassandra.rows.slots_row

    @slots_row.setter
    def slots_row(self, row: SlotsRow | None) -> None:
        if row is not None:
            self.cassandra.rows.slots_row = row

    def way_s(self) -> float:
        """Seconds from here to Cassandra, or back, for something that sets out now."""
        stalled_s = max(0.0, self.stalled_until_s - trio.current_time())
        slow_s = self.cassandra.rng.expovariate(1.0) if stalled_s else 0.0
        return stalled_s + slow_s + self.cassandra.delay_s()

    async def _sleep(self, seconds: float) -> bool:
        """False if the node was killed meanwhile."""
        with trio.move_on_after(seconds):
            await self.dead.wait()
        return not self.dead.is_set()

    async def _return(self) -> None:
        if not await self._sleep(self.way_s()):
            raise OutcomeUnknown("killed")

    # --- The two hooks of all statements but those on logs ----------------------------------------------------------

    async def _read(self, method: str) -> None:
        await self._ask()

    async def _ask(self) -> None:
        if not await self._sleep(self.way_s()) or self.cut:
            await self._sleep(self.cassandra.rng.random() * TIMEOUT_S)
            raise Unavailable("no quorum")

    async def _change(self, method: str, apply: Callable[[], bool]) -> bool:
        rng = self.cassandra.rng
        if self.dead.is_set() or (self.cut and rng.random() < 0.5):
            await self._sleep(0.01)
            raise NotWritten("no host is reached")
        fate = "unknown" if self.cut else self._fate()
        results: list[bool] = []
        arrived = trio.Event()

        def arrive() -> None:
            results.append(apply())
            arrived.set()

        if fate == "":
            self.cassandra.later(self.way_s(), arrive)
            await arrived.wait()
            await self._return()
            return results[0]
        self.cassandra.unknowns += 1
        if fate != "unknown":
            self.cassandra.later(self.way_s() + (rng.random() * LATE_S if fate == "late" else 0.0), arrive)
        await self._sleep(TIMEOUT_S)
        raise OutcomeUnknown(fate)

    def _fate(self) -> str:
        rng = self.cassandra.rng
        return rng.choice(("lost", "unknown", "late")) if rng.random() < self.cassandra.unknown_share else ""

    # --- Logs -------------------------------------------------------------------------------------------------------

    def write_entries(self, writes: Sequence[EntryWrite], done: EntriesDone) -> None:
        for write in writes:
            self._write(write, done)

    def _write(self, write: EntryWrite, done: EntriesDone) -> None:
        cassandra, rng = self.cassandra, self.cassandra.rng
        fate = "cut" if self.cut or self.dead.is_set() else self._fate()
        acks: list[int] = []
        told = False

        def tell(error: StoreError | None) -> None:
            nonlocal told
            if not told and not self.dead.is_set():
                told = True
                done([(write, error)])

        def arrive(replica: int) -> None:
            self._put(replica, write)
            acks.append(replica)
            if len(acks) == QUORUM and fate == "":
                cassandra.later(self.way_s(), lambda: tell(None))

        if fate == "cut":
            error = NotWritten("no host is reached") if rng.random() < 0.5 else OutcomeUnknown("cut")
            cassandra.later(0.01 + rng.random() * TIMEOUT_S, lambda: tell(error))
            return
        begin_s = self.way_s() + (rng.random() * LATE_S if fate == "late" else 0.0)
        for replica in range(REPLICAS):
            # Of a write that is given up, any number of replicas may have got something.
            if fate in ("", "late") or rng.random() < 0.5:
                cassandra.later(begin_s + cassandra.delay_s(), lambda replica=replica: arrive(replica))
        if fate:
            cassandra.unknowns += 1
            cassandra.later(TIMEOUT_S, lambda: tell(OutcomeUnknown(fate)))

    def _put(self, replica: int, write: EntryWrite) -> None:
        rows = self.cassandra.logs[replica].setdefault((write.conversation_id, write.bucket), {})
        for stored in write.entries:
            cell = (stored.entry.time_us, stored.encoded)
            key = (stored.entry.seq, write.epoch)
            rows[key] = max(cell, rows.get(key, cell))

    async def entries(
        self, conversation_id: str, bucket: int, *, after_seq: int, before_seq: int, limit: int, newest: bool
    ) -> list[EntryRow]:
        await self._ask()
        asked = self.cassandra.rng.sample(range(REPLICAS), QUORUM)
        logs = [self.cassandra.logs[each].setdefault((conversation_id, bucket), {}) for each in asked]
        merged: Log = {}
        for log in logs:
            for key, cell in log.items():
                if after_seq < key[0] < before_seq:
                    merged[key] = max(cell, merged.get(key, cell))
        for log in logs:
            log.update(merged)
        await self._sleep(self.way_s())
        if self.dead.is_set():
            raise Unavailable("killed")
        keys = sorted(merged, reverse=newest)[:limit]
        return [EntryRow(*key, merged[key][1]) for key in keys]
