"""``tidegate bench``: measure a node and its peers on this machine."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from gateway.cli.errors import FAILURE, UNAVAILABLE, CliError

NAMES: Final = ("density", "roundtrip", "fanout", "send", "stall", "storm", "takeover", "upgrade")


@click.group(
    epilog="Ratios count, not absolute figures: peers run on the same core in the same run. Quiet the machine first;"
    " each result says how busy server, load generator and everybody else were. See bench/README.md."
)
def command() -> None:
    """Measure a node and its peers on this machine.

    Servers run on the first processor core this process may use, load generators on the second. The node is started
    for the benchmark, in a data directory of its own that is removed afterwards.
    """


def _output_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of a table"),
        click.option(
            "--save",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="DIR",
            help="also write the result to DIR, as one JSON file for plots",
        ),
        click.option(
            "--data-parent",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            metavar="DIR",
            help="where the node's data directory is made; it should be on a disk  [default: the temporary directory]",
        ),
    ):
        function = option(function)
    return function


def _count(
    name: str, default: int, help_text: str, least: int = 1
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(f"--{name}", type=click.IntRange(least), default=default, show_default=True, help=help_text)


@command.command()
@_count("connections", 10_000, "connections at once; at most about 19,000 where a process may have 20,000 descriptors")
@_count("processes", 1, "nodes behind one port; with several, the crowd is held by them together, and no peers run")
@_count("repeats", 3, "measurements of the node and of websockets, in turn; medians count")
@click.option("--later-wave", is_flag=True, help="a third crowd, when the second is forgotten: half a minute more")
@_output_options
def density(as_json: bool, save: Path | None, processes: int = 1, **options: Any) -> None:
    """Memory and processor time of a parked connection: authenticated, idle, able to receive."""
    if processes > 1:
        crowd = {key: options[key] for key in ("connections", "data_parent")} | {"processes": processes}
        _run("crowd", crowd, as_json, save, f"crowd-{options['connections']}")
        return
    _run("density", options, as_json, save, f"density-{options['connections']}")


@command.command()
@_count("parked", 10_000, "idle connections around the busy ones")
@_count("busy", 200, "connections that always have one command under way")
@_count("repeats", 5, "windows of each server, in turn; medians count")
@_output_options
def roundtrip(as_json: bool, save: Path | None, **options: Any) -> None:
    """Processor time of the smallest command and its reply, beside a parked crowd."""
    _run("roundtrip", options, as_json, save, "roundtrip")


@command.command()
@_count("members", 1_000, "connected members of one conversation; above 1,024 its limit is raised for it", least=200)
@_count("repeats", 9, "windows of each server, in turn; medians count")
@_output_options
def fanout(as_json: bool, save: Path | None, **options: Any) -> None:
    """Deliveries a second of one conversation to all its members, one entry in flight and four."""
    _run("fanout", options, as_json, save, f"fanout-{options['members']}")


@command.command()
@_count("pairs", 500, "pairs of users, each with a conversation of their own")
@click.option(
    "--window", type=click.IntRange(1), help="sends that each sender has unacknowledged  [default: 8; with --cross 2]"
)
@_count("repeats", 3, "windows; medians count")
@click.option(
    "--store",
    type=click.Choice(["embedded", "cassandra"]),
    help="where the node keeps its conversations; cassandra and a Redis are started for it  [default: embedded]",
)
@click.option("--nodes", type=click.IntRange(1, 2), default=1, show_default=True, help="nodes of one cluster")
@click.option("--cross", is_flag=True, help="with two nodes: senders are connected to one, recipients to the other")
@_output_options
def send(
    as_json: bool,
    save: Path | None,
    store: str | None,
    window: int | None,
    nodes: int = 1,
    cross: bool = False,
    **options: Any,
) -> None:
    """1:1 messages a second, each durable, acknowledged and delivered; and the delay at half that load."""
    if cross != (nodes > 1):
        raise click.UsageError("--nodes 2 and --cross go together: with one node there is nothing to cross")
    if nodes > 1 and store == "embedded":
        raise click.UsageError("several nodes need --store cassandra: an embedded store belongs to one node")
    options["window"] = window or (2 if cross else 8)
    if nodes > 1:
        _run("send_cross", options, as_json, save, "send-cross")
    elif store == "cassandra":
        _run("send_cassandra", options, as_json, save, "send-cassandra")
    else:
        _run("send", options, as_json, save, "send")


@command.command()
@_count("connections", 19_000, "connections in all")
@_count("members", 1_000, "of them in the conversation that is sent to")
@_count("seconds", 60, "how long; the node tells its longest stall of the last minute")
@_output_options
def stall(as_json: bool, save: Path | None, **options: Any) -> None:
    """The longest time that the node's event loop keeps anybody waiting, under a mixed load."""
    _run("stall", options, as_json, save, "stall")


