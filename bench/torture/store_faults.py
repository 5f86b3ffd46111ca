"""Faults of the servers below the nodes: Redis forgets or is away, Cassandra is slow or away."""

from typing import Final

import trio

from bench.torture.cluster import in_thread
from bench.torture.trial import Trial

TRIMS: Final = 5
"""How often all inboxes are emptied in one fault."""


async def redis_kill(trial: Trial) -> None:
    """Redis is killed, and comes back with nothing."""
    async with trial.redis:
        away_s = trial.rng.uniform(0, 4)
        trial.begin("redis-kill", f"away for {away_s:.1f} s")
        await in_thread(trial.cluster.redis.kill)
        await trio.sleep(away_s)
        await in_thread(trial.cluster.redis.restart)


async def redis_flush(trial: Trial) -> None:
    """Redis forgets everything while it runs."""
    async with trial.redis:
        trial.begin("redis-flush", "FLUSHALL")
        await in_thread(trial.cluster.redis.flush)


async def redis_trim(trial: Trial) -> None:
    """What waits in the nodes' inboxes is gone, several times."""
    async with trial.redis:
        trial.begin("redis-trim", f"all inboxes emptied, {TRIMS} times")
        for _ in range(TRIMS):
            await in_thread(lambda: _trim(trial))
            await trio.sleep(trial.rng.uniform(0.05, 0.5))


async def redis_old(trial: Trial) -> None:
    """Redis comes back with what it knew some seconds ago."""
    async with trial.redis:
        age_s = trial.rng.uniform(0.5, 4)
        trial.begin("redis-old", f"restored from a snapshot of {age_s:.1f} s ago")
        await in_thread(trial.cluster.redis.take_snapshot)
        await trio.sleep(age_s)
        await in_thread(trial.cluster.redis.restart_from_snapshot)


async def redis_pause(trial: Trial) -> None:
    """Redis accepts connections and answers nothing for a while."""
    async with trial.redis:
        seconds = trial.rng.uniform(0.5, 1.5) * trial.lease_s
        trial.begin("redis-pause", f"for {seconds:.1f} s")
        trial.cluster.redis.pause()
        try:
            await trio.sleep(seconds)
        finally:
            trial.cluster.redis.resume()


async def cassandra_slow(trial: Trial) -> None:
    """Every answer of Cassandra takes its time."""
    async with trial.cassandra:
        latency_s = trial.rng.uniform(0.05, 0.2)
        seconds = trial.rng.uniform(2, 5)
        trial.begin("cassandra-slow", f"{latency_s * 1000:.0f} ms each way for {seconds:.1f} s")
        try:
            for node in trial.cluster.nodes:
                node.ways.cassandra.latency_s = latency_s
            await trio.sleep(seconds)
        finally:
            for node in trial.cluster.nodes:
                node.ways.cassandra.latency_s = 0


async def cassandra_away(trial: Trial) -> None:
    """A Cassandra node stands still, or is killed where others have copies, and comes back."""
    assert trial.cluster.cassandra is not None
    async with trial.cassandra:
        nodes = trial.cluster.cassandra.nodes
        node = trial.rng.choice(nodes)
        if len(nodes) > 1 and trial.rng.random() < 0.5:
            trial.begin("cassandra-away", f"{node.name} killed")
            await in_thread(node.restart)
            await in_thread(trial.cluster.cassandra.wait_agreed)
            return
        seconds = trial.rng.uniform(0.5, 2.0) * trial.lease_s
        trial.begin("cassandra-away", f"{node.name} stands still for {seconds:.1f} s")
        node.pause()
        try:
            await trio.sleep(seconds)
        finally:
            node.resume()


def _trim(trial: Trial) -> None:
    with trial.cluster.redis.client() as client:
        for key in client.scan_iter(match="*inbox*"):
            client.xtrim(key, maxlen=0, approximate=False)
