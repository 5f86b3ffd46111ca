"""Everybody comes back at once: how long that takes, what it costs the store, and how long others' sends wait."""

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles
from typing import Any

from msgspec import Struct

from bench.backends import Backends, running_backends
from bench.crowd import DESCRIPTORS_SPARED
from bench.errors import BenchError
from bench.load.accounts import Door, user_names
from bench.load.connect import CONNECTIONS_PER_ADDRESS
from bench.load.process import LoadProcess
from bench.load.setup import SetupClient
from bench.load.storm import GROUP_MEMBERS, Return
from bench.machine import Busy, Cores, Meter, choose_cores, descriptor_limit
from bench.node import read_metrics
from bench.processes import NodeProcess
from bench.send_cross import wait_shared

QUIET_S = 5.0
"""Seconds of sends before the storm, to compare with."""

SLICE_S = 1.0
"""Seconds of sends between two looks at whether everybody is back."""

CREATE_TIMEOUT_S = 900.0
"""Seconds that making the conversations may take: 400,000 memberships, each two rows."""

STORM_TIMEOUT_S = 300.0

COUNTED = ("cassandra_reads", "cassandra_statements", "redis_commands", "heads_own", "heads_shared", "heads_asked")
"""What is counted in the nodes during the storm."""


class Options(Struct, frozen=True):
    """``clients`` with ``conversations`` each on one or two ``nodes``; ``pairs`` of others send ``sends_per_s``."""

    clients: int = 20_000
    conversations: int = 20
    nodes: int = 2
    pairs: int = 50
    sends_per_s: int = 200
    data_parent: Path | None = None


class _Storm(Struct, frozen=True):
    """What came of it."""

    returns: list[Return]
    waits_ns: list[int]
    quiet_ns: list[int]
    counted: dict[str, float]
    busy: Busy


def measure(options: Options) -> dict[str, Any]:
    """Run the benchmark; the keys are those of the table in bench/README.md. Raises BenchError."""
    shares = _shares(options)
    cores = choose_cores()
    with ExitStack() as stack:
        backends = stack.enter_context(running_backends(options.data_parent))
        names = ("one", "two")[: options.nodes]
        running = [stack.enter_context(backends.node(name, cores, options.data_parent)) for name in names]
        nodes, doors = [node for node, _ in running], [door for _, door in running]
        if options.nodes == 2:
            wait_shared(*nodes)
        loads = _clients(stack, doors, cores, shares, options)
        others = _others(stack, doors[0], cores, options.pairs)
        storm = _storm(nodes, loads, others, backends, cores, options)
    returns, clients = storm.returns, options.clients
    cuts = quantiles([each.seconds for each in returns], n=100)
    quiet, during = quantiles(storm.quiet_ns, n=1000), quantiles(storm.waits_ns, n=1000)
    counted = storm.counted
    return {
        "clients": clients,
        "nodes": options.nodes,
        "conversations_each": options.conversations,
        "conversations": clients // GROUP_MEMBERS * options.conversations,
        "members_of_each": GROUP_MEMBERS,
        "all_back_s": max(each.seconds for each in returns),
        "back_p50_s": cuts[49],
        "back_p99_s": cuts[98],
        "connections_per_client": sum(1 + len(each.failures) for each in returns) / clients,
        "failures": dict(Counter(why for each in returns for why in each.failures)),
        "missed": sum(each.missed for each in returns),
        "store_reads_per_client": counted["cassandra_reads"] / clients,
        "statements_per_client": counted["cassandra_statements"] / clients,
        "redis_commands_per_client": counted["redis_commands"] / clients,
        "heads_from_memory_per_client": counted["heads_own"] / clients,
        "heads_from_redis_per_client": counted["heads_shared"] / clients,
        "heads_asked_of_owners_per_client": counted["heads_asked"] / clients,
        "nodes_cpu_us_per_client": storm.busy.server * storm.busy.wall_s / clients * 1e6,
        "others_sends_per_s": options.sends_per_s,
        "others_send_p50_ms": during[499] / 1e6,
        "others_send_p99_ms": during[989] / 1e6,
        "others_send_max_ms": max(storm.waits_ns) / 1e6,
        "quiet_send_p50_ms": quiet[499] / 1e6,
        "quiet_send_p99_ms": quiet[989] / 1e6,
        "busy": {"nodes": storm.busy},
    }