@command.command()
@_count("connections", 19_000, "connections in all")
@_count("pairs", 100, "pairs of users among them who send to each other meanwhile")
@_count("sends-per-s", 500, "sends a second, of all pairs together")
@_count("repeats", 3, "upgrades in a row, each of the process before; the longest wait of all of them counts")
@click.option(
    "--store",
    type=click.Choice(["embedded", "cassandra"]),
    default="embedded",
    show_default=True,
    help="with cassandra the node is one of two of a cluster; a Cassandra and a Redis are started for it",
)
@_output_options
def upgrade(as_json: bool, save: Path | None, store: str = "embedded", **options: Any) -> None:
    """The longest that a send waits while the node goes on in a new process, and who is lost."""
    name = "upgrade" if store == "embedded" else f"upgrade-{store}"
    _run("upgrade", options | {"store": store}, as_json, save, name)


@command.command()
@_count("clients", 20_000, "clients dropped at once, a multiple of 20; at most about 18,900 for each node")
@_count("conversations", 20, "conversations of each client")
@_count("nodes", 2, "nodes that they come back to: one or two")
@_count("pairs", 50, "pairs of other users who go on sending meanwhile")
@_count("sends-per-s", 200, "sends a second, of all pairs together")
@_output_options
def storm(as_json: bool, save: Path | None, **options: Any) -> None:
    """Everybody is dropped and comes back at once: what that costs Cassandra, and what others notice of it."""
    _run("storm", options, as_json, save, "storm")


@command.command()
@_count("conversations", 2_000, "conversations of one user, spread over both nodes")
@_count("repeats", 3, "kills of the same node, which comes back in between; the slowest takeover of all counts")
@_output_options
def takeover(as_json: bool, save: Path | None, **options: Any) -> None:
    """The longest that a conversation answers nobody after its node was killed."""
    _run("takeover", options, as_json, save, "takeover")


@command.command()
@_output_options
@click.pass_context
def cluster(context: click.Context, as_json: bool, save: Path | None, data_parent: Path | None) -> None:
    """All benchmarks of a cluster, each with a Cassandra and a Redis of its own: about eight minutes."""
    common = {"as_json": as_json, "save": save, "data_parent": data_parent}
    context.invoke(send, store="cassandra", **common)
    context.invoke(send, nodes=2, cross=True, **common)
    context.invoke(takeover, **common)
    context.invoke(storm, **common)


@command.command("all")
@_output_options
@click.pass_context
def every(context: click.Context, as_json: bool, save: Path | None, data_parent: Path | None) -> None:
    """All benchmarks as bench/README.md shows them: about twenty minutes."""
    common = {"as_json": as_json, "save": save, "data_parent": data_parent}
    for connections in (10_000, 19_000):
        context.invoke(density, connections=connections, later_wave=True, **common)
    context.invoke(roundtrip, **common)
    for members in (1_000, 10_000):
        context.invoke(fanout, members=members, **common)
    context.invoke(send, **common)
    context.invoke(stall, **common)
    context.invoke(upgrade, **common)
    context.invoke(cluster, **common)


def _run(name: str, options: dict[str, Any], as_json: bool, save: Path | None, file_name: str) -> None:
    """Measure, print, and save where asked."""
    try:
        import importlib

        from bench import report
        from bench.errors import BenchError

        module = importlib.import_module(f"bench.{name}")
    except ImportError as error:
        raise CliError(
            f"benchmarks need the bench extra, and {error.name} is not installed: pip install 'tidegate[bench]'",
            UNAVAILABLE,
        ) from None
    # Both end servers and generators on the way out, also where a shell has made this process deaf to Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        result = report.complete(name, module.measure(module.Options(**options)))
    except BenchError as error:
        raise CliError(f"bench {name}: {error}", FAILURE) from None
    click.echo(report.as_json(result) if as_json else report.as_table(result))
    if save is not None:
        path = report.save(result, save, file_name)
        click.echo(f"saved as {path}", err=True)
