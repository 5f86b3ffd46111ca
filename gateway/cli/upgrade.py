"""``tidegate upgrade``: let a running node go on in a new program, with all its connections."""

from pathlib import Path

import click

from gateway.cli.errors import FAILURE, UNAVAILABLE, CliError
from gateway.cli.settings_options import settings_of, settings_options
from gateway.config import Settings
from gateway.upgrade.control import PeerUnknown, Refused, Several, Succeeded, UpgradeRefused, ask, running_pids
from store.embedded_directory import holder_pid

TIMEOUT_S = 90.0
"""Seconds without a word from the node: more than any state of an upgrade may take."""


@click.command()
@click.option(
    "--pid",
    type=click.IntRange(1),
    metavar="PID",
    help="the node's process; else the one that has --data-dir, which only nodes with the embedded store do",
)
@settings_options("data_dir")
def command(pid: int | None, config_file: Path | None, **options: object) -> None:
    """Let a running node go on in a new program, with all its connections.

    The node starts the program that is installed now, with the command line it was started with, and hands its sockets
    over; no client has to connect again. When the new program cannot take over, whatever the reason, the node goes on
    as before, and this command says why and fails. SIGUSR2 does the same without an answer.

    Several nodes behind one port (serve --processes) are upgraded one after the other by their supervisor, which goes
    on in the new program first: give its process with --pid. So do it for a node of a cluster: with store = cassandra
    no data directory leads to it. Without --pid, a failure names the processes there are.

    \b
    Examples, after an installation of a newer version:
      tidegate upgrade --data-dir /var/lib/tidegate
      tidegate upgrade --pid 4711
    """
    if pid is None:
        pid = _find(settings_of(config_file, options))
    outcome = _ask(pid)
    if isinstance(outcome, Succeeded):
        click.echo(_in_words(outcome, f"process {pid}"))
    else:
        _tell_of_several(pid, outcome)


def _in_words(outcome: Succeeded, predecessor: str) -> str:
    return (
        f"process {outcome.pid} has taken over {outcome.connections} connections from {predecessor}; "
        f"they waited {outcome.paused_ms:.0f} ms"
    )


def _tell_of_several(pid: int, outcome: Several) -> None:
    """Say what became of each node. Raises CliError if one could not be upgraded."""
    click.echo(f"process {pid}, which supervises {len(outcome.nodes)} nodes, goes on in the new program")
    for name, one in outcome.nodes.items():
        if isinstance(one, Succeeded):
            click.echo(f"{name}: {_in_words(one, 'its predecessor')}")
        else:
            click.echo(f"{name}: not upgraded: {one.reason}")
    failed = [name for name, one in outcome.nodes.items() if isinstance(one, Refused)]
    if failed:
        raise CliError(f"not upgraded: {', '.join(failed)}; put that right, and upgrade again", FAILURE)


def _find(settings: Settings) -> int:
    """The process of the node that has the data directory. Raises CliError."""
    if settings.store != "embedded":
        reason = (
            f"store is {settings.store}: nodes with it are not found by a data directory; give the node's process with "
            "--pid, or send it SIGUSR2"
        )
    else:
        pid = holder_pid(settings.data_dir)
        if pid is not None:
            return pid
        reason = (
            f"no node runs on data directory {settings.data_dir.absolute()}: give that of a running node with "
            "--data-dir, or its process with --pid"
        )
    raise CliError(f"{reason}{_running()}", UNAVAILABLE)


def _running() -> str:
    """The nodes that there are, as the end of a sentence; empty if the kernel does not tell."""
    try:
        pids = running_pids()
    except OSError:
        return ""
    if not pids:
        return "; no node runs on this machine"
    return f"; processes of nodes, or of supervisors of several, on this machine: {', '.join(map(str, pids))}"


def _ask(pid: int) -> Succeeded | Several:
    try:
        return ask(pid, lambda state: click.echo(f"{state} …", err=True), TIMEOUT_S)
    except UpgradeRefused as error:
        raise CliError(f"not upgraded, process {pid} goes on as before: {error}", FAILURE) from None
    except TimeoutError:
        raise CliError(
            f"process {pid} has not said within {TIMEOUT_S:g} s what became of the upgrade; its log says more", FAILURE
        ) from None
    except (PeerUnknown, ConnectionResetError, EOFError) as error:
        raise CliError(f"process {pid}: {error}", FAILURE) from None
    except OSError as error:
        raise CliError(
            f"process {pid} cannot be asked ({error.strerror}): it must be a running node on this machine, "
            "in this network namespace",
            UNAVAILABLE,
        ) from None
