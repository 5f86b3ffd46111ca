"""Every fault by name: what it does, and what a trial of it needs and may expect."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bench.torture import client_faults, node_faults, store_faults
from bench.torture.cluster import Options
from bench.torture.trial import FORWARD_S, RETURN_MARGIN_S, Scenario


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        scenario: does it and puts it right again.
        loses_lease: whether a node may be taken over because of it; else none may be.
        own_cassandra: whether it needs a Cassandra that was started for the trial.
        after_kill_s: seconds beyond the lease within which conversations answer again after a kill while this is tried,
            too: infinite where it silences living owners for as long as it lasts, longer where commands get lost on
            their way between nodes.
        ack_s: seconds within which a message is acknowledged while nothing but this is tried.
    """

    scenario: Scenario
    loses_lease: bool = False
    own_cassandra: bool = False
    after_kill_s: float = RETURN_MARGIN_S
    ack_s: float = math.inf

    @property
    def meaning(self) -> str:
        """What it does and what is expected, in a line."""
        return (self.scenario.__doc__ or "").strip()


SILENCED: Final = math.inf
"""While this fault lasts, owners that live do not answer either: no time can be promised from the kill on."""

LOST_ON_THE_WAY_S: Final = RETURN_MARGIN_S + FORWARD_S
"""Seconds beyond the lease where a command may be lost on its way to the new owner, and is given up and sent again."""

ACK_MAX_S: Final = 5.0
"""Seconds that nobody waits longer for an acknowledgement because nodes are drained and started again."""

FAULTS: Final = {
    "kill": Fault(node_faults.kill, loses_lease=True),
    "pause": Fault(node_faults.pause, loses_lease=True, after_kill_s=SILENCED),
    "half-pause": Fault(node_faults.half_pause, after_kill_s=SILENCED),
    "drain": Fault(node_faults.drain, ack_s=ACK_MAX_S),
    "rolling": Fault(node_faults.rolling, ack_s=ACK_MAX_S),
    "cut-cassandra": Fault(node_faults.cut_cassandra, loses_lease=True, own_cassandra=True, after_kill_s=SILENCED),
    "cut-redis": Fault(node_faults.cut_redis, after_kill_s=LOST_ON_THE_WAY_S),
    "cut-peers": Fault(node_faults.cut_peers),
    "slices": Fault(node_faults.slices),
    "lose-reply": Fault(node_faults.lose_reply, loses_lease=True, own_cassandra=True, after_kill_s=SILENCED),
    "redis-kill": Fault(store_faults.redis_kill, after_kill_s=LOST_ON_THE_WAY_S),
    "redis-flush": Fault(store_faults.redis_flush, after_kill_s=LOST_ON_THE_WAY_S),
    "redis-trim": Fault(store_faults.redis_trim, after_kill_s=LOST_ON_THE_WAY_S),
    "redis-old": Fault(store_faults.redis_old, after_kill_s=LOST_ON_THE_WAY_S),
    "redis-pause": Fault(store_faults.redis_pause, after_kill_s=LOST_ON_THE_WAY_S),
    "cassandra-slow": Fault(store_faults.cassandra_slow, loses_lease=True, own_cassandra=True, after_kill_s=SILENCED),
    "cassandra-away": Fault(store_faults.cassandra_away, loses_lease=True, own_cassandra=True, after_kill_s=SILENCED),
    "slow-reader": Fault(client_faults.slow_reader),
    "drop-all": Fault(client_faults.drop_all),
    "drip": Fault(client_faults.drip),
    "garbage": Fault(client_faults.garbage),
    "clock": Fault(node_faults.clock),
}
"""All of them; ``tidegate torture --faults NAME,…`` chooses."""


def after_kill_s(names: Iterable[str]) -> float:
    """Seconds beyond the lease within which conversations have to answer after a kill among these faults."""
    return max(FAULTS[name].after_kill_s for name in names)


def ack_s(names: Iterable[str]) -> float:
    """Seconds within which every message of a run with these faults has to be acknowledged."""
    return max(FAULTS[name].ack_s for name in names)


def impossible(name: str, options: Options) -> str:
    """Why a fault cannot be tried with such a cluster, and what to do; empty when it can."""
    fault = FAULTS[name]
    if fault.own_cassandra and options.cassandra_hosts:
        return f"{name} harms Cassandra or the way to it: leave --cassandra-hosts out, and one is started for the trial"
    return ""