def _shares(options: Options) -> list[int]:
    """Clients of each node, a whole number of groups of friends. Raises BenchError if they do not fit."""
    if options.nodes > 2:
        raise BenchError("the storm is measured on one node or two; use --nodes 1 or --nodes 2")
    groups = options.clients // GROUP_MEMBERS
    if groups * GROUP_MEMBERS != options.clients or groups < options.nodes:
        raise BenchError(f"clients come in groups of {GROUP_MEMBERS}; use a multiple of that for --clients")
    possible = descriptor_limit() - DESCRIPTORS_SPARED - 2 * options.pairs
    shares = [(groups + n) // options.nodes * GROUP_MEMBERS for n in range(options.nodes)]
    if max(shares) > possible:
        raise BenchError(
            f"{max(shares)} clients on one node are more than the {possible} that a process may hold here; use fewer"
            " --clients, --nodes 2, or raise ulimit -n"
        )
    return shares


def _clients(
    stack: ExitStack, doors: list[Door], cores: Cores, shares: list[int], options: Options
) -> list[LoadProcess]:
    """Everybody who is going to be dropped, connected, with their conversations."""
    addresses = -(-shares[-1] // CONNECTIONS_PER_ADDRESS)
    loads = [
        stack.enter_context(LoadProcess("bench.load.storm:Storm", door, number * addresses, core=cores.load))
        for number, door in enumerate(doors)
    ]
    for number, (load, share) in enumerate(zip(loads, shares, strict=True)):
        load.begin("create", share, options.conversations, f"storm-{number}", timeout_s=CREATE_TIMEOUT_S)
    for load in loads:
        load.finish()
    for load in loads:
        load.call("open")
    return loads


def _others(stack: ExitStack, door: Door, cores: Cores, pairs: int) -> LoadProcess:
    """Pairs that go on sending to each other, all connected to the first node."""
    senders, receivers = user_names(pairs, "senders"), user_names(pairs, "receivers")
    conversations = []
    for sender, receiver in zip(senders, receivers, strict=True):
        with SetupClient(door, sender) as setup:
            conversations += setup.create_direct(receiver)
    return stack.enter_context(
        LoadProcess("bench.load.storm:Others", door, cores, senders, receivers, conversations, core=cores.load)
    )


def _storm(
    nodes: list[NodeProcess],
    loads: list[LoadProcess],
    others: LoadProcess,
    backends: Backends,
    cores: Cores,
    options: Options,
) -> _Storm:
    """Drop everybody while the others send, until everybody is back."""
    quiet_ns = others.call("timed", options.sends_per_s, QUIET_S)
    before = _count(nodes)
    meter = Meter(
        [node.pid for node in nodes], others.pid, *(load.pid for load in loads), cores=cores, backends=backends.pids
    )
    for seed, load in enumerate(loads):
        load.begin("storm", seed, timeout_s=STORM_TIMEOUT_S)
    waits_ns: list[int] = []
    while not all(load.answered for load in loads):
        waits_ns += others.call("timed", options.sends_per_s, SLICE_S)
    returns = [each for load in loads for each in load.finish()]
    busy = meter.stop()
    after = _count(nodes)
    counted = {name: after[name] - before[name] for name in COUNTED}
    return _Storm(returns, waits_ns, quiet_ns, counted, busy)


def _count(nodes: list[NodeProcess]) -> dict[str, float]:
    """The counters of all nodes together."""
    samples = [read_metrics(node) for node in nodes]
    try:
        return {name: sum(each[f"tidegate_{name}_total"] for each in samples) for name in COUNTED}
    except KeyError as error:
        raise BenchError(f"a node's /metrics has no {error}") from None
