"""Every fault by name: what it does, and what a trial of it needs and may expect."""

from dataclasses import dataclass
from typing import Final

from bench.torture import client_faults, node_faults, store_faults
from bench.torture.cluster import Options
from bench.torture.trial import Scenario


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        scenario: does it and puts it right again.
        loses_lease: whether a node may be taken over because of it; else none may be.
        own_cassandra: whether it needs a Cassandra that was started for the trial.
    """

    scenario: Scenario
    loses_lease: bool = False
    own_cassandra: bool = False

    @property
    def meaning(self) -> str:
        """What it does and what is expected, in a line."""
        return (self.scenario.__doc__ or "").strip()


FAULTS: Final = {
    "kill": Fault(node_faults.kill, loses_lease=True),
    "pause": Fault(node_faults.pause, loses_lease=True),
    "half-pause": Fault(node_faults.half_pause),
    "drain": Fault(node_faults.drain),
    "rolling": Fault(node_faults.rolling),
    "cut-cassandra": Fault(node_faults.cut_cassandra, loses_lease=True, own_cassandra=True),
    "cut-redis": Fault(node_faults.cut_redis),
    "cut-peers": Fault(node_faults.cut_peers),
    "slices": Fault(node_faults.slices),
    "lose-reply": Fault(node_faults.lose_reply, loses_lease=True, own_cassandra=True),
    "redis-kill": Fault(store_faults.redis_kill),
    "redis-flush": Fault(store_faults.redis_flush),
    "redis-trim": Fault(store_faults.redis_trim),
    "redis-old": Fault(store_faults.redis_old),
    "redis-pause": Fault(store_faults.redis_pause),
    "cassandra-slow": Fault(store_faults.cassandra_slow, loses_lease=True, own_cassandra=True),
    "cassandra-away": Fault(store_faults.cassandra_away, loses_lease=True, own_cassandra=True),
    "slow-reader": Fault(client_faults.slow_reader),
    "drop-all": Fault(client_faults.drop_all),
    "drip": Fault(client_faults.drip),
    "garbage": Fault(client_faults.garbage),
    "clock": Fault(node_faults.clock),
}
"""All of them; ``tidegate torture --faults NAME,…`` chooses."""


def impossible(name: str, options: Options) -> str:
    """Why a fault cannot be tried with such a cluster, and what to do; empty when it can."""
    fault = FAULTS[name]
    if fault.own_cassandra and options.cassandra_hosts:
        return f"{name} harms Cassandra or the way to it: leave --cassandra-hosts out, and one is started for the trial"
    return ""
