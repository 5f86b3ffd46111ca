"""``tidegate serve``: run a node."""

import errno
import os
import shlex
import shutil
import socket
import sys
from importlib.metadata import version
from pathlib import Path

import click

from gateway.cli.errors import FAILURE, UNAVAILABLE, USAGE, CliError, sole_cause
from gateway.cli.settings_options import PRECEDENCE, settings_of, settings_options
from gateway.config import Settings


@click.command(epilog=PRECEDENCE)
@settings_options()
def command(config_file: Path | None, **options: object) -> None:
    """Run a node until SIGTERM or Ctrl-C, which drain it.

    One port serves WebSocket connections, the HTTP API, its page, health checks and metrics. The address is printed on
    standard output once the node accepts connections; logs go to standard error. On its first start the node makes its
    data directory and, for HS256 tokens without --auth-secret, a development secret in it.
    """
    serve(settings_of(config_file, options))


def serve(settings: Settings) -> None:
    """Run a node; turn what an operator can put right into one line. Raises CliError."""
    from gateway import node  # late: help needs none of it
    from gateway.observe import logs

    logs.configure(settings.log_format, settings.log_level)
    try:
        node.main(settings, lambda started: announce(started.name, started.address, settings))
    except Exception as error:
        explained = explain(sole_cause(error), settings)
        if explained is None:
            raise
        raise explained from None


def announce(name: str, address: str, settings: Settings) -> None:
    """Print where the node listens (the first line is for scripts too), and what to do next."""
    program = _program()
    click.echo(f"tidegate {version('tidegate')}: node {name} listening on {address}")
    if _takes_development_tokens(settings):
        target = "".join(f" {option}" for option in _chat_options(address, settings))
        click.echo("Chat, from two more terminals:")
        click.echo(f"  {program} chat --as alice --to bob{target}")
        click.echo(f"  {program} chat --as bob --to alice{target}")
    click.echo(f"API page: {address}/")
    sys.stdout.flush()


def _takes_development_tokens(settings: Settings) -> bool:
    """Whether a token that ``tidegate chat`` makes by itself, knowing only the data directory, is accepted."""
    defaults = Settings()
    return settings.auth_algorithm == "HS256" and (
        (settings.auth_secret, settings.auth_audience, settings.auth_issuer)
        == (defaults.auth_secret, defaults.auth_audience, defaults.auth_issuer)
    )


def _chat_options(address: str, settings: Settings) -> list[str]:
    """What ``tidegate chat`` has to be told because it differs from the defaults."""
    options = []
    if address != f"http://{Settings().host}:{Settings().port}":
        options.append(f"--url {shlex.quote(address)}")
    if settings.data_dir != Settings().data_dir:
        options.append(f"--data-dir {shlex.quote(str(settings.data_dir))}")
    return options


def _program() -> str:
    """How this program is called from here: by name if it is on the PATH, else by path."""
    beside = Path(sys.executable).with_name("tidegate")
    on_path = shutil.which("tidegate")
    if on_path is not None and Path(on_path) == beside:
        return "tidegate"
    return shlex.quote(os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside))


def explain(error: BaseException, settings: Settings) -> CliError | None:
    """What an operator has to put right when a node ended with ``error``; None if it is none of their doing."""
    from gateway.auth import AuthMisconfigured, SecretUnusable
    from store.embedded import DataDirLocked
    from store.interface import StoreError

    if isinstance(error, AuthMisconfigured):
        return CliError(str(error), USAGE)
    if isinstance(error, StoreError | SecretUnusable):
        return CliError(str(error), UNAVAILABLE if isinstance(error, DataDirLocked) else FAILURE)
    if isinstance(error, OSError):
        reason = _listen_failure(error, f"{settings.host}:{settings.port}")
        return CliError(reason, UNAVAILABLE) if reason else None
    return None


def _listen_failure(error: OSError, address: str) -> str:
    """Why the node cannot listen on ``address``, and what to do; empty if the error is about something else."""
    if isinstance(error, socket.gaierror):
        return f"cannot listen on {address}: the host is not known; choose another --host (127.0.0.1, or 0.0.0.0)"
    if error.errno == errno.EADDRINUSE:
        return f"cannot listen on {address}: the port is in use; stop what listens there or choose another --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {address}: this machine has no such address; choose another --host"
    if error.errno == errno.EACCES and not error.filename:
        return f"cannot listen on {address}: not allowed for this user; choose a --port of 1024 or more"
    return ""
