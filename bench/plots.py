"""Plots of saved results: ``python -m bench.plots`` reads bench/results and writes bench/plots."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import msgspec

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.report import number

RESULTS = Path(__file__).parent / "results"
PLOTS = Path(__file__).parent / "plots"

NODE_COLOUR = "#0b6e8f"
PEER_COLOUR = "#b8bfc6"
LIMIT_COLOUR = "#8a6d3b"
INK = "#2f3437"

NAMES = {
    "node": "tidegate",
    "websockets": "websockets on uvloop",
    "picows": "picows on uvloop",
    "bare_writes": "bare os.write loop",
}
"""How the servers are called in plots, where not by their key."""

Result = Mapping[str, Any]


def load_results(directory: Path) -> dict[str, Result]:
    """All saved results, by file name without its ending."""
    return {path.stem: msgspec.json.decode(path.read_bytes()) for path in sorted(directory.glob("*.json"))}


def draw_all(results: Mapping[str, Result], directory: Path) -> list[Path]:
    """Draw what there are results for; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    drawers = {
        "crowd": crowd,
        "density": density,
        "roundtrip": roundtrip,
        "fanout": fanout,
        "send": send,
        "stall": stall,
        "upgrade": upgrade,
        "send_cassandra": send_cassandra,
        "send_cross": send_cross,
        "takeover": takeover,
        "storm": storm,
    }
    paths = []
    for name, result in results.items():
        path = directory / f"{name}.png"
        drawers[result["bench"]](result, path)
        paths.append(path)
    return paths


def density(result: Result, path: Path) -> None:
    """Memory and processor time of a connection, beside the peers'."""
    figure, (memory, time) = plt.subplots(1, 2, figsize=(11, 3.2))
    servers = _servers(result)
    _bars(memory, {name: figures["user_bytes_per_connection"] for name, figures in servers.items()})
    memory.set_title("bytes of user-space memory a connection")
    _bars(time, {name: figures["connect_cpu_us"] for name, figures in servers.items()})
    time.set_title("microseconds of CPU to connect one")
    figure.suptitle(f"{result['connections']:,} parked connections; tidegate's are authenticated, the peers' bare")
    _write(figure, path)


def crowd(result: Result, path: Path) -> None:
    """How many connections several nodes held behind one port, and what each took."""
    figure, (held, memory) = plt.subplots(1, 2, figsize=(11, 2.2))
    _bars(
        held,
        {
            "all nodes": result["held"],
            "the node with most": result["most_on_one_node"],
            "the node with fewest": result["fewest_on_one_node"],
        },
        accent=lambda name: name == "all nodes",
    )
    held.set_title("connections that are alive")
    _bars(memory, {"node": result["user_bytes_per_connection"], "must be at most": 512, "is to be": 256})
    memory.set_title("bytes of user-space memory a connection")
    figure.suptitle(f"{result['connections']:,} parked connections on {result['processes']} nodes behind one port")
    _write(figure, path)


def roundtrip(result: Result, path: Path) -> None:
    """Processor time of the smallest exchange."""
    figure, axes = plt.subplots(figsize=(7, 2.4))
    _bars(axes, {name: figures["cpu_us"] for name, figures in _servers(result).items()})
    axes.set_title(
        f"microseconds of server CPU a roundtrip, {result['busy_connections']} busy among {result['parked']:,} parked"
    )
    _write(figure, path)


def fanout(result: Result, path: Path) -> None:
    """Deliveries of one conversation, one entry in flight and four."""
    figure, (single, burst) = plt.subplots(1, 2, figsize=(11, 3.8))
    servers = _servers(result)
    _bars(single, {name: figures["deliveries_per_cpu_s"] for name, figures in servers.items()})
    single.set_title("one entry in flight: deliveries per second of server CPU")
    _bars(burst, {name: figures["burst_deliveries_per_s"] for name, figures in servers.items()})
    burst.set_title("four entries in flight: deliveries per second")
    figure.suptitle(f"one conversation, {result['members']:,} connected members; tidegate stores each entry first")
    _write(figure, path)


def send(result: Result, path: Path) -> None:
    """Durable sends, and the delay of their deliveries."""
    title = f"1:1 messages of {result['pairs']} pairs: fsynced, acknowledged, delivered"
    _rate_and_delays(result, "bare SQLite commits", result["bare_commits_per_s"], title, path)


def send_cassandra(result: Result, path: Path) -> None:
    """The same with Cassandra behind the node, on the same two cores."""
    title = f"1:1 messages of {result['pairs']} pairs: written by Cassandra, acknowledged, delivered"
    _rate_and_delays(result, "bare inserts of the driver", result["bare_inserts_per_s"], title, path)


def _rate_and_delays(result: Result, limit: str, limit_per_s: float, title: str, path: Path) -> None:
    figure, (rate, delay) = plt.subplots(1, 2, figsize=(11, 2.6))
    _bars(rate, {"node": result["sends_per_s"], limit: limit_per_s})
    rate.set_title("durable sends a second")
    delays = {"median": "delivery_p50_ms", "99 %": "delivery_p99_ms", "99.9 %": "delivery_p999_ms"}
    fixed = result.get("fixed_load", {})
    _bars(
        delay,
        {f"{name}, saturated": result[key] for name, key in delays.items()}
        | {f"{name}, half that load": result["half_load"][key] for name, key in delays.items()}
        | {f"{name}, {int(rate):,}/s": fixed[rate][key] for rate in fixed for name, key in delays.items()},
        accent=lambda name: "half" in name,
    )
    delay.set_title("milliseconds from send to delivery")
    figure.suptitle(title)
    _write(figure, path)


