"""``tidegate torture``: do harm to a cluster of one's own, and see whether its promises hold."""

import logging
import secrets
import signal
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click
import msgspec

from gateway.cli.errors import FAILURE, INTERRUPTED, UNAVAILABLE, CliError, sole_cause

if TYPE_CHECKING:
    from bench.torture.cluster import Options
    from bench.torture.run import Outcome


@click.command()
@click.option(
    "--seed", type=click.IntRange(0), help="decides faults and moments; runs count on from it  [default: drawn]"
)
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True, help="runs, one after the other")
@click.option(
    "--faults", "wanted", default="all", show_default=True, metavar="NAME,…", help="faults to draw from; see --list"
)
@click.option("--list", "listing", is_flag=True, help="print every fault, what it does and what is expected, and exit")
@click.option(
    "--seconds", type=click.FloatRange(0.5), default=1.0, show_default=True,
    help="how long each run talks before the first fault, and again after the last",
)  # fmt: skip
@click.option("--nodes", type=click.IntRange(2, 9), default=3, show_default=True, help="nodes of the cluster")
@click.option("--lease-s", type=click.FloatRange(2), default=3.0, show_default=True, help="the nodes' lease, seconds")
@click.option(
    "--cassandra-nodes", type=click.IntRange(1, 9), default=1, show_default=True, help="Cassandra nodes to start"
)
@click.option("--cassandra-hosts", default="", metavar="HOST,…", help="use this Cassandra, and start none")
@click.option("--cassandra-port", type=click.IntRange(1, 65_535), default=9042, show_default=True, help="its port")
@click.option("--cassandra-keyspace", default="tidegate_torture", show_default=True, help="made if it is missing")
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path),
    help="where data, logs and the histories of broken runs stay  [default: a temporary one, removed at the end]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="print one JSON object at the end instead of a summary")
@click.pass_context
def command(ctx: click.Context, /, listing: bool, as_json: bool, directory: Path | None, **options: object) -> None:
    """Do harm to a cluster on this machine, and judge by the history whether its promises held.

    Nodes, Redis and Cassandra are started for it, with proxies on every way between them; clients talk all the while.
    Each run draws some of the faults, does them at moments of its own, puts everything right, waits for calm, reads all
    conversations, and checks what everybody saw (tidegate check). The same seed makes the same choices.

    Exit code 0: no promise was broken; 1: one was, or what should have happened never did; 69: something is missing.
    """
    try:
        from bench.torture.scenarios import FAULTS
    except ImportError as error:
        raise CliError(
            f"tidegate torture needs {error.name}, which is not installed: run it in a checkout after make install-dev",
            UNAVAILABLE,
        ) from None
    if listing:
        width = max(map(len, FAULTS))
        for name, fault in FAULTS.items():
            click.echo(f"{name:<{width}}  {fault.meaning}")
        return
    with ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-torture-")))
        directory.mkdir(parents=True, exist_ok=True)
        ok = _torture(ctx, directory.absolute(), as_json, **options)  # type: ignore[arg-type]
    ctx.exit(0 if ok else FAILURE)


def _torture(
    ctx: click.Context, directory: Path, as_json: bool, *, seed: int | None, runs: int, wanted: str, seconds: float,
    nodes: int, lease_s: float, cassandra_nodes: int, cassandra_hosts: str, cassandra_port: int,
    cassandra_keyspace: str,
) -> bool:  # fmt: skip
    import trio

    from bench.torture.batch import batch, summary
    from bench.torture.client_faults import SETTINGS
    from bench.torture.cluster import Options
    from deploy.processes import ServerFailed

    options = Options(
        nodes=nodes, cassandra_nodes=cassandra_nodes, cassandra_port=cassandra_port, lease_s=lease_s,
        cassandra_hosts=tuple(host.strip() for host in cassandra_hosts.split(",") if host.strip()),
        cassandra_keyspace=cassandra_keyspace, settings=SETTINGS,
    )  # fmt: skip
    names = _chosen(ctx, wanted, options)
    seed = secrets.randbelow(2**31) if seed is None else seed
    # What its clients complain about is what is asked for here.
    logging.getLogger("tidegate.client").setLevel(logging.CRITICAL)
    click.echo(f"seed {seed}, faults: {', '.join(names)}", err=as_json)
    # Everything that was started is ended on the way out, also where a shell has made this process deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _like_ctrl_c)
    outcomes: list[Outcome] = []
    interrupted = False
    try:
        trio.run(batch, options, seed, runs, names, directory, partial(click.echo, err=as_json), seconds, outcomes)
    except* ServerFailed as group:
        raise CliError(f"the cluster does not run: {sole_cause(group)}", UNAVAILABLE) from None
    except* KeyboardInterrupt:
        interrupted = True
    found = summary(options, seed, outcomes)
    click.echo(msgspec.json.encode(found.as_dict()) if as_json else found.as_text())
    if interrupted:
        ctx.exit(INTERRUPTED)
    return found.ok


def _like_ctrl_c(_number: int, frame: FrameType | None) -> None:
    """End as by Ctrl-C, in whose place trio has a handler while it runs: an error anywhere else breaks trio itself."""
    handler = signal.getsignal(signal.SIGINT)
    assert callable(handler)
    handler(signal.SIGINT, frame)


def _chosen(ctx: click.Context, wanted: str, options: "Options") -> list[str]:
    """The faults to draw from: those asked for, or all that are possible here, saying which are not."""
    from bench.torture.scenarios import FAULTS, impossible

    if wanted == "all":
        reasons = {name: impossible(name, options) for name in FAULTS}
        for reason in filter(None, reasons.values()):
            click.echo(f"left out: {reason}", err=True)
        return [name for name, reason in reasons.items() if not reason]
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in FAULTS:
            raise click.UsageError(f"there is no fault {name!r}; allowed: all, or some of {', '.join(FAULTS)}", ctx)
        if reason := impossible(name, options):
            raise CliError(reason, UNAVAILABLE)
    if not names:
        raise click.UsageError(f"--faults names none; allowed: all, or some of {', '.join(FAULTS)}", ctx)
    return names
