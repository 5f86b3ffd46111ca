"""How long the node's event loop ever keeps a client waiting, with a full house, a fan-out and a coming and going."""

import time
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles
from typing import Any

from msgspec import Struct

from bench.errors import BenchError
from bench.load.accounts import Door, user_names
from bench.load.messages import SEQ_FIRST, SEQ_LAST, SendTemplate
from bench.load.process import LoadProcess
from bench.load.setup import SetupClient
from bench.machine import Cores, Meter, choose_cores
from bench.node import read_metrics, running_node

SENDER = "bench-sender"
CHURN_GROUP = 50
"""Connections that come and go together."""

IDLE_S = 3.0
"""Seconds of heartbeat with the crowd parked and nothing else going on: what the machine itself adds."""

MARGIN_S = 60.0
"""Seconds beyond the planned ones after which a generator is given up."""


class Options(Struct, frozen=True):
    """``connections`` in all, ``members`` of them in a conversation; entries and connects a second; for how long.

    The node tells its longest stall of the last minute: a run of 60 s has just that minute.
    """

    connections: int = 19_000
    members: int = 1_000
    entries_per_s: float = 100.0
    connects_per_s: float = 300.0
    seconds: float = 60.0
    data_parent: Path | None = None


def measure(options: Options) -> dict[str, Any]:
    """Run the benchmark; the keys are those of the table in bench/README.md."""
    cores = choose_cores()
    parked_count = options.connections - options.members - CHURN_GROUP - 2
    entries = int(options.entries_per_s * options.seconds)
    if parked_count < 0 or entries > SEQ_LAST - 2 * SEQ_FIRST:
        raise BenchError("too few connections for so many members, or too many entries for one conversation")
    with ExitStack() as stack:
        node, door = stack.enter_context(
            running_node(cores, options.data_parent, "--group-members-max", str(options.members + 1))
        )
        parked = stack.enter_context(LoadProcess("bench.load.parked:Parked", door, cores, core=cores.load))
        parked.call("prepare", parked_count, "stall")
        parked.call("open")
        heartbeat = stack.enter_context(LoadProcess("bench.load.heartbeat:Heartbeat", door, core=cores.load))
        churn = stack.enter_context(LoadProcess("bench.load.churn:Churn", door, CHURN_GROUP, core=cores.load))
        readers, sender, push_bytes = _members(stack, door, cores, options)
        idle = heartbeat.call("run", IDLE_S)
        before = read_metrics(node)
        limit_s = options.seconds + MARGIN_S
        loads = (parked, heartbeat, churn, readers, sender)
        meter = Meter(door.pid, *(load.pid for load in loads), cores=cores)
        began = time.monotonic()
        readers.begin("receive", entries * push_bytes, timeout_s=limit_s)
        churn.begin("run", options.connects_per_s, options.seconds, timeout_s=limit_s)
        heartbeat.begin("run", options.seconds, timeout_s=limit_s)
        sender.call("paced", entries, options.entries_per_s, timeout_s=limit_s)
        latencies, connects = heartbeat.finish(), churn.finish()
        readers.finish()
        wall_s, busy, after = time.monotonic() - began, meter.stop(), read_metrics(node)
        parked.call("prove_echo")
    return {
        "connections": options.connections,
        "members": options.members,
        "seconds": wall_s,
        "deliveries_per_s": entries * options.members / wall_s,
        "connects_per_s": connects / wall_s,
        "longest_stall_ms": after["tidegate_loop_stall_seconds_recent_max"] * 1e3,
        "longest_stall_since_start_ms": after["tidegate_loop_stall_seconds_max"] * 1e3,
        **_over(before, after),
        **_heartbeat(idle, "idle_heartbeat"),
        **_heartbeat(latencies, "heartbeat"),
        "busy": {"node": busy},
    }


def _members(stack: ExitStack, door: Door, cores: Cores, options: Options) -> tuple[LoadProcess, LoadProcess, int]:
    """The fan-out's readers and sender, and the size of one push."""
    members = user_names(options.members, "fanout")
    with SetupClient(door, SENDER) as setup:
        group, head_seq = setup.create_long_group(members)
    readers = LoadProcess("bench.load.fanout:Readers", door, members, first_address=50, core=cores.load)
    sender = LoadProcess("bench.load.fanout:NodeSender", door, SENDER, group, head_seq, core=cores.load)
    return stack.enter_context(readers), stack.enter_context(sender), SendTemplate(group, SENDER).push_bytes


def _over(before: dict[str, float], after: dict[str, float]) -> dict[str, int]:
    """How many passes of the loop took longer than 5 and than 25 ms, in the window, by the node's histogram."""
    name = "tidegate_loop_stall_seconds"

    def above(bound: str) -> int:
        counts = [m[f"{name}_count"] - m[f'{name}_bucket{{le="{bound}"}}'] for m in (before, after)]
        return int(counts[1] - counts[0])

    return {"stalls_over_5_ms": above("0.005"), "stalls_over_25_ms": above("0.025")}


def _heartbeat(latencies_ns: list[int], prefix: str) -> dict[str, float]:
    """Median, 99th percentile and maximum, milliseconds."""
    cuts = quantiles(latencies_ns, n=100)
    return {
        f"{prefix}_p50_ms": cuts[49] / 1e6,
        f"{prefix}_p99_ms": cuts[98] / 1e6,
        f"{prefix}_max_ms": max(latencies_ns) / 1e6,
    }