def send_cross(result: Result, path: Path) -> None:
    """What the way between two nodes costs."""
    figure, (delay, time) = plt.subplots(1, 2, figsize=(11, 2.2))
    _bars(
        delay,
        {
            "median": result["delivery_p50_ms"],
            "99 %": result["delivery_p99_ms"],
            "99 %, all on one node": result["alone_delivery_p99_ms"],
        },
        accent=lambda name: "one" not in name,
    )
    delay.set_title("milliseconds from send to delivery on the other node")
    _bars(
        time,
        {
            "two nodes, together": result["both_nodes_cpu_us"],
            "one node, the same load": result["node_alone_cpu_us"],
            "the hop, each node": result["hop_cpu_us"],
        },
        accent=lambda name: "hop" in name,
    )
    time.set_title("microseconds of CPU a message")
    figure.suptitle(f"senders on one node, recipients on the other, {result['sends_per_s']:,.0f} messages/s")
    _write(figure, path)


def takeover(result: Result, path: Path) -> None:
    """When the conversations of a killed node answer again."""
    figure, axes = plt.subplots(figsize=(7, 2.2))
    _bars(
        axes,
        {
            "the last one answers": result["takeover_s"],
            "the first one answers": result["first_answer_s"],
            "lease": result["lease_s"],
        },
        accent=lambda name: name.startswith("the last"),
    )
    axes.set_title(f"seconds from a kill, {result['orphaned_conversations']:,} conversations of the killed node")
    _write(figure, path)


def storm(result: Result, path: Path) -> None:
    """When clients that were dropped at once are back, and what others notice."""
    figure, (back, waits) = plt.subplots(1, 2, figsize=(11, 2.4))
    seconds = {"half of them": "back_p50_s", "99 %": "back_p99_s", "all": "all_back_s"}
    _bars(back, {name: result[key] for name, key in seconds.items()}, accent=lambda name: name == "all")
    back.set_title("seconds until they are back")
    milliseconds = {
        "median": "others_send_p50_ms",
        "99 %": "others_send_p99_ms",
        "median, before": "quiet_send_p50_ms",
        "99 %, before": "quiet_send_p99_ms",
    }
    _bars(waits, {name: result[key] for name, key in milliseconds.items()}, accent=lambda name: "before" not in name)
    waits.set_title("milliseconds that others' sends wait")
    figure.suptitle(
        f"{result['clients']:,} clients of {result['conversations_each']} conversations dropped at once;"
        f" {result['store_reads_per_client']:.2f} store reads each"
    )
    _write(figure, path)


def stall(result: Result, path: Path) -> None:
    """How long anybody waits for the loop."""
    figure, axes = plt.subplots(figsize=(7, 2.6))
    _bars(
        axes,
        {
            "longest pass of the loop": result["longest_stall_ms"],
            "ping to pong, longest": result["heartbeat_max_ms"],
            "ping to pong, 99 %": result["heartbeat_p99_ms"],
            "ping to pong, longest when idle": result["idle_heartbeat_max_ms"],
        },
        accent=lambda name: name.startswith("longest"),
    )
    axes.set_title(
        f"milliseconds, {result['connections']:,} connections,"
        f" {result['deliveries_per_s']:,.0f} deliveries/s, {result['connects_per_s']:,.0f} connects/s"
    )
    _write(figure, path)


def upgrade(result: Result, path: Path) -> None:
    """How long a live upgrade keeps anybody waiting."""
    figure, axes = plt.subplots(figsize=(7, 2.2))
    _bars(
        axes,
        {
            "longest wait of a send": result["longest_send_wait_ms"],
            "nothing read": result["paused_ms"],
            "loop standing still": result["stood_still_ms"],
        },
        accent=lambda name: name.startswith("longest"),
    )
    axes.set_title(f"milliseconds, {result['connections']:,} connections, {result['sends_per_s']:,} sends/s")
    _write(figure, path)


def _servers(result: Result) -> dict[str, Mapping[str, float]]:
    """The node's figures and each peer's, by server."""
    return {"node": result, **result["peers"]}


def _is_node(name: str) -> bool:
    return name == "node"


def _bars(axes: Axes, values: Mapping[str, float], *, accent: Any = _is_node) -> None:
    """Horizontal bars with their figures at the end, the first on top."""
    names = [NAMES.get(name, name) for name in values]
    colours = [
        NODE_COLOUR if accent(name) else LIMIT_COLOUR if name.startswith("bare") else PEER_COLOUR for name in values
    ]
    bars = axes.barh(names, list(values.values()), color=colours, height=0.62)
    axes.bar_label(bars, [number(value) for value in values.values()], padding=4, color=INK, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.xaxis.set_visible(False)
    axes.tick_params(left=False, labelsize=9, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.title.set_fontsize(10)
    axes.title.set_color(INK)


def _write(figure: Any, path: Path) -> None:
    if figure.get_suptitle():
        figure.suptitle(figure.get_suptitle(), fontsize=11, fontweight="bold", color=INK)
    figure.set_layout_engine("constrained", h_pad=0.08)
    figure.savefig(path, dpi=110, metadata={"Software": None})  # no version in the file: equal plots are equal files
    plt.close(figure)


if __name__ == "__main__":
    for written in draw_all(load_results(RESULTS), PLOTS):
        print(written)
