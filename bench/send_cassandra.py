"""The sends of ``bench.send`` with one Cassandra behind the node, beside the driver alone inserting the same rows."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, astuple

from bench import send
from bench.backends import KEYSPACE, running_backends
from bench.errors import BenchError
from bench.load.pairs import SendSample
from bench.machine import choose_cores, together
from bench.node import read_metrics
from bench.processes import NodeProcess
from bench.send import SETTLE_S, bare_rate, connect_pairs, latency_ms, under_load

BARE_S = 4.0
"""Seconds of bare inserts in each turn."""

BARE_CHAINS = 128
"""Bare inserts under way at once: with more, they become no quicker."""

IDLE_S = 5.0
"""Seconds of no load in which it is counted what a node asks of the servers behind it all the time."""


class Options(send.Options, frozen=True):
    """As of ``bench.send``; ``warm_up_s`` seconds of sends come first: Cassandra compiles what it runs often."""

    warm_up_s: float = 15.0


class Counts(Struct, frozen=True):
    """What nodes have asked of the servers behind them so far, and the entries that became durable."""

    entries: float
    statements: float
    requests: float
    redis_commands: float


def measure(options: Options) -> dict[str, Any]:
    """Run the benchmark; the keys are those of the table in bench/README.md."""
    cores = choose_cores()
    with ExitStack() as stack:
        backends = stack.enter_context(running_backends(options.data_parent))
        node, door = stack.enter_context(backends.node("bench", cores, options.data_parent))
        load, entry_bytes = connect_pairs(stack, door, cores, options.pairs, backends=backends.pids)
        where = (backends.address, str(backends.port), KEYSPACE)
        how_much = (str(entry_bytes), str(options.pairs), str(BARE_CHAINS), str(min(BARE_S, options.seconds)))
        saturated: list[SendSample] = []
        bare: list[tuple[float, float]] = []
        load.call("saturate", options.window, 0.0, options.warm_up_s)
        idle = idle_counts_per_s(lambda: counts(node))
        before, began_s = counts(node), time.monotonic()
        for _ in range(options.repeats):
            saturated.append(load.call("saturate", options.window, SETTLE_S, options.seconds))
            bare.append(bare_rate(cores, "bare_inserts", *where, *how_much))
        asked = by_sends(before, counts(node), idle, time.monotonic() - began_s)
        rate = median(sample.delivered / sample.busy.wall_s for sample in saturated)
        half = [load.call("paced", rate / 2, SETTLE_S, options.seconds) for _ in range(options.repeats)]
    bare_rows_per_s = median(rows_per_s for rows_per_s, _ in bare)
    return {
        "pairs": options.pairs,
        "window_per_sender": options.window,
        "entry_bytes": entry_bytes,
        "sends_per_s": rate,
        "sends_per_cpu_s": median(s.delivered / (s.busy.wall_s * s.busy.server) for s in saturated),
        "cassandra_cpu_us_per_send": median(1e6 * s.busy.backend * s.busy.wall_s / s.delivered for s in saturated),
        **latency_ms(saturated),
        "ratio": rate / bare_rows_per_s,
        "bare_inserts_per_s": bare_rows_per_s,
        "bare_inserts_per_cpu_s": median(rows_per_cpu_s for _, rows_per_cpu_s in bare),
        **asked,
        "idle_statements_per_s": idle.statements,
        "idle_redis_commands_per_s": idle.redis_commands,
        "half_load": {
            "node_cpu_us_per_send": median(1e6 * s.busy.server * s.busy.wall_s / s.delivered for s in half),
            "cassandra_cpu_us_per_send": median(1e6 * s.busy.backend * s.busy.wall_s / s.delivered for s in half),
            **under_load(half),
        },
        "busy": {
            "node": together([sample.busy for sample in saturated]),
            "node_half_load": together([sample.busy for sample in half]),
        },
    }


def counts(node: NodeProcess) -> Counts:
    """What the node's metrics say."""
    metrics = read_metrics(node)
    names = ("entries_appended", "cassandra_statements", "cassandra_requests", "redis_commands")
    try:
        return Counts(*(metrics[f"tidegate_{name}_total"] for name in names))
    except KeyError as error:
        raise BenchError(f"the node's /metrics has no {error}") from None


def idle_counts_per_s(count: Callable[[], Counts]) -> Counts:
    """What is asked by the second while nobody sends: leases, the slot table, the generation of hints."""
    time.sleep(IDLE_S)  # what the last sends left behind is written within that
    before, began_s = count(), time.monotonic()
    time.sleep(IDLE_S)
    after, seconds = count(), time.monotonic() - began_s
    return Counts(*((now - then) / seconds for now, then in zip(astuple(after), astuple(before), strict=True)))


def by_sends(before: Counts, after: Counts, idle: Counts, seconds: float) -> dict[str, float]:
    """What was asked for each send, without what would have been asked anyhow; to the thousandth."""
    entries = after.entries - before.entries
    return {
        f"{name}_per_send": round(max(0.0, getattr(after, name) - getattr(before, name) - rate * seconds) / entries, 3)
        for name, rate in asdict(idle).items()
        if name != "entries"
    }
