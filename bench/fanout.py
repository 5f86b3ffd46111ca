"""How fast one entry reaches all connected members of a conversation."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from msgspec import Struct

from bench.errors import PeerMissing
from bench.load.accounts import Door, user_names
from bench.load.messages import SendTemplate
from bench.load.process import LoadProcess
from bench.load.setup import SetupClient
from bench.load.wire import client_frame, payload_of
from bench.machine import Busy, Cores, Meter, choose_cores, together
from bench.node import running_node
from bench.peers.brokers import running_broker
from bench.peers.process import PeerProcess

BURST = 4
"""Entries in flight in the burst."""

DELIVERIES_PER_WINDOW = 200_000
"""How long a window is: this many deliveries, one or two seconds (times BURST in the burst)."""

SENDER = "bench-sender"
NEIGHBOUR = "bench-neighbour"


class Options(Struct, frozen=True):
    """Connected ``members`` of one conversation; ``repeats`` windows of each contestant, in turn.

    Beside it somebody chats in a conversation of two, for ``neighbour_s`` seconds alone and as long during a burst.
    """

    members: int = 1_000
    repeats: int = 9
    neighbour_s: float = 3.0
    deliveries_per_window: int = DELIVERIES_PER_WINDOW
    data_parent: Path | None = None


class Sample(Struct, frozen=True):
    """One window: ``deliveries`` made while the meter ran, from the first send until all readers had everything."""

    deliveries: int
    busy: Busy

    @property
    def per_s(self) -> float:
        """Deliveries per second of wall time."""
        return self.deliveries / self.busy.wall_s

    @property
    def per_cpu_s(self) -> float:
        """Deliveries per second of the server's processor time."""
        return self.deliveries / (self.busy.wall_s * self.busy.server)


