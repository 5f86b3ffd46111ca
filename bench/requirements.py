"""What the figures are held to: the must and the aim of each, in one table."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct


class Requirement(Struct, frozen=True):
    """A bound on one figure of one benchmark. ``at_most``: smaller is better. A dot in ``key`` leads one level down."""

    bench: str
    key: str
    unit: str
    must: float
    aim: float
    at_most: bool
    meaning: str

    def verdict(self, value: float) -> str:
        """Which bound ``value`` keeps: "aim", "must", or "miss" for neither."""
        if self._within(value, self.aim):
            return "aim"
        return "must" if self._within(value, self.must) else "miss"

    def _within(self, value: float, bound: float) -> bool:
        return value <= bound if self.at_most else value >= bound


REQUIREMENTS = (
    Requirement(
        "density",
        "user_bytes_per_connection",
        "bytes",
        512,
        256,
        True,
        "resident memory of a parked connection",
    ),
    Requirement("density", "connect_ratio", "x", 1.0, 0.5, True, "connect_cpu_us to websockets' bare upgrade"),
    Requirement("density", "second_wave_growth_bytes", "bytes", 64, 0, True, "growth a connection, second crowd"),
    Requirement("crowd", "held", "", 200_000, 200_000, False, "connections alive at once, several processes"),
    Requirement("crowd", "user_bytes_per_connection", "bytes", 512, 256, True, "resident memory of each"),
    Requirement("roundtrip", "ratio", "x", 2.0, 1.2, True, "cpu_us of command and reply to picows' echo"),
    Requirement("fanout", "ratio", "x", 1.6, 2.2, False, "deliveries a CPU second to websockets' broadcast"),
    Requirement("fanout", "limit_ratio", "x", 0.7, 0.9, False, "deliveries a CPU second to bare os.write"),
    Requirement(
        "fanout", "burst_deliveries_per_s", "1/s", 500_000, 1_000_000, False, "deliveries with four entries in flight"
    ),
    Requirement("send", "sends_per_s", "1/s", 15_000, 30_000, False, "durable, acknowledged and delivered"),
    Requirement(
        "send", "half_load.delivery_p99_ms", "ms", 50, 10, True, "send due to delivery read, half of what it takes"
    ),
    Requirement("send", "fixed_load.7500.delivery_p99_ms", "ms", 50, 10, True, "the same at half of what it must take"),
    Requirement(
        "send", "fixed_load.15000.delivery_p99_ms", "ms", 50, 10, True, "the same at half of what it is meant to take"
    ),
    Requirement(
        "send_cassandra", "ratio", "x", 0.6, 2.0, False, "sends a second to the driver's own inserts, one each"
    ),
    Requirement(
        "send_cassandra", "statements_per_send", "", 1.2, 1.2, True, "statements to Cassandra, in batches or not"
    ),
    Requirement(
        "send_cassandra", "redis_commands_per_send", "", 0, 0, True, "commands to Redis, of a node that is alone"
    ),
    Requirement(
        "send_cross", "delivery_p99_ms", "ms", 100, 30, True, "send due to delivery on the other node, half load"
    ),
    Requirement("send_cross", "hop_cpu_us", "us", 60, 25, True, "CPU of the way between nodes, a message and node"),
    Requirement(
        "send_cross", "redis_commands_per_send", "", 1.2, 1.2, True, "commands to Redis, of both nodes together"
    ),
    Requirement("takeover", "takeover_s", "s", 15, 12, True, "until the last conversation of a killed node answers"),
    Requirement(
        "storm", "store_reads_per_client", "", 2, 1.5, True, "reads of Cassandra for each client that missed nothing"
    ),
    Requirement("storm", "missed", "", 0, 0, True, "news told where there was none"),
    Requirement("storm", "others_send_p99_ms", "ms", 1_000, 100, True, "wait of sends of others during the storm"),
    Requirement("upgrade", "connections_lost", "", 0, 0, True, "connections that did not survive"),
    Requirement("upgrade", "longest_send_wait_ms", "ms", 1_000, 250, True, "longest a send waited for its answer"),
    Requirement("stall", "longest_stall_ms", "ms", 25, 5, True, "longest pass of the node's event loop"),
)


def requirements_of(bench: str) -> list[Requirement]:
    """The requirements on the figures of one benchmark."""
    return [requirement for requirement in REQUIREMENTS if requirement.bench == bench]


def figure(result: Mapping[str, Any], key: str) -> float | None:
    """A figure of a result by its dotted key; None where it was not measured."""
    value: Any = result
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def judged(result: Mapping[str, Any]) -> list[tuple[Requirement, float | None, str]]:
    """Each requirement of a result's benchmark with its figure and verdict; "not measured" when a peer is missing."""
    rows = []
    for requirement in requirements_of(result["bench"]):
        value = figure(result, requirement.key)
        rows.append((requirement, value, "not measured" if value is None else requirement.verdict(value)))
    return rows
