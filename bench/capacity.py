"""What machines a load takes, on paper: measured costs of the parts, multiplied. The tables of docs/capacity.md.

Nothing here is measured; everything comes from saved results and from the assumptions that are named below.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any, Final

import msgspec
from msgspec import Struct

from bench.report import number
from bench.requirements import figure
from gateway.cluster.links import EMPTY_PARCEL_S
from gateway.cluster.ownership import TABLE_POLL_S
from gateway.cluster.slots import rightful_owners
from gateway.cluster.watch import WATCH_S
from store.coordination import SLOTS, Slot

Results = Mapping[str, Mapping[str, Any]]

UTILISATION: Final = 0.5
"""Share of a core that is planned with: the rest is for bursts, reconnects and the loss of a machine."""

REPLICAS: Final = 3
"""Copies of everything in Cassandra."""

CONNECTION_S: Final = 1_800
"""Seconds that a client stays connected, on average: phones come and go."""

CONNECTIONS_PER_NODE_MAX: Final = 100_000
"""Connections on one node that are planned with. It holds ten times as many; but all of them come back at once when it
is lost."""

KERNEL_BYTES_PER_CONNECTION: Final = 4_900
"""Memory of the kernel for an idle socket, as in docs/kernel.md."""

DIRECTORY_ENTRY_BYTES: Final = 200
"""Memory of Redis for the set with one incarnation that a user's place is, about: two ids and Redis' own fields."""

STATEMENTS_BEHIND: Final = 2
"""Statements that write a member's pointers: seen from the conversation, and from the user."""


class Demand(Struct, frozen=True):
    """What clients do. A delivery is a push of a message to a connection; each is answered by one receipt."""

    connections: int
    messages_per_s: int
    deliveries_per_s: int


DEMANDS: Final = (Demand(500_000, 10_000, 50_000), Demand(10_000_000, 174_000, 870_000))

NEEDED: Final = ("density-19000", "roundtrip", "fanout-1000", "send-cassandra", "send-cross")
"""Results that the sums are made of."""


class Costs(Struct, frozen=True):
    """What one of each takes: microseconds of a node's processor, unless its name says otherwise.

    Attributes:
        connection_bytes: memory of an idle connection, the node's own and the kernel's.
        connect: of a client.
        message: stored, acknowledged and delivered to one connection of the same node, at half load.
        delivery: to one more connection.
        command: the smallest, with its reply: what a receipt costs at least.
        hop: of anything to another node, for each of the two.
        statement: of Cassandra's processor, for each replica, at half load.
        parcel: of Redis' processor, written and read.
    """

    connection_bytes: float
    connect: float
    message: float
    delivery: float
    command: float
    hop: float
    statement: float
    parcel: float


class Machines(Struct, frozen=True):
    """What a demand takes."""

    node_cores: float
    nodes: int
    node_gb: float
    cassandra_statements_per_s: float
    cassandra_cores: float
    redis_parcels_per_s: float
    redis_cores: float
    redis_gb: float


def costs(results: Results) -> Costs | None:
    """The measured costs; None where a result is missing."""
    if not all(name in results for name in NEEDED):
        return None
    density, roundtrip, fanout, cassandra, cross = (results[name] for name in NEEDED)
    return Costs(
        connection_bytes=density["user_bytes_per_connection"] + KERNEL_BYTES_PER_CONNECTION,
        connect=density["connect_cpu_us"],
        message=cassandra["half_load"]["node_cpu_us_per_send"],
        delivery=1e6 / fanout["deliveries_per_cpu_s"],
        command=roundtrip["cpu_us"],
        hop=max(0.0, cross["hop_cpu_us"]),
        statement=cassandra["half_load"]["cassandra_cpu_us_per_send"] / cassandra["statements_per_send"],
        parcel=cross["redis_cpu_us_per_parcel"],
    )


def machines(demand: Demand, each: Costs) -> Machines:
    """What a demand takes, with everything as spread over nodes as it can be: each way leads to another node."""
    messages, deliveries = demand.messages_per_s, demand.deliveries_per_s
    receipts = deliveries
    hops = messages + deliveries + receipts  # to the owner, to each recipient, and back from each
    node_us = (
        demand.connections / CONNECTION_S * each.connect
        + messages * each.message
        + (deliveries - messages) * each.delivery
        + receipts * each.command
        + hops * 2 * each.hop
    )
    node_cores = node_us / 1e6 / UTILISATION
    nodes = max(ceil(node_cores), ceil(demand.connections / CONNECTIONS_PER_NODE_MAX))
    statements = messages * (1 + STATEMENTS_BEHIND) + receipts * STATEMENTS_BEHIND
    return Machines(
        node_cores=node_cores,
        nodes=nodes,
        node_gb=demand.connections / nodes * each.connection_bytes / 1e9,
        cassandra_statements_per_s=statements,
        cassandra_cores=statements * REPLICAS * each.statement / 1e6 / UTILISATION,
        redis_parcels_per_s=hops,
        redis_cores=hops * each.parcel / 1e6 / UTILISATION,
        redis_gb=demand.connections * DIRECTORY_ENTRY_BYTES / 1e9,
    )


