"""What the smallest command and its reply cost a server, with a parked crowd around the busy ones."""

from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from msgspec import Struct

from bench.errors import PeerMissing
from bench.load.accounts import Door
from bench.load.process import LoadProcess
from bench.machine import Busy, Cores, choose_cores, together
from bench.node import running_node
from bench.peers.process import PeerProcess

PEERS = {"picows": "picows_uvloop", "websockets": "websockets_uvloop"}


class Options(Struct, frozen=True):
    """``busy`` closed loops among ``parked`` idle connections, for ``seconds``, ``repeats`` times in turn."""

    parked: int = 10_000
    busy: int = 200
    seconds: float = 1.5
    repeats: int = 5
    data_parent: Path | None = None


def measure(options: Options) -> dict[str, Any]:
    """Run the benchmark; the keys are those of the table in bench/README.md."""
    cores = choose_cores()
    missing: list[str] = []
    with ExitStack() as stack:
        _node, door = stack.enter_context(running_node(cores, options.data_parent))
        loads = {"node": _load(stack, door, cores, options)}
        for peer, module in PEERS.items():
            try:
                server = stack.enter_context(PeerProcess(module, "echo", core=cores.server, needs=(peer, "uvloop")))
            except PeerMissing as error:
                missing.append(str(error))
            else:
                loads[peer] = _load(stack, Door(server.host, server.port, server.pid), cores, options)
        samples = _in_turn(loads, options)
        for load in loads.values():
            load.call("check_parked")
    figures = {
        name: {
            "cpu_us": median(busy.server * busy.wall_s / made * 1e6 for made, busy in runs),
            "roundtrips_per_s": median(made / busy.wall_s for made, busy in runs),
        }
        for name, runs in samples.items()
    }
    node = figures.pop("node")
    return {
        "parked": options.parked,
        "busy_connections": options.busy,
        **node,
        "ratio": node["cpu_us"] / figures["picows"]["cpu_us"] if "picows" in figures else None,
        "websockets_ratio": node["cpu_us"] / figures["websockets"]["cpu_us"] if "websockets" in figures else None,
        "peers": figures,
        "missing": missing,
        "busy": {name: together([busy for _made, busy in runs]) for name, runs in samples.items()},
    }


def _load(stack: ExitStack, door: Door, cores: Cores, options: Options) -> LoadProcess:
    return stack.enter_context(
        LoadProcess("bench.load.roundtrip:Roundtrips", door, cores, options.parked, options.busy, core=cores.load)
    )


def _in_turn(loads: dict[str, LoadProcess], options: Options) -> dict[str, list[tuple[int, Busy]]]:
    """One window of each, round and round: what disturbs the machine meanwhile disturbs them alike."""
    samples: dict[str, list[tuple[int, Busy]]] = {name: [] for name in loads}
    for _ in range(options.repeats):
        for name, load in loads.items():
            samples[name].append(load.call("run", options.seconds))
    return samples
