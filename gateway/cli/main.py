"""The command ``tidegate``: finds subcommands without importing them all, and turns errors into one line each."""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final, NoReturn

import click

from gateway.cli.errors import FAILURE, INTERNAL, INTERRUPTED, UNAVAILABLE, sole_cause

COMMANDS: Final = {
    "serve": "run a node",
    "upgrade": "let a running node go on in a new program, with all its connections",
    "config": "print the settings in force, with unit, meaning and source of each",
    "token": "make a development token for a user",
    "chat": "chat in the terminal, or from a script",
    "decode": "show captured frames in readable form",
    "migrate": "make or bring up to date the tables of a cluster in Cassandra",
    "cluster": "see a cluster of nodes, and have one of them drain",
    "backup": "copy the embedded store to a file, while the node runs",
    "restore": "put a backup into a new data directory",
    "bench": "measure a node and its peers on this machine",
    "check": "check a recorded history for lost, doubled or reordered messages",
    "torture": "harm a cluster on this machine, and judge how it took it",
}
"""Every subcommand, with its line in ``tidegate --help``; gateway/cli/NAME.py has each as ``command``."""

EXTRA_PACKAGES: Final = dict.fromkeys(
    ("matplotlib", "picows", "psutil", "uvloop", "websockets"), "bench"
) | dict.fromkeys(("cassandra", "redis"), "cluster")
"""Packages that a single node runs without, and the extra that each belongs to."""


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are called: help and short commands stay fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one subcommand; None if there is no such."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"gateway.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand that is called. Raises UsageError, which names the one that may be meant.

        Other groups suggest by what click registers for them, which is nothing here.
        """
        name = args[0]
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        if near and name not in COMMANDS:
            raise click.UsageError(f"No such command {name!r}. Did you mean {near[0]!r}?", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of subcommands, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Each command explains itself: tidegate serve --help. A first try: tidegate serve",
)
@click.version_option(version("tidegate"), message="tidegate %(version)s")
@click.pass_context
def tidegate(ctx: click.Context) -> None:
    """A chat gateway for native clients.

    One process, a node, holds as many WebSocket connections as the machine's memory allows and keeps every conversation
    as an ordered, durable log.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 69 something needed is not available; 70 a bug;
    130 interrupted.
    """
    try:
        result = tidegate.main(arguments, prog_name="tidegate", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - the end of the line: every error leaves as a message and a code
        _exit_for(sole_cause(error))
    # click gives the exit code of --help and the like as the result
    sys.exit(result if isinstance(result, int) else 0)


def _exit_for(error: BaseException) -> NoReturn:
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, KeyboardInterrupt | click.Abort):
        sys.exit(INTERRUPTED)
    if isinstance(error, click.ClickException):
        _say(_one_line(error))
        sys.exit(error.exit_code)
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has left: nothing to say. Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILURE)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in EXTRA_PACKAGES:
            extra = EXTRA_PACKAGES[package]
            install = f"run: make install-dev (or pip install 'tidegate[{extra}]')"
            _say(f"this needs the package {package}, which is not installed; {install}")
            sys.exit(UNAVAILABLE)
    traceback.print_exception(error)
    _say(f"this is a bug in tidegate ({type(error).__name__}); please report it with the lines above")
    sys.exit(INTERNAL)


def _one_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message = f"{message.rstrip('.')} ({error.ctx.command_path} --help shows what is allowed)"
    return message


def _say(line: str) -> None:
    print(f"tidegate: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
