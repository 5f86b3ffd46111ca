"""Where a node runs, as the rest of the world sees it: near or far, frozen or dead."""

import random
from collections.abc import Callable

import trio

from tests.simulation.timeline import Timeline


class Place:
    """One life of a node, seen from outside.

    Attributes:
        dead: it was killed: it hears nothing and says nothing any more.
        paused_until_s: before that nothing gets in or out; then all of it does, in order.
        cassandra_cut, redis_cut, peers_cut: who is out of its reach.
        redis_late_until_s, redis_late_s: before that, what Redis tells it comes so much later.
        redis_late_inbox: that is true of what others send to its inbox, and of nothing else.
        cassandra_slow_until_s: before that, what it says to Cassandra and is told takes until then or longer.
        patient: it waits for answers as long as they take: frozen, it does not see how long that is.
    """

    def __init__(self, timeline: Timeline, rng: random.Random) -> None:
        self.timeline = timeline
        self.rng = rng
        self.dead = False
        self.paused_until_s = 0.0
        self.cassandra_cut = False
        self.redis_cut = False
        self.peers_cut = False
        self.redis_late_until_s = 0.0
        self.redis_late_s = 0.0
        self.redis_late_inbox = False
        self.cassandra_slow_until_s = 0.0
        self.patient = True
        self._waits: set[trio.Event] = set()

    def hear(self, call: Callable[[], object]) -> None:
        """Call it now, or when the node wakes up; never if it is dead by then."""
        if self.dead:
            return
        if trio.current_time() < self.paused_until_s:
            self.timeline.at(self.paused_until_s, lambda: self.hear(call))
        else:
            call()

    def held_s(self) -> float:
        """Seconds by which the node's being paused delays what it says now."""
        return max(0.0, self.paused_until_s - trio.current_time())

    def late_s(self, *, inbox: bool = False) -> float:
        """Seconds by which what Redis tells it comes later now; ``inbox``: what comes by its inbox."""
        is_late = trio.current_time() < self.redis_late_until_s and inbox is self.redis_late_inbox
        return self.redis_late_s if is_late else 0.0

    async def wait(self, delay_s: float) -> bool:
        """Wait, longer if it is paused then; False if it was killed meanwhile."""
        if not self.dead:
            event = trio.Event()
            self._waits.add(event)
            self.timeline.after(delay_s, lambda: self.hear(event.set))
            await event.wait()
            self._waits.discard(event)
        return not self.dead

    async def until(self, event: trio.Event) -> bool:
        """Wait for an event; False if the node was killed meanwhile."""
        if not self.dead:
            self._waits.add(event)
            await event.wait()
            self._waits.discard(event)
        return not self.dead

    def kill(self) -> None:
        """Nobody is there any more; who waits learns it."""
        self.dead = True
        for event in self._waits:
            event.set()

    def delay_s(self) -> float:
        """Of one way to somewhere: some milliseconds, rarely much more."""
        rng = self.rng
        return rng.expovariate(1 / 0.3) if rng.random() < 0.01 else rng.expovariate(1 / 0.004)


class Line:
    """One direction of a connection: what is sent first arrives first."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._last_s = 0.0

    def put(self, delay_s: float, call: Callable[[], object]) -> None:
        """Call it when it has arrived at the other end."""
        self._last_s = max(self._last_s, trio.current_time() + delay_s)
        self._timeline.at(self._last_s, call)
