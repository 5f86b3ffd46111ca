"""A crowd that no single process may hold: several nodes behind one port, and as many processes that connect."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from bench.density import SETTLE_S
from bench.errors import BenchError
from bench.load.accounts import Door
from bench.load.connect import CONNECTIONS_PER_ADDRESS
from bench.load.process import LoadProcess
from bench.machine import Busy, Cores, Meter, choose_cores, descriptor_limit, resident_bytes
from bench.node import IDLE_TIMEOUT_S, disk_directory, metrics_at
from bench.processes import NodeFailed, SharedPort

DESCRIPTORS_SPARED = 1_000
"""Descriptors a process has beside those of connections: a node keeps 700 back, and its share of the crowd, which the
kernel draws by lot, may be somewhat larger than that of others."""

HOLD_S = 5.0
"""Seconds that the crowd stays, complete, before everybody in it has to give a sign of life."""


class Options(Struct, frozen=True):
    """``connections`` at once on ``processes`` nodes; where the nodes' data goes."""

    connections: int = 200_000
    processes: int = 11
    data_parent: Path | None = None


class Nodes(Struct, frozen=True):
    """What there is to measure of the nodes: where each alone answers, and their processes."""

    urls: list[str]
    pids: list[int]

    def connections(self) -> list[int]:
        """Connections that each node holds now."""
        return [int(metrics_at(url)["tidegate_connections"]) for url in self.urls]

    def resident_bytes(self) -> int:
        """Memory of all nodes together."""
        return sum(resident_bytes(pid) for pid in self.pids)


def measure(options: Options) -> dict[str, Any]:
    """Run the benchmark. Raises BenchError where the crowd does not fit, or one of it is refused, lost or mute."""
    shares = _shares(options)
    cores = choose_cores()
    with ExitStack() as stack:
        door, nodes = stack.enter_context(_running_nodes(cores, options))
        loads = [
            stack.enter_context(
                LoadProcess("bench.load.parked:Parked", door, cores, _first_address(n, shares), core=cores.load)
            )
            for n in range(len(shares))
        ]
        for number, (load, share) in enumerate(zip(loads, shares, strict=True)):
            load.call("prepare", share, f"crowd-{number}")
        before = nodes.resident_bytes()
        busy = _metered(nodes, loads, cores, lambda: [load.call("open") for load in loads])
        time.sleep(HOLD_S)
        user_bytes = (nodes.resident_bytes() - before) / options.connections
        for load in loads:
            load.call("prove_echo")
        held = nodes.connections()
    return {
        "connections": options.connections,
        "processes": options.processes,
        "held": sum(held),
        "user_bytes_per_connection": user_bytes,
        "connects_per_s": options.connections / busy.wall_s,
        "connect_cpu_us": busy.server * busy.wall_s / options.connections * 1e6,
        "fewest_on_one_node": min(held),
        "most_on_one_node": max(held),
        "memory_measure": "RssAnon of /proc/PID/status of all nodes, before the first connection and after the last",
        "busy": {"nodes": busy},
    }


def _shares(options: Options) -> list[int]:
    """How many connections each load process makes. Raises BenchError if nodes or load processes cannot hold them."""
    possible = descriptor_limit() - DESCRIPTORS_SPARED
    largest = -(-options.connections // options.processes)
    if largest > possible:
        raise BenchError(
            f"{options.connections} connections are {largest} for each of {options.processes} processes, which may "
            f"hold {possible} here; use --processes {-(-options.connections // possible)} or more, or raise ulimit -n"
        )
    starts = range(0, options.connections, largest)
    return [min(largest, options.connections - start) for start in starts]


def _first_address(number: int, shares: list[int]) -> int:
    """Each load process connects from addresses of its own, so that no two take the same port."""
    return number * -(-shares[0] // CONNECTIONS_PER_ADDRESS)


def _metered(nodes: Nodes, loads: list[LoadProcess], cores: Cores, work: Callable[[], object]) -> Busy:
    meter = Meter(nodes.pids, *(load.pid for load in loads), cores=cores)
    work()
    busy = meter.stop()
    time.sleep(SETTLE_S)
    return busy


@contextmanager
def _running_nodes(cores: Cores, options: Options) -> Iterator[tuple[Door, Nodes]]:
    """Nodes on the first core, with data directories that are removed afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="tidegate-bench-", dir=options.data_parent or disk_directory()))
    unlimited = ("commands_per_s_max=0", "conversation_sends_per_s_max=0")
    limits = (*unlimited, f"idle_timeout_s={IDLE_TIMEOUT_S}", "handshakes_max=256", "log_format=json")
    try:
        with SharedPort(options.processes, directory / "data", *limits, cpus=[cores.server]) as shared:
            started = [json.loads(line) for line in shared.stderr_path.read_text(encoding="utf-8").splitlines()]
            ready = [line for line in started if line["event"] == "node process ready"]
            nodes = Nodes([line["address"] for line in ready], [line["pid"] for line in ready])
            yield Door(shared.host, shared.port, shared.pid, shared.secret), nodes
    except NodeFailed as error:
        raise BenchError(str(error)) from None
    finally:
        shutil.rmtree(directory)
