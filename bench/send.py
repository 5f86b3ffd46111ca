"""How many 1:1 messages a second a node makes durable, acknowledges and delivers, and how long a delivery takes."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from msgspec import Struct

from bench.errors import BenchError
from bench.load.accounts import Door, user_names
from bench.load.messages import SendTemplate
from bench.load.pairs import SendSample
from bench.load.process import LoadProcess
from bench.load.setup import SetupClient
from bench.machine import Cores, choose_cores, together
from bench.node import disk_directory, read_metrics, running_node
from bench.processes import NodeProcess

SETTLE_S = 1.0
"""Seconds of load before a window begins."""

FIXED_RATES_PER_S = (7_500, 15_000)
"""Sends a second of the windows with a fixed load: half of what a node has to take at least, and half of what it is
meant to take (bench/requirements.py). Half of what it does take grows with each thing that becomes cheaper for many
sends at once; what a send takes at these rates can be compared."""

BARE_S = 2.0
"""Seconds of bare commits in each turn."""


class Options(Struct, frozen=True):
    """``pairs`` of users; ``window`` sends of each unacknowledged; ``repeats`` windows of ``seconds``."""

    pairs: int = 500
    window: int = 8
    seconds: float = 4.0
    repeats: int = 3
    data_parent: Path | None = None


class _Commits(Struct, frozen=True):
    """What the node's store was given so far: batches, and entries in them."""

    count: float
    entries: float


def measure(options: Options) -> dict[str, Any]:
    """Run the benchmark; the keys are those of the table in bench/README.md."""
    cores = choose_cores()
    with ExitStack() as stack:
        node, door = stack.enter_context(running_node(cores, options.data_parent))
        load, entry_bytes = connect_pairs(stack, door, cores, options.pairs)
        saturated: list[SendSample] = []
        bare: list[tuple[float, float]] = []
        before = _commits(node)
        for _ in range(options.repeats):
            saturated.append(load.call("saturate", options.window, SETTLE_S, options.seconds))
            done = _commits(node)
            batch = max(1, round((done.entries - before.entries) / (done.count - before.count)))
            bare.append(_bare_commits(cores, options.data_parent, entry_bytes, batch))
        rate = median(sample.delivered / sample.busy.wall_s for sample in saturated)
        half = [load.call("paced", rate / 2, SETTLE_S, options.seconds) for _ in range(options.repeats)]
        fixed = {
            str(rate): [load.call("paced", float(rate), SETTLE_S, options.seconds) for _ in range(options.repeats)]
            for rate in FIXED_RATES_PER_S
        }
    bare_rate = median(rows_per_s for rows_per_s, _ in bare)
    return {
        "pairs": options.pairs,
        "window_per_sender": options.window,
        "entry_bytes": entry_bytes,
        "sends_per_s": rate,
        "sends_per_cpu_s": median(s.delivered / (s.busy.wall_s * s.busy.server) for s in saturated),
        **latency_ms(saturated),
        "ratio": rate / bare_rate,
        "bare_commits_per_s": bare_rate,
        "bare_commits_per_cpu_s": median(rows_per_cpu_s for _, rows_per_cpu_s in bare),
        "entries_per_batch": batch,
        "half_load": under_load(half),
        "fixed_load": {rate: under_load(samples) for rate, samples in fixed.items()},
        "busy": {
            "node": together([sample.busy for sample in saturated]),
            "node_half_load": together([sample.busy for sample in half]),
            **{f"node_{rate}_per_s": together([sample.busy for sample in samples]) for rate, samples in fixed.items()},
        },
    }


def under_load(samples: list[SendSample]) -> dict[str, float]:
    """What windows at a given rate gave."""
    return {
        "sends_per_s": median(sample.delivered / sample.busy.wall_s for sample in samples),
        **latency_ms(samples),
    }


def latency_ms(samples: list[SendSample]) -> dict[str, float]:
    """Median over the windows of each window's percentiles, milliseconds."""
    cuts = [quantiles(sample.latencies_ns, n=1000) for sample in samples]
    places = {"p50": 499, "p99": 989, "p999": 998}
    return {f"delivery_{name}_ms": median(cut[at] for cut in cuts) / 1e6 for name, at in places.items()}


def connect_pairs(
    stack: ExitStack,
    door: Door,
    cores: Cores,
    pairs: int,
    *,
    wave: str = "",
    receivers_door: Door | None = None,
    backends: Sequence[int] = (),
) -> tuple[LoadProcess, int]:
    """All conversations created and both ends of each connected; and the bytes of one stored entry.

    Args:
        stack: what ends with the caller.
        door: where the sending ends connect.
        cores: where nodes and load run.
        pairs: how many.
        wave: sets their users apart from others of the same store.
        receivers_door: where the receiving ends connect; by default where the others do.
        backends: see Meter.
    """
    senders, receivers = user_names(pairs, f"senders{wave}"), user_names(pairs, f"receivers{wave}")
    conversations = []
    for sender, receiver in zip(senders, receivers, strict=True):
        with SetupClient(door, sender) as setup:
            conversations += setup.create_direct(receiver)
    load = stack.enter_context(
        LoadProcess(
            "bench.load.pairs:Pairs", door, cores, senders, receivers, conversations,
            receivers_door=receivers_door, backends=backends, core=cores.load,
        )
    )  # fmt: skip
    return load, SendTemplate(conversations[0], senders[0]).entry_bytes


def _commits(node: NodeProcess) -> _Commits:
    """Batches that the node's owner has handed to its store, and entries that became durable."""
    metrics = read_metrics(node)
    try:
        return _Commits(metrics["tidegate_append_batches_total"], metrics["tidegate_entries_appended_total"])
    except KeyError as error:
        raise BenchError(f"the node's /metrics has no {error}") from None


def _bare_commits(cores: Cores, parent: Path | None, row_bytes: int, batch: int) -> tuple[float, float]:
    """Rows per second, and per processor second, of SQLite alone on the server's core."""
    directory = Path(tempfile.mkdtemp(prefix="tidegate-bench-", dir=parent or disk_directory()))
    try:
        return bare_rate(cores, "bare_commits", str(directory / "bare.db"), str(row_bytes), str(batch), str(BARE_S))
    finally:
        shutil.rmtree(directory)


def bare_rate(cores: Cores, peer: str, *arguments: str) -> tuple[float, float]:
    """Rows per second, and per processor second, that a peer on the server's core prints before it ends."""
    done = subprocess.run(
        [sys.executable, "-m", f"bench.peers.{peer}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[1],
        preexec_fn=lambda: os.sched_setaffinity(0, {cores.server}),
    )
    if done.returncode:
        raise BenchError(f"{peer.replace('_', ' ')} failed: {done.stderr.strip()[-500:]}")
    rows_per_s, rows_per_cpu_s = done.stdout.split()
    return float(rows_per_s), float(rows_per_cpu_s)
