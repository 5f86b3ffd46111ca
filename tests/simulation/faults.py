"""What goes wrong in a simulated world. Each fault begins at a time that the seed decides, and ends by itself."""

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from tests.simulation.node import Node
    from tests.simulation.world import World

FAULT_MAX_S = 25.0
"""Seconds that a fault lasts at most."""

AT_OWNERS_SHARE = 0.6
"""Share of faults that are meant for an owner."""

WEIGHTS = {
    "kill": 4, "pause": 6, "nap": 1, "drain": 2, "cut": 2, "slow": 5, "chase": 3, "lossy": 2, "trim": 1, "flush": 1,
    "restart": 1, "outage": 1, "without_redis": 2, "lonely": 1, "move": 3, "vanish": 2, "lost_link": 2, "late": 2,
    "storm": 2,
}  # fmt: skip
"""How often each happens, compared with the others."""

FAIR_WEIGHTS = {
    "kill": 3, "pause": 3, "nap": 1, "drain": 2, "cut": 1, "slow": 3, "chase": 2, "move": 2, "vanish": 2, "late": 6,
    "late_heirs": 4, "storm": 6,
}  # fmt: skip
"""The same where Redis loses nothing."""


class Faults:
    """All that can go wrong."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.rng = world.rng

    async def run(self, for_s: float) -> None:
        """One thing after the other, some at the same time."""
        world, rng = self.world, self.rng
        world.cassandra.unknown_share = rng.choice((0.0, 0.01, 0.05, 0.15))
        pace_s = rng.choice((2.0, 5.0, 8.0))
        end_s = trio.current_time() + for_s
        weights = FAIR_WEIGHTS if world.fair else WEIGHTS
        while trio.current_time() < end_s:
            await trio.sleep(rng.uniform(0.5, pace_s))
            (fault,) = rng.choices(list(weights), list(weights.values()))
            node = self._victim()
            if node is not None:
                world.count(fault)
                world.record("info", "fault", "simulation", fault=fault)
                world.nursery.start_soon(getattr(self, f"_{fault}"), node)

    def _victim(self) -> "Node | None":
        """Who owns one of the conversations, more often than not: what befalls others hurts less."""
        world = self.world
        if self.rng.random() < AT_OWNERS_SHARE:
            owner = world.owner_of(self.rng.choice(world.devices).conversation_id)
            if owner is not None and owner.ready:
                return owner
        return world.any_node()

    async def _last(self, longest_s: float = FAULT_MAX_S, shortest_s: float = 1.0) -> None:
        await trio.sleep(self.rng.uniform(shortest_s, longest_s))

    # --- Nodes ------------------------------------------------------------------------------------------------------

    async def _kill(self, node: "Node") -> None:
        node.end()

    async def _pause(self, node: "Node") -> None:
        """Frozen, in most cases for longer than the lease."""
        node.place.paused_until_s = trio.current_time() + self.rng.uniform(8.0, 20.0)

    async def _nap(self, node: "Node") -> None:
        """Frozen for less than half a lease."""
        node.place.paused_until_s = trio.current_time() + self.rng.uniform(0.5, 5.0)

    async def _drain(self, node: "Node") -> None:
        await node.drain()

    # --- Cassandra --------------------------------------------------------------------------------------------------

    async def _cut(self, node: "Node") -> None:
        """Cut off from Cassandra."""
        node.place.cassandra_cut = True
        await self._last()
        node.place.cassandra_cut = False

    async def _slow(self, node: "Node") -> None:
        """What it says to Cassandra, and is told, takes long."""
        node.place.patient = self.rng.random() < 0.5
        node.place.cassandra_slow_until_s = trio.current_time() + self.rng.uniform(3.0, 20.0)

    async def _chase(self, _node: "Node") -> None:
        """The owner of a conversation becomes slow, and soon after it has taken over, the next one, too."""
        world, rng = self.world, self.rng
        conversation_id = rng.choice(world.devices).conversation_id
        for _ in range(2):
            owner = world.owner_of(conversation_id)
            if owner is None:
                return
            owner.place.patient = False
            owner.place.cassandra_slow_until_s = trio.current_time() + rng.uniform(11.0, 16.0)
            with trio.move_on_after(FAULT_MAX_S):
                while world.owner_of(conversation_id) in (owner, None):  # noqa: ASYNC110 - virtual time
                    await trio.sleep(0.1)
            await trio.sleep(rng.uniform(0.1, 1.5))

    # --- Redis and links --------------------------------------------------------------------------------------------

    async def _lossy(self, _node: "Node") -> None:
        """Parcels get lost."""
        self.world.redis.lossy = self.rng.choice((0.05, 0.3))
        await self._last(10.0)
        self.world.redis.lossy = 0.0

    async def _trim(self, _node: "Node") -> None:
        for _ in range(5):
            self.world.redis.trim()
            await self._last(1.0, 0.1)

    async def _flush(self, _node: "Node") -> None:
        self.world.redis.flush()

    async def _restart(self, _node: "Node") -> None:
        """It ends and comes back with nothing, or with what it knew some time ago."""
        redis = self.world.redis
        redis.save()
        await self._last(10.0)
        if redis.up:
            redis.stop()
            await self._last(5.0, 0.1)
            redis.start(self.rng.choice(("nothing", "old")))

    async def _outage(self, _node: "Node") -> None:
        """Nobody reaches it; it was well all the time."""
        redis = self.world.redis
        if redis.up:
            redis.stop()
            await self._last()
            redis.start("all")

    async def _without_redis(self, node: "Node") -> None:
        """One node does not reach it."""
        node.place.redis_cut = True
        node.redis.lose()
        node.inbox.lose()
        await self._last()
        node.place.redis_cut = False

    async def _lonely(self, node: "Node") -> None:
        """One node reaches neither Redis nor the other nodes."""
        node.place.peers_cut = True
        await self._without_redis(node)
        node.place.peers_cut = False

    async def _late(self, node: "Node") -> None:
        """What Redis tells one node comes late, in order."""
        node.place.redis_late_inbox = False
        node.place.redis_late_s = self.rng.uniform(0.05, 1.0)
        node.place.redis_late_until_s = trio.current_time() + self.rng.uniform(1.0, 10.0)

    async def _late_heirs(self, node: "Node") -> None:
        """A node drains while the others read late what it sends them."""
        for other in self.world.nodes.values():
            other.place.redis_late_inbox = True
            other.place.redis_late_s = self.rng.uniform(0.2, 1.0)
            other.place.redis_late_until_s = trio.current_time() + 10.0
        await node.drain()

    async def _lost_link(self, node: "Node") -> None:
        node.redis.lose()
        if self.rng.random() < 0.5:
            node.inbox.lose()

    # --- Devices ----------------------------------------------------------------------------------------------------

    async def _move(self, _node: "Node") -> None:
        device = self.rng.choice(self.world.devices)
        device.go_away(device.session)

    async def _storm(self, node: "Node") -> None:
        """All connections of a node break at once."""
        for session in list(node.sessions):
            if session.device is not None:
                session.device.go_away(session)

    async def _vanish(self, _node: "Node") -> None:
        """A device is gone, and its node does not notice for a while."""
        self.rng.choice(self.world.devices).vanish(self.rng.uniform(1.0, 20.0))
