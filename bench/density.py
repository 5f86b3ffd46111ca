"""How much memory and processor time a connection takes: many connect, authenticate and stay, doing nothing."""

import time
from pathlib import Path
from statistics import median
from typing import Any

from msgspec import Struct

from bench.errors import BenchError, PeerMissing
from bench.load.accounts import Door
from bench.load.connect import wait_until
from bench.load.process import LoadProcess
from bench.load.setup import SetupClient
from bench.machine import Busy, Cores, choose_cores, resident_bytes, together
from bench.node import read_metrics, running_node
from bench.peers.process import PeerProcess
from bench.processes import NodeProcess
from protocol import limits
from protocol.frames import Send

SETTLE_S = 1.0
"""Seconds from the last handshake to the reading of memory: the server finishes what it does behind a burst."""

LEAVE_TIMEOUT_S = 60.0
"""Seconds in which a node must have noticed that everybody left."""

PROOF = "everybody has to get this"
"""The message that proves that every parked connection can receive."""

PROOF_MEMBERS = 1_000
"""Members of one group: each is told who was added after it, and those pushes have to fit its unread socket."""

PEERS = {
    "websockets": ("websockets_uvloop", ("websockets", "uvloop")),
    "picows": ("picows_uvloop", ("picows", "uvloop")),
    "trio-websocket": ("trio_websocket_peer", ("trio_websocket",)),
}


class Options(Struct, frozen=True):
    """``connections`` at once; ``repeats`` of the node and of websockets, in turn; where the node's data goes.

    ``later_wave``: a third crowd, after the second has left and been forgotten (half a minute more).
    """

    connections: int = 10_000
    repeats: int = 3
    later_wave: bool = False
    data_parent: Path | None = None


class Crowd(Struct, frozen=True):
    """One crowd on one server: memory and processor time a connection, and how busy connecting was."""

    user_bytes: float
    connect_cpu_us: float
    busy: Busy
    after_push_bytes: float = 0.0


def measure(options: Options) -> dict[str, Any]:
    """Run the benchmark; the keys are those of the table in bench/README.md."""
    cores = choose_cores()
    crowds: dict[str, list[Crowd]] = {"node": []}
    missing: list[str] = []
    for repeat in range(options.repeats):
        crowds["node"].append(_node_crowd(cores, options))
        for peer in PEERS:
            if peer == "websockets" or repeat == 0:
                try:
                    crowds.setdefault(peer, []).append(_peer_crowd(peer, cores, options.connections))
                except PeerMissing as error:
                    missing.append(str(error))
    growth = _waves(cores, options)
    figures = {
        name: {
            "user_bytes_per_connection": median(crowd.user_bytes for crowd in runs),
            "connect_cpu_us": median(crowd.connect_cpu_us for crowd in runs),
        }
        for name, runs in crowds.items()
        if runs
    }
    node, websockets = figures.pop("node"), figures.get("websockets")
    return {
        "connections": options.connections,
        **node,
        "connect_ratio": node["connect_cpu_us"] / websockets["connect_cpu_us"] if websockets else None,
        **growth,
        "after_push_bytes_per_connection": median(crowd.after_push_bytes for crowd in crowds["node"]),
        "memory_measure": "RssAnon of /proc/PID/status, from before the first connection to after the last",
        "peers": figures,
        "missing": sorted(set(missing)),
        "busy": {name: together([crowd.busy for crowd in runs]) for name, runs in crowds.items() if runs},
    }


def _connect_cpu_us(busy: Busy, connections: int) -> float:
    return busy.server * busy.wall_s / connections * 1e6


def _node_crowd(cores: Cores, options: Options) -> Crowd:
    """Memory before and after a crowd connects, then a push that every connection has to receive."""
    count = options.connections
    with (
        running_node(cores, options.data_parent) as (_node, door),
        LoadProcess("bench.load.parked:Parked", door, cores, core=cores.load) as parked,
    ):
        users = parked.call("prepare", count, "first")
        before = resident_bytes(door.pid)
        busy = parked.call("open")
        time.sleep(SETTLE_S)
        after = resident_bytes(door.pid)
        _prove_push(door, parked, users)
        pushed = resident_bytes(door.pid)
    return Crowd(
        user_bytes=(after - before) / count,
        connect_cpu_us=_connect_cpu_us(busy, count),
        busy=busy,
        after_push_bytes=(pushed - before) / count,
    )


def _prove_push(door: Door, parked: LoadProcess, users: list[str]) -> None:
    """Put everybody into a group of 1,000 and see that each connection gets the message sent there."""
    with SetupClient(door, "bench-sender") as sender:
        groups = [sender.create_group(users[at : at + PROOF_MEMBERS]) for at in range(0, len(users), PROOF_MEMBERS)]
        sender.ask_many([Send(sender.next_id(), group, "proof", PROOF) for group in groups])
        parked.call("prove_push", PROOF.encode())


def _waves(cores: Cores, options: Options) -> dict[str, float]:
    """Growth per connection from each full crowd to the next, of other users, after all of the one before left."""
    count = options.connections
    names = ("first", "second", "third") if options.later_wave else ("first", "second")
    resident = {}
    with (
        running_node(cores, options.data_parent) as (node, door),
        LoadProcess("bench.load.parked:Parked", door, cores, core=cores.load) as parked,
    ):
        for name in names:
            if name == "third":
                time.sleep(limits.PRESENCE_GRACE_S + SETTLE_S)
            parked.call("prepare", count, name)
            parked.call("open")
            time.sleep(SETTLE_S)
            resident[name] = resident_bytes(door.pid)
            parked.call("prove_echo")
            parked.call("close")
            wait_until(
                lambda: _connected(node) == 0, timeout_s=LEAVE_TIMEOUT_S, what="the node notices that all have left"
            )
    growth = {"second_wave_growth_bytes": (resident["second"] - resident["first"]) / count}
    if options.later_wave:
        growth["later_wave_growth_bytes"] = (resident["third"] - resident["second"]) / count
    return growth


def _connected(node: NodeProcess) -> float:
    metrics = read_metrics(node)
    if "tidegate_connections" not in metrics:
        raise BenchError("the node's /metrics has no tidegate_connections")
    return metrics["tidegate_connections"]


def _peer_crowd(peer: str, cores: Cores, count: int) -> Crowd:
    """The same crowd on a peer: a bare upgrade, and a handler that waits; then one echo each."""
    module, needs = PEERS[peer]
    with (
        PeerProcess(module, "echo", core=cores.server, needs=needs) as server,
        LoadProcess(
            "bench.load.parked:Parked", Door(server.host, server.port, server.pid), cores, core=cores.load
        ) as parked,
    ):
        parked.call("prepare", count, "first")
        before = resident_bytes(server.pid)
        busy = parked.call("open")
        time.sleep(SETTLE_S)
        after = resident_bytes(server.pid)
        parked.call("prove_echo")
    return Crowd((after - before) / count, _connect_cpu_us(busy, count), busy)
