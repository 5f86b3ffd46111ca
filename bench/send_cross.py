"""Sends whose recipients are always on another node: how long a delivery takes, and what the way between nodes costs.

Two nodes over one Cassandra and one Redis, each owning about half of the conversations; all senders are connected to
the first, all recipients to the second. What the hop costs is told by the same load on a node that is alone.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from msgspec.structs import astuple

from bench.backends import Backends, running_backends
from bench.errors import BenchError
from bench.load.accounts import Door
from bench.load.pairs import SendSample
from bench.load.process import LoadProcess
from bench.machine import Cores, choose_cores, process_cpu_ns, together
from bench.node import read_metrics
from bench.parcel_cost import redis_cpu_us_per_parcel
from bench.processes import NodeProcess
from bench.send import SETTLE_S, connect_pairs, latency_ms, under_load
from bench.send_cassandra import Counts, Options, by_sends, counts, idle_counts_per_s
from store.coordination import SLOTS

SHARE_TIMEOUT_S = 60.0
"""Seconds within which two nodes have to share the slots."""

SHARE_MIN = SLOTS // 4
"""Slots that each of two nodes owns at least: half of them, give or take what hashing does."""

POLL_S = 0.2
"""Seconds between two looks at whether they do."""

NODES = 2


def measure(options: Options) -> dict[str, Any]:
    """Run the benchmark; the keys are those of the table in bench/README.md."""
    cores, repeats = choose_cores(), options.repeats
    with ExitStack() as stack:
        backends = stack.enter_context(running_backends(options.data_parent))
        one, door = stack.enter_context(backends.node("one", cores, options.data_parent))
        with ExitStack() as second:
            # The second one shares the generator's core: both on one would only measure how they wait for it.
            two, other_door = second.enter_context(
                backends.node("two", Cores(cores.load, cores.load), options.data_parent)
            )
            wait_shared(one, two)

            def both() -> Counts:
                return _together(counts(one), counts(two))

            load, entry_bytes = connect_pairs(
                second, door, cores, options.pairs, receivers_door=other_door, backends=backends.pids
            )
            load.call("saturate", options.window, 0.0, options.warm_up_s)
            saturated = [load.call("saturate", options.window, SETTLE_S, options.seconds) for _ in range(repeats)]
            rate = median(sample.delivered / sample.busy.wall_s for sample in saturated)
            idle = idle_counts_per_s(both)
            before, began_s, redis_ns = both(), time.monotonic(), process_cpu_ns(backends.redis_pid)
            half = [load.call("paced", rate / 2, SETTLE_S, options.seconds) for _ in range(repeats)]
            after, redis_ns = both(), process_cpu_ns(backends.redis_pid) - redis_ns
            asked = by_sends(before, after, idle, time.monotonic() - began_s)
            owned = slots_owned(one)
            load.close()
            two.terminate()
        parcel_us = redis_cpu_us_per_parcel(backends)
        alone_load = _load_alone(stack, one, door, options, backends)
        alone = [alone_load.call("paced", rate / 2, SETTLE_S, options.seconds) for _ in range(repeats)]
    cross_us, alone_us = _node_cpu_us(half), _node_cpu_us(alone)
    return {
        "pairs": options.pairs,
        "window_per_sender": options.window,
        "entry_bytes": entry_bytes,
        "slots_of_the_senders_node": owned,
        "saturated_sends_per_s": rate,
        **under_load(half),
        "alone_delivery_p99_ms": latency_ms(alone)["delivery_p99_ms"],
        "hop_cpu_us": (cross_us - alone_us) / NODES,
        "both_nodes_cpu_us": cross_us,
        "node_alone_cpu_us": alone_us,
        "redis_cpu_us_per_command": redis_ns / 1e3 / (after.redis_commands - before.redis_commands),
        "redis_cpu_us_per_parcel": parcel_us,
        "backend_cpu_us": _backend_cpu_us(half),
        "alone_backend_cpu_us": _backend_cpu_us(alone),
        **asked,
        "busy": {
            "nodes": together([sample.busy for sample in saturated]),
            "nodes_half_load": together([sample.busy for sample in half]),
            "node_alone": together([sample.busy for sample in alone]),
        },
    }


def _load_alone(stack: ExitStack, one: NodeProcess, door: Door, options: Options, backends: Backends) -> LoadProcess:
    """The same pairs on the node that is left, which owns everything."""
    wait_slots(lambda: slots_owned(one) == SLOTS, "the node that is left owns all slots")
    cores = choose_cores()
    return connect_pairs(stack, door, cores, options.pairs, wave=" alone", backends=backends.pids)[0]


def wait_shared(one: NodeProcess, two: NodeProcess) -> None:
    """Wait until two nodes own all slots together, and each its share. Raises BenchError."""

    def shared() -> bool:
        owned = slots_owned(one), slots_owned(two)
        return sum(owned) == SLOTS and min(owned) >= SHARE_MIN

    wait_slots(shared, "both nodes own their share of the slots")


def wait_slots(there: Callable[[], bool], what: str) -> None:
    """Look at the slots until they are as they should be. Raises BenchError."""
    deadline = time.monotonic() + SHARE_TIMEOUT_S
    while not there():
        if time.monotonic() > deadline:
            raise BenchError(f"not within {SHARE_TIMEOUT_S:g} s: {what}")
        time.sleep(POLL_S)


def slots_owned(node: NodeProcess) -> int:
    """Slots that a node says are its own."""
    return int(read_metrics(node)["tidegate_slots_owned"])


def _together(*each: Counts) -> Counts:
    return Counts(*(sum(values) for values in zip(*map(astuple, each), strict=True)))


def _node_cpu_us(samples: Sequence[SendSample]) -> float:
    """Processor time of all nodes for each delivered message, microseconds."""
    return median(1e6 * each.busy.server * each.busy.wall_s / each.delivered for each in samples)


def _backend_cpu_us(samples: Sequence[SendSample]) -> float:
    """The same of Cassandra and Redis."""
    return median(1e6 * each.busy.backend * each.busy.wall_s / each.delivered for each in samples)
