"""What a fault needs to know: the cluster, the load, chance, and who else is at it."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from bench.torture.cluster import TrialCluster
from bench.torture.device import Device
from bench.torture.node import TrialNode
from gateway.check.recorder import Recorder

RETURN_MARGIN_S: Final = 5.0
"""Seconds beyond the lease within which every conversation must answer again."""

PULSE_S: Final = 0.05
"""How often it is looked whether this machine keeps time, seconds."""

STALL_MAX_S: Final = 0.5
"""By how much a sleep may be late, seconds; beyond, no cluster is held to promised times: the machine was slow."""

FORWARD_S: Final = 10.0
"""Seconds after which a node says that nobody answered what it forwarded: so long a command that was lost may take."""

RETURN_MAX_S: Final = 60.0
"""Seconds after which nobody waits for an answer any more."""


@dataclass
class Trial:
    """One run.

    Attributes:
        cluster: what is harmed.
        recorder: where the history goes.
        rng: decides everything that is left to chance.
        say: tells a person one line.
        prober: a device that is in every conversation and only asks whether it answers.
        prober_token: lets more connections of its user in.
        after_kill_s: seconds beyond the lease within which conversations have to answer after a kill; infinite where
            other faults of the run silence owners themselves.
        begun_s: when the run began, on trio's clock.
        breaches: what was seen besides the history that must not be.
        faults: one line for each fault.
        outages_s: how long conversations were away after each kill, seconds.
        excused: promised times that were not kept while this machine did not keep time either.
        stalled_s: by how much the latest sleep of this process was late, seconds.
    """

    cluster: TrialCluster
    recorder: Recorder
    rng: random.Random
    say: Callable[[str], None]
    prober: Device
    prober_token: str
    after_kill_s: float
    begun_s: float = field(default_factory=trio.current_time)
    breaches: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    outages_s: list[float] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)
    stalled_s: float = 0.0
    redis: trio.Lock = field(default_factory=trio.Lock)
    cassandra: trio.Lock = field(default_factory=trio.Lock)
    clocks: trio.Lock = field(default_factory=trio.Lock)
    _probing: trio.Lock = field(default_factory=trio.Lock)
    _free: list[TrialNode] = field(default_factory=list)
    _one_free: trio.Condition = field(default_factory=trio.Condition)

    def __post_init__(self) -> None:
        self._free = list(self.cluster.nodes)

    @property
    def lease_s(self) -> float:
        """The nodes' lease, seconds."""
        return self.cluster.options.lease_s

    @asynccontextmanager
    async def some_node(self, wanted: TrialNode | None = None) -> AsyncIterator[TrialNode]:
        """A node of one's own, for a fault: any, or the one ``wanted``. One node is always left alone."""
        async with self._one_free:
            while len(self._free) <= 1 or (wanted is not None and wanted not in self._free):
                await self._one_free.wait()
            node = wanted or self.rng.choice(self._free)
            self._free.remove(node)
        try:
            yield node
        finally:
            self._free.append(node)
            with trio.CancelScope(shield=True):
                async with self._one_free:
                    self._one_free.notify_all()

    def begin(self, fault: str, what: str) -> None:
        """A fault begins: note it in the history, and tell it."""
        self.recorder.record("info", "fault", "torture", fault=fault, note=what)
        line = f"{trio.current_time() - self.begun_s:6.2f} s  {fault}: {what}"
        self.faults.append(line)
        self.say(line)

    def breach(self, name: str, what: str) -> None:
        """Something is not as promised."""
        self.breaches.append(f"{name}: {what}")
        self.say(f"BREACH {name}: {what}")

    def late(self, name: str, what: str) -> None:
        """A promised time was not kept: a breach, unless this machine was too busy to tell."""
        if self.stalled_s <= STALL_MAX_S:
            self.breach(name, what)
            return
        self.excused.append(f"{name}: {what}")
        self.say(f"not judged, because this machine stood still for {self.stalled_s:.1f} s: {name}: {what}")

    async def keep_time(self) -> None:
        """Note by how much sleeps are late, until cancelled."""
        while True:
            due_s = trio.current_time() + PULSE_S
            await trio.sleep_until(due_s)
            self.stalled_s = max(self.stalled_s, trio.current_time() - due_s)

    async def answering(self) -> float:
        """Ask every conversation for an answer; how long the last one took, seconds. Infinite if one never came."""
        async with self._probing:
            begun_s = trio.current_time()
            wanted = len(self.prober.conversations)
            before = sum(map(len, self.prober.acknowledged.values()))
            with trio.move_on_after(RETURN_MAX_S):
                async with trio.open_nursery() as nursery:
                    for conversation in self.prober.conversations:
                        nursery.start_soon(self.prober.say, conversation)
            answered = sum(map(len, self.prober.acknowledged.values())) - before
            return trio.current_time() - begun_s if answered == wanted else float("inf")


Scenario = Callable[[Trial], Awaitable[None]]
"""Does harm, puts it right again, and returns; what must not be seen meanwhile it tells by ``Trial.breach``."""
