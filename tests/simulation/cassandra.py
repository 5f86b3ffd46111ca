"""A simulated Cassandra of three replicas, and one node's way to it. A seed decides what is slow, lost or late.

Rows of ``entries`` lie on each replica by itself: a write is durable when two replicas have it, a read asks two and
repairs both before it answers. Rows that lightweight transactions change, and member rows, are kept once, as Paxos
makes them linearizable; what the network does to requests and answers is the same for all.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from store.interface import NotWritten, OutcomeUnknown, StoreError, Unavailable
from store.tables import EntriesDone, EntryRow, EntryWrite, SlotsRow
from tests.fakes.memory_tables import Logs, MemoryTables, put_entries
from tests.simulation.place import Place
from tests.simulation.timeline import Timeline

REPLICAS = 3
QUORUM = 2

TIMEOUT_S = 2.0
"""Seconds until a request without an answer is given up, its outcome unknown."""

LATE_S = 40.0
"""Seconds by which what was given up may still be applied."""

SERIAL = frozenset(("conversation", "lease", "slots"))
"""Reads that go by Paxos, as all transactions do."""

READS = ("conversation", "members", "stays", "involvements", "last_seen", "leases", "lease", "slots")


class Cassandra:
    """What all nodes share.

    Attributes:
        rows: everything but the logs.
        logs: by replica, conversation and bucket.
        unknown_share: share of writes and transactions whose outcome is not told.
        unknowns: how many there were.
    """

    def __init__(self, rng: random.Random, timeline: Timeline) -> None:
        self.rng = rng
        self.timeline = timeline
        self.rows = MemoryTables()
        self.logs: list[Logs] = [{} for _ in range(REPLICAS)]
        self.unknown_share = 0.0
        self.unknowns = 0


class NodeTables(MemoryTables):
    """Implements Tables for one node."""

    def __init__(self, cassandra: Cassandra, place: Place) -> None:
        self.cassandra = cassandra
        self.place = place
        super().__init__()
        rows = cassandra.rows
        self.conversations = rows.conversations
        self.stays_, self.by_user = rows.stays_, rows.by_user
        self.described, self.seen = rows.described, rows.seen
        self.lease_rows = rows.lease_rows

    @property
    def slots_row(self) -> SlotsRow | None:  # type: ignore[override]
        return self.cassandra.rows.slots_row

    @slots_row.setter
    def slots_row(self, row: SlotsRow | None) -> None:
        if row is not None:
            self.cassandra.rows.slots_row = row

    def way_s(self) -> float:
        """Seconds from here to Cassandra, or back, for something that sets out now."""
        place = self.place
        slow_s = place.cassandra_slow_until_s - trio.current_time()
        extra_s = slow_s + self.cassandra.rng.expovariate(1.0) if slow_s > 0 else 0.0
        return place.held_s() + extra_s + place.delay_s()

    def _rounds_s(self) -> float:
        """Seconds that Paxos takes longer than a write: its replicas are asked three times more."""
        return sum(self.place.delay_s() for _ in range(3))

    def _arrives(self, arrive: Callable[[], object]) -> None:
        """What is on its way when its sender is killed gets lost, or comes late, as often as it arrives in time."""
        share = self.cassandra.rng.random() if self.place.dead else 0.0
        if share < 1 / 3:
            arrive()
        elif share < 2 / 3:
            self.cassandra.timeline.after(self.cassandra.rng.random() * LATE_S, arrive)

    def _fate(self) -> str:
        rng = self.cassandra.rng
        return rng.choice(("lost", "unknown", "late")) if rng.random() < self.cassandra.unknown_share else ""

    # --- The two hooks of all statements but those on logs ----------------------------------------------------------

    async def _read(self, method: str) -> None:
        """The way there."""
        place = self.place
        if place.cassandra_cut or place.dead:
            await place.wait(self.cassandra.rng.random() * TIMEOUT_S)
            raise Unavailable("no quorum")
        if not await place.wait(self.way_s() + (self._rounds_s() if method in SERIAL else 0.0)):
            raise Unavailable("killed")

    async def back(self) -> None:
        """The way back from a read."""
        if not await self.place.wait(self.way_s()):
            raise Unavailable("killed")

    async def _change(self, method: str, apply: Callable[[], bool]) -> bool:
        rng, place = self.cassandra.rng, self.place
        cut = place.cassandra_cut
        if place.dead or (cut and rng.random() < 0.5):
            await place.wait(0.01)
            raise NotWritten("no host is reached")
        fate = "unknown" if cut else self._fate()
        results: list[bool] = []
        answered = trio.Event()

        def arrive() -> None:
            results.append(apply())
            if fate == "":
                self.cassandra.timeline.after(self.way_s(), lambda: place.hear(answered.set))

        way_s = self.way_s() + self._rounds_s()
        if fate != "unknown":
            late_s = rng.random() * LATE_S if fate == "late" else 0.0
            self.cassandra.timeline.after(way_s + late_s, lambda: self._arrives(arrive))
        if fate == "" and (way_s <= TIMEOUT_S or place.patient):
            if not await place.until(answered):
                raise OutcomeUnknown("killed")
            return results[0]
        self.cassandra.unknowns += 1
        await place.wait(TIMEOUT_S)
        raise OutcomeUnknown(fate or "timed out")

    # --- Logs -------------------------------------------------------------------------------------------------------

    def write_entries(self, writes: Sequence[EntryWrite], done: EntriesDone) -> None:
        for write in writes:
            self._write(write, done)

    def _write(self, write: EntryWrite, done: EntriesDone) -> None:
        cassandra, place, rng = self.cassandra, self.place, self.cassandra.rng
        after = cassandra.timeline.after
        fate = self._fate()
        acks: list[int] = []
        told = False

        def tell(error: StoreError | None) -> None:
            nonlocal told
            if not told:
                told = True
                done([(write, error)])

        def arrive(replica: int) -> None:
            put_entries(self.cassandra.logs[replica], write)
            acks.append(replica)
            if len(acks) == QUORUM and fate == "":
                after(self.way_s(), lambda: place.hear(lambda: tell(None)))

        if place.cassandra_cut or place.dead:
            error = NotWritten("no host is reached") if rng.random() < 0.5 else OutcomeUnknown("cut")
            after(0.01 + rng.random() * TIMEOUT_S, lambda: place.hear(lambda: tell(error)))
            return
        begin_s = self.way_s()
        timed_out = bool(fate) or (begin_s > TIMEOUT_S and not place.patient)
        late_s = rng.random() * LATE_S if fate == "late" else 0.0
        for replica in range(REPLICAS):
            # Of a write that is given up, any number of replicas may have got something.
            if fate in ("", "late") or rng.random() < 0.5:
                after(
                    begin_s + late_s + place.delay_s(),
                    lambda replica=replica: self._arrives(lambda: arrive(replica)),
                )
        if timed_out:
            cassandra.unknowns += 1
            after(TIMEOUT_S, lambda: place.hear(lambda: tell(OutcomeUnknown(fate or "timed out"))))

    async def entries(
        self, conversation_id: str, bucket: int, *, after_seq: int, before_seq: int, limit: int, newest: bool
    ) -> list[EntryRow]:
        await self._read("entries")
        asked = self.cassandra.rng.sample(range(REPLICAS), QUORUM)
        logs = [self.cassandra.logs[each].setdefault((conversation_id, bucket), {}) for each in asked]
        keys = sorted(
            {key for log in logs for key in log if after_seq < key[0] < before_seq}, reverse=newest
        )[:limit]  # fmt: skip
        for key in keys:
            cell = max(log[key] for log in logs if key in log)
            for log in logs:
                log[key] = cell
        rows = [EntryRow(*key, logs[0][key][1]) for key in keys]
        await self.back()
        return rows


def _answered(name: str) -> Callable[..., Awaitable[Any]]:
    """A read whose answer takes its time, too."""
    method = getattr(MemoryTables, name)

    async def read(self: NodeTables, *args: Any, **options: Any) -> Any:
        found = await method(self, *args, **options)
        await self.back()
        return found

    return read


for _name in READS:
    setattr(NodeTables, _name, _answered(_name))
