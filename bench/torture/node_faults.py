"""Faults of nodes: killed, paused, drained, cut off from what they need."""

import math
from collections.abc import Callable
from typing import Final

import trio

from bench.torture.cluster import DRAIN_GRACE_S
from bench.torture.node import TrialNode
from bench.torture.proxy import DOWN, UP, Faults
from bench.torture.trial import Trial

CLOCK_STEP_S: Final = 3_600.0
"""How far a clock jumps, seconds."""

CLOCK_SEEN_S: Final = 2.0
"""Seconds that a turned clock stays so beyond a lease."""

LOST_REPLIES_MAX: Final = 6
"""How often answers are lost in one fault."""

RENEWALS: Final = 0.25
"""Share of a lease within which it is renewed for sure: nodes under trial do so every fifth of one."""

REPLY_TIMEOUT_S: Final = 2.0
"""Seconds to wait for an answer that is to be lost: a lease is renewed more often than that."""


async def kill(trial: Trial) -> None:
    """Kill -9 while messages are under way; every conversation answers again within the lease and 5 s."""
    async with trial.some_node() as node:
        trial.begin("kill", node.name)
        await trial.cluster.kill_node(node)
        took_s = await trial.answering()
        trial.outages_s.append(took_s)
        allowed_s = trial.lease_s + trial.after_kill_s
        if took_s > allowed_s:
            trial.late("late-takeover", f"conversations were away for {took_s:.1f} s; allowed are {allowed_s:g} s")
        await trial.cluster.start_node(node)


async def pause(trial: Trial) -> None:
    """Stand still for longer than the lease, then go on: others have taken over, and nothing stale is acknowledged."""
    async with trial.some_node() as node:
        await _stand_still(trial, node, "pause", trial.lease_s * trial.rng.uniform(1.3, 2.0))


async def half_pause(trial: Trial) -> None:
    """Stand still for half a lease: nobody takes over."""
    async with trial.some_node() as node:
        await _stand_still(trial, node, "half-pause", trial.lease_s / 2)


async def drain(trial: Trial) -> None:
    """SIGTERM under load: it hands over, loses nothing, and is gone within its grace period with exit code 0."""
    async with trial.some_node() as node:
        await _drain(trial, node, "drain")


async def rolling(trial: Trial) -> None:
    """Drain all nodes, one after the other, each started again before the next."""
    for node in trial.cluster.nodes:
        async with trial.some_node(node):
            await _drain(trial, node, "rolling")


async def cut_cassandra(trial: Trial) -> None:
    """No way to Cassandra, but to Redis, for longer than the lease: it stops acknowledging before the lease ends."""
    await _cut(trial, "cut-cassandra", lambda node: node.ways.cassandra, longest=2.0)


async def cut_redis(trial: Trial) -> None:
    """No way to Redis, but to Cassandra: delivery falls back, nothing is lost."""
    await _cut(trial, "cut-redis", lambda node: node.ways.redis, longest=2.0)


async def cut_peers(trial: Trial) -> None:
    """Other nodes do not reach it directly."""
    await _cut(trial, "cut-peers", lambda node: node.ways.peers, longest=1.5)


async def slices(trial: Trial) -> None:
    """Everything to and from it comes in small pieces."""
    async with trial.some_node() as node:
        size = trial.rng.choice((1, 7, 50))
        trial.begin("slices", f"{node.name}, {size} bytes at once on the ways of clients, Redis and other nodes")
        ways = (node.ways.clients, node.ways.redis, node.ways.peers)
        try:
            for faults in ways:
                faults.slice_bytes = size
            await trio.sleep(trial.rng.uniform(1, 3))
        finally:
            for faults in ways:
                faults.slice_bytes = None


async def lose_reply(trial: Trial) -> None:
    """Cassandra does what it was asked, and the answer is lost with its connection; several times."""
    async with trial.some_node() as node:
        times = trial.rng.randint(2, LOST_REPLIES_MAX)
        trial.begin("lose-reply", f"{node.name}, {times} times")
        faults = node.ways.cassandra
        try:
            for number in range(times):
                # One answer, of whatever; or all for so long that the renewal of the lease is among them.
                if number % 2:
                    with trio.move_on_after(REPLY_TIMEOUT_S):
                        await faults.lose_reply()
                else:
                    faults.silence(DOWN)
                    await trio.sleep(RENEWALS * trial.lease_s)
                    faults.cut()
                    faults.heal()
                await trio.sleep(trial.rng.uniform(0.3, 1.0))
        finally:
            faults.heal()


async def clock(trial: Trial) -> None:
    """The wall clocks of all nodes jump by an hour, and back: leases do not care."""
    async with trial.clocks:
        step_s = trial.rng.choice((1, -1)) * CLOCK_STEP_S
        trial.begin("clock", f"{step_s:+g} s on all nodes")
        try:
            trial.cluster.turn_clock(step_s)
            await trio.sleep(CLOCK_SEEN_S + trial.lease_s)
        finally:
            trial.cluster.turn_clock(0)
        await trio.sleep(CLOCK_SEEN_S)


async def _stand_still(trial: Trial, node: TrialNode, fault: str, seconds: float) -> None:
    trial.begin(fault, f"{node.name} for {seconds:.1f} s")
    node.pause()
    try:
        await trio.sleep(seconds)
    finally:
        node.resume()


async def _drain(trial: Trial, node: TrialNode, fault: str) -> None:
    """Drain a node and start it again. Nobody can hand over, or end in time, while owners are silenced otherwise."""
    trial.begin(fault, node.name)
    begun_s = trio.current_time()
    code = await trial.cluster.drain_node(node)
    took_s = trio.current_time() - begun_s
    if code != 0:
        trial.breach("drain", f"{node.name} ended with code {code} after {took_s:.1f} s")
    elif took_s > DRAIN_GRACE_S and math.isfinite(trial.after_kill_s):
        trial.late("drain", f"{node.name} took {took_s:.1f} s to end; allowed are {DRAIN_GRACE_S:g} s")
    await trial.cluster.start_node(node)


async def _cut(trial: Trial, fault: str, way: Callable[[TrialNode], Faults], longest: float) -> None:
    """Let nothing pass one way of a node for up to ``longest`` leases."""
    async with trial.some_node() as node:
        seconds = trial.lease_s * trial.rng.uniform(0.5, longest)
        kinds = {"reset": (), "silent": (UP, DOWN), "silent up": (UP,), "silent down": (DOWN,)}
        kind = trial.rng.choice(list(kinds))
        trial.begin(fault, f"{node.name}, {kind} for {seconds:.1f} s")
        faults = way(node)
        try:
            if kinds[kind]:
                faults.silence(*kinds[kind])
            else:
                faults.partition()
            await trio.sleep(seconds)
        finally:
            faults.heal()