def cost_table(results: Results) -> str:
    """What one of everything costs, as measured."""
    rows = [
        ("idle connection: the node's memory", "density-19000", "user_bytes_per_connection", "bytes"),
        ("connect, with the token's verification", "density-19000", "connect_cpu_us", "us of a node"),
        ("smallest command and its reply", "roundtrip", "cpu_us", "us of a node"),
        ("message to one recipient, half load", "send-cassandra", "half_load.node_cpu_us_per_send", "us of a node"),
        ("the same, saturated: messages of one core", "send-cassandra", "sends_per_cpu_s", "1/s"),
        ("the same: Cassandra's processor, saturated", "send-cassandra", "cassandra_cpu_us_per_send", "us"),
        ("the same: statements", "send-cassandra", "statements_per_send", "statements"),
        ("the same: requests, a batch being one", "send-cassandra", "requests_per_send", "requests"),
        ("the same: commands to Redis, node alone", "send-cassandra", "redis_commands_per_send", "commands"),
        ("delivery to one more connection: of one core", "fanout-1000", "deliveries_per_cpu_s", "1/s"),
        ("way to another node, each of the two", "send-cross", "hop_cpu_us", "us of a node"),
        ("message to another node: commands to Redis", "send-cross", "redis_commands_per_send", "commands"),
        ("the same: a command, with all that is in it", "send-cross", "redis_cpu_us_per_command", "us of Redis"),
        ("small parcel of one message, pipelined", "send-cross", "redis_cpu_us_per_parcel", "us of Redis"),
        ("idle node: statements", "send-cassandra", "idle_statements_per_s", "1/s"),
        ("idle node: commands to Redis", "send-cassandra", "idle_redis_commands_per_s", "1/s"),
        ("client that comes back in a storm: all nodes", "storm", "nodes_cpu_us_per_client", "us of a node"),
        ("the same: reads of Cassandra", "storm", "store_reads_per_client", "reads"),
        ("the same: commands to Redis", "storm", "redis_commands_per_client", "commands"),
        ("conversation of a killed node: until it answers", "takeover", "takeover_s", "s"),
    ]
    lines = ["| what | costs | | result | key |", "|---|---|---|---|---|"]
    for what, name, key, unit in rows:
        value = figure(results[name], key) if name in results else None
        shown = number(value) if value is not None else "not measured"
        lines.append(f"| {what} | {shown} | {unit} | {name} | `{key}` |")
    return "\n".join(lines)


def machine_table(results: Results) -> str:
    """What each demand takes."""
    each = costs(results)
    heads = [
        f"{one.connections:,} connections, {one.messages_per_s:,} messages/s, {one.deliveries_per_s:,} deliveries/s"
        for one in DEMANDS
    ]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(DEMANDS) + 1) + "|"]
    if each is None:
        return "\n".join([*lines, f"| needs the results {', '.join(NEEDED)} |" + " not measured |" * len(DEMANDS)])
    found = [machines(demand, each) for demand in DEMANDS]
    rows: list[tuple[str, str, Callable[[float], float]]] = [
        ("cores of nodes", "node_cores", ceil),
        ("nodes, one core each", "nodes", int),
        ("memory for connections on each, GB", "node_gb", float),
        ("statements to Cassandra, 1/s", "cassandra_statements_per_s", int),
        (f"cores of Cassandra, {REPLICAS} copies", "cassandra_cores", ceil),
        ("parcels through Redis at most, 1/s", "redis_parcels_per_s", int),
        ("cores of Redis at most", "redis_cores", float),
        ("memory of Redis, GB", "redis_gb", float),
    ]
    for what, field, kind in rows:
        lines.append(f"| {what} | " + " | ".join(number(kind(getattr(one, field))) for one in found) + " |")
    return "\n".join(lines)


def growth_table() -> str:
    """What an idle cluster does by itself, by its size: by the second, all nodes together."""
    table_bytes = len(msgspec.msgpack.encode([Slot("node-000:abcdefgh", 1)] * SLOTS))
    lines = [
        "| nodes | empty parcels | rows of leases | MB of slot tables | slots of the busiest node, to the average |",
        "|---|---|---|---|---|",
    ]
    for nodes in (2, 3, 10, 30, 100):
        parcels, rows = nodes * (nodes - 1) / EMPTY_PARCEL_S, nodes * nodes / WATCH_S
        owned = Counter(rightful_owners([f"node-{number:03}" for number in range(nodes)]))
        busiest = max(owned.values()) * nodes / SLOTS
        megabytes = nodes * table_bytes / TABLE_POLL_S / 1e6
        lines.append(f"| {nodes} | {parcels:,.0f} | {rows:,.0f} | {megabytes:.2f} | {busiest:.2f} |")
    return "\n".join(lines)
