"""``tidegate upgrade``: let a running node go on in a new program, with all its connections."""

from pathlib import Path

import click

from gateway.cli.errors import FAILURE, UNAVAILABLE, CliError
from gateway.cli.settings_options import settings_of, settings_options
from gateway.upgrade.control import PeerUnknown, Refused, Several, Succeeded, UpgradeRefused, ask
from store.embedded_directory import holder_pid

TIMEOUT_S = 90.0
"""Seconds without a word from the node: more than any state of an upgrade may take."""


@click.command()
@click.option("--pid", type=click.IntRange(1), metavar="PID", help="the node's process; else found by --data-dir")
@settings_options("data_dir")
def command(pid: int | None, config_file: Path | None, **options: object) -> None:
    """Let a running node go on in a new program, with all its connections.

    The node starts the program that is installed now, with the command line it was started with, and hands its sockets
    over; no client has to connect again. When the new program cannot take over, whatever the reason, the node goes on
    as before, and this command says why and fails. SIGUSR2 does the same without an answer.

    Several nodes behind one port (serve --processes) are upgraded one after the other by their supervisor, which goes
    on in the new program first: give its process with --pid.

    \b
    Example, after an installation of a newer version:
      tidegate upgrade --data-dir /var/lib/tidegate
    """
    if pid is None:
        pid = _find(settings_of(config_file, options).data_dir)
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


def _find(data_dir: Path) -> int:
    pid = holder_pid(data_dir)
    if pid is None:
        raise CliError(
            f"no node runs on data directory {data_dir.absolute()}: give that of a running node with --data-dir, "
            "or its process with --pid",
            UNAVAILABLE,
        )
    return pid


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
