"""What a live upgrade costs those who are connected: how long a send waits at most, and whether anybody is lost."""

import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from msgspec import Struct

from bench.backends import running_backends
from bench.errors import BenchError
from bench.load.accounts import Door, user_names
from bench.load.process import LoadProcess
from bench.load.setup import SetupClient
from bench.machine import Busy, Cores, Meter, choose_cores, together
from bench.node import read_metrics, running_node
from bench.processes import NodeProcess
from bench.send_cross import wait_shared
from gateway.upgrade.control import Succeeded, UpgradeRefused, ask

BEFORE_S = 2.0
"""Seconds of sends before the upgrade is asked for."""

AFTER_S = 2.0
"""Seconds of sends after it."""

START_S = 8.0
"""Seconds that the new program may take to start, so that sends go on all the time."""

HISTORY_S = 3.0
"""Seconds of saturated sends before everything: a store that is just made would be opened too quickly."""

UPGRADE_TIMEOUT_S = 90.0

REGISTER_S = 2.0
"""Seconds from connecting until all nodes surely find who is connected: the clients here do not sync, which would wait
for that."""


class Options(Struct, frozen=True):
    """``connections`` in all, two of each of ``pairs`` among them; ``sends_per_s``; ``repeats`` upgrades in a row.

    With ``store`` cassandra the node is one of two of a cluster, of which the other owns half of the conversations.
    """

    connections: int = 19_000
    pairs: int = 100
    sends_per_s: int = 500
    repeats: int = 3
    store: str = "embedded"
    data_parent: Path | None = None


class _Upgrade(Struct, frozen=True):
    """One upgrade under load."""

    outcome: Succeeded
    started_s: float
    waits_ns: list[int]
    busy: Busy


def measure(options: Options) -> dict[str, Any]:
    """Run the benchmark; the keys are those of the table in bench/README.md."""
    cores = choose_cores()
    parked_count = options.connections - 2 * options.pairs
    if parked_count < 1:
        raise BenchError("too few connections for so many pairs")
    with ExitStack() as stack:
        node, door, backends = _start(stack, cores, options)
        parked = stack.enter_context(LoadProcess("bench.load.parked:Parked", door, cores, core=cores.load))
        parked.call("prepare", parked_count, "upgrade")
        parked.call("open")
        senders, receivers = user_names(options.pairs, "senders"), user_names(options.pairs, "receivers")
        conversations = []
        for sender, receiver in zip(senders, receivers, strict=True):
            with SetupClient(door, sender) as setup:
                conversations += setup.create_direct(receiver)
        load = stack.enter_context(
            LoadProcess("bench.load.acks:AckTimes", door, cores, senders, receivers, conversations, core=cores.load)
        )
        if backends:
            time.sleep(REGISTER_S)
        load.call("saturate", 8, 0.0, HISTORY_S)
        pid, done = door.pid, []
        held = _connections(read_metrics(node))
        for _ in range(options.repeats):
            done.append(_upgrade(load, pid, backends, cores, options))
            pid = done[-1].outcome.pid
        lost = held - _connections(read_metrics(node))
        parked.call("prove_echo")
    return {
        "store": options.store,
        "connections": options.connections,
        "sends_per_s": options.sends_per_s,
        "connections_lost": lost,
        "connections_handed_over": min(each.outcome.connections for each in done),
        "longest_send_wait_ms": max(max(each.waits_ns) for each in done) / 1e6,
        "median_longest_send_wait_ms": median(max(each.waits_ns) for each in done) / 1e6,
        "send_wait_p99_ms": median(quantiles(each.waits_ns, n=100)[98] for each in done) / 1e6,
        "paused_ms": median(each.outcome.paused_ms for each in done),
        "stood_still_ms": median(each.outcome.stood_still_ms for each in done),
        "whole_upgrade_s": median(each.started_s for each in done),
        "busy": {"successor": together([each.busy for each in done])},
    }


def _start(stack: ExitStack, cores: Cores, options: Options) -> tuple[NodeProcess, Door, tuple[int, ...]]:
    """The node that will be upgraded, and the processes of the servers behind it."""
    if options.store == "embedded":
        return *stack.enter_context(running_node(cores, options.data_parent)), ()
    backends = stack.enter_context(running_backends(options.data_parent))
    node, door = stack.enter_context(backends.node("one", cores, options.data_parent))
    other, _ = stack.enter_context(backends.node("two", cores, options.data_parent))
    wait_shared(node, other)
    return node, door, backends.pids


def _connections(metrics: dict[str, float]) -> int:
    return int(metrics["tidegate_connections"])


def _upgrade(load: LoadProcess, pid: int, backends: tuple[int, ...], cores: Cores, options: Options) -> _Upgrade:
    """Upgrade the node while sends go on, before and after too."""
    seconds = BEFORE_S + START_S + AFTER_S
    load.begin("timed", options.sends_per_s, seconds, timeout_s=seconds + UPGRADE_TIMEOUT_S)
    time.sleep(BEFORE_S)
    began = time.monotonic()
    try:
        outcome = ask(pid, lambda _state: None, UPGRADE_TIMEOUT_S)
    except (UpgradeRefused, OSError) as error:
        raise BenchError(f"the node was not upgraded: {error}") from None
    if not isinstance(outcome, Succeeded):
        raise BenchError(f"process {pid} supervises several nodes: upgrade a node that runs alone")
    started_s = time.monotonic() - began
    meter = Meter(outcome.pid, load.pid, cores=cores, backends=backends)
    waits_ns = load.finish()
    return _Upgrade(outcome, started_s, waits_ns, meter.stop())