class Contestant:
    """A server, its readers and its sender."""

    def __init__(self, door: Door, cores: Cores, members: int, frame_bytes: int) -> None:
        """``frame_bytes``: what one delivery has on the wire."""
        self.door, self._cores = door, cores
        self._members, self._frame_bytes = members, frame_bytes
        self.readers: LoadProcess
        self.sender: LoadProcess

    def window(self, deliveries: int, in_flight: int) -> Sample:
        """Send until so many deliveries (at least) are made, ``in_flight`` entries at a time."""
        rounds = max(1, deliveries // (self._members * in_flight))
        entries = rounds * in_flight
        self.readers.begin("receive", entries * self._frame_bytes)
        meter = Meter(self.door.pid, self.readers.pid, self.sender.pid, cores=self._cores)
        self.sender.call("run", rounds, in_flight)
        self.readers.finish()
        return Sample(entries * self._members, meter.stop())


def measure(options: Options) -> dict[str, Any]:
    """Run the benchmark; the keys are those of the table in bench/README.md."""
    cores = choose_cores()
    missing: list[str] = []
    with ExitStack() as stack:
        node, neighbour, frame_bytes = _node(stack, cores, options)
        contestants = {"node": node}
        for name, start in PEERS.items():
            try:
                contestants[name] = start(stack, cores, options, frame_bytes)
            except PeerMissing as error:
                missing.append(str(error))
        single = _in_turn(contestants, options, in_flight=1)
        burst = _in_turn(contestants, options, in_flight=BURST)
        beside = _beside(node, neighbour, options)
    return _figures(options, frame_bytes, single, burst) | beside | {"missing": missing}


def _beside(node: Contestant, neighbour: LoadProcess, options: Options) -> dict[str, float]:
    """How long a neighbour waits for acknowledgements, alone and while the fan-out takes all that the node has."""
    alone = neighbour.call("run", options.neighbour_s)
    neighbour.begin("run", options.neighbour_s)
    while not neighbour.answered:
        node.window(options.deliveries_per_window, BURST)
    busy = neighbour.finish()
    return {
        "neighbour_ack_p50_ms": quantiles(busy, n=100)[49] / 1e6,
        "neighbour_ack_p99_ms": quantiles(busy, n=100)[98] / 1e6,
        "neighbour_alone_ack_p99_ms": quantiles(alone, n=100)[98] / 1e6,
    }


def _in_turn(contestants: dict[str, Contestant], options: Options, in_flight: int) -> dict[str, list[Sample]]:
    """One window of each, round and round; the first round warms up and does not count."""
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    for repeat in range(options.repeats + 1):
        for name, contestant in contestants.items():
            sample = contestant.window(options.deliveries_per_window * (in_flight if repeat else 1), in_flight)
            if repeat:
                samples[name].append(sample)
    return samples


def _figures(
    options: Options, frame_bytes: int, single: dict[str, list[Sample]], burst: dict[str, list[Sample]]
) -> dict[str, Any]:
    wall = {name: median(sample.per_s for sample in samples) for name, samples in single.items()}
    cpu = {name: median(sample.per_cpu_s for sample in samples) for name, samples in single.items()}
    burst_wall = {name: median(sample.per_s for sample in samples) for name, samples in burst.items()}
    burst_cpu = {name: median(sample.per_cpu_s for sample in samples) for name, samples in burst.items()}
    return {
        "members": options.members,
        "frame_bytes": frame_bytes,
        "deliveries_per_s": wall["node"],
        "deliveries_per_cpu_s": cpu["node"],
        "ratio": _ratio(single, "node", "websockets"),
        "bare_ratio": _ratio(single, "bare_writes", "websockets"),
        "limit_ratio": _ratio(single, "node", "bare_writes"),
        "burst_deliveries_per_s": burst_wall["node"],
        "burst_deliveries_per_cpu_s": burst_cpu["node"],
        "burst_limit_ratio": _ratio(burst, "node", "bare_writes"),
        "peers": {
            name: {
                "deliveries_per_s": wall[name],
                "deliveries_per_cpu_s": cpu[name],
                "burst_deliveries_per_s": burst_wall[name],
                "burst_deliveries_per_cpu_s": burst_cpu[name],
            }
            for name in wall
            if name != "node"
        },
        "busy": {name: together([sample.busy for sample in samples]) for name, samples in single.items()}
        | {f"{name}_burst": together([sample.busy for sample in samples]) for name, samples in burst.items()},
    }


def _ratio(samples: dict[str, list[Sample]], one: str, other: str) -> float | None:
    """Deliveries for a second of processor time, ``one`` to the ``other``; None where a peer is missing.

    The median of the rounds' ratios: the machine is not the same for long, and within a round nearly is.
    """
    if other not in samples:
        return None
    rounds = zip(samples[one], samples[other], strict=True)
    return median(mine.per_cpu_s / theirs.per_cpu_s for mine, theirs in rounds)


def _node(stack: ExitStack, cores: Cores, options: Options) -> tuple[Contestant, LoadProcess, int]:
    """A node with one conversation of all members, its head so high that every push has one size; and a neighbour."""
    _process, door = stack.enter_context(
        running_node(cores, options.data_parent, "--group-members-max", str(options.members + 1))
    )
    members = user_names(options.members, "fanout")
    with SetupClient(door, SENDER) as setup:
        group, head_seq = setup.create_long_group(members)
    frame_bytes = SendTemplate(group, SENDER).push_bytes
    contestant = Contestant(door, cores, options.members, frame_bytes)
    contestant.readers = _readers(stack, door, cores, members)
    contestant.sender = stack.enter_context(
        LoadProcess("bench.load.fanout:NodeSender", door, SENDER, group, head_seq, core=cores.load)
    )
    with SetupClient(door, NEIGHBOUR) as setup:
        [calm] = setup.create_direct("bench-friend")
    neighbour = stack.enter_context(
        LoadProcess("bench.load.neighbour:Neighbour", door, NEIGHBOUR, calm, core=cores.load)
    )
    return contestant, neighbour, frame_bytes


def _peer(
    stack: ExitStack, cores: Cores, options: Options, frame_bytes: int, module: str, *arguments: str
) -> Contestant:
    """A peer of ours that speaks WebSocket."""
    needs = {"websockets_uvloop": ("websockets", "uvloop"), "picows_uvloop": ("picows", "uvloop")}.get(module, ())
    server = stack.enter_context(PeerProcess(module, *arguments, core=cores.server, needs=needs))
    door = Door(server.host, server.port, server.pid)
    contestant = Contestant(door, cores, options.members, frame_bytes)
    contestant.readers = _readers(stack, door, cores, user_names(options.members, "fanout"))
    contestant.sender = stack.enter_context(
        LoadProcess("bench.load.fanout:PlainSender", door, payload_of(frame_bytes), core=cores.load)
    )
    return contestant


def _websockets(stack: ExitStack, cores: Cores, options: Options, frame_bytes: int) -> Contestant:
    return _peer(stack, cores, options, frame_bytes, "websockets_uvloop", "fanout")


def _picows(stack: ExitStack, cores: Cores, options: Options, frame_bytes: int) -> Contestant:
    return _peer(stack, cores, options, frame_bytes, "picows_uvloop", "fanout")


def _bare_writes(stack: ExitStack, cores: Cores, options: Options, frame_bytes: int) -> Contestant:
    trigger_bytes = len(client_frame(bytes(payload_of(frame_bytes))))
    return _peer(stack, cores, options, frame_bytes, "bare_writes", str(frame_bytes), str(trigger_bytes))


def _broker(name: str, stack: ExitStack, cores: Cores, options: Options, frame_bytes: int) -> Contestant:
    door = stack.enter_context(running_broker(name, cores.server))
    contestant = Contestant(door, cores, options.members, frame_bytes)
    contestant.readers = stack.enter_context(
        LoadProcess("bench.load.brokers:BrokerReaders", door, name, options.members, frame_bytes, core=cores.load)
    )
    contestant.sender = stack.enter_context(
        LoadProcess("bench.load.brokers:BrokerSender", door, name, frame_bytes, core=cores.load)
    )
    return contestant


def _readers(stack: ExitStack, door: Door, cores: Cores, members: list[str]) -> LoadProcess:
    return stack.enter_context(LoadProcess("bench.load.fanout:Readers", door, members, core=cores.load))


PEERS: dict[str, Callable[[ExitStack, Cores, Options, int], Contestant]] = {
    "websockets": _websockets,
    "picows": _picows,
    "bare_writes": _bare_writes,
    "nats-server": partial(_broker, "nats-server"),
    "mosquitto": partial(_broker, "mosquitto"),
}
