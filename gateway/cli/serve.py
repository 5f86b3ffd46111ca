"""``tidegate serve``: run a node."""

import errno
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from gateway.cli.errors import FAILURE, UNAVAILABLE, USAGE, CliError, sole_cause
from gateway.cli.settings_options import PRECEDENCE, settings_of, settings_options
from gateway.config import Settings
from gateway.upgrade import LEFT_VARIABLE, PREDECESSOR_VARIABLE
from gateway.upgrade.control import UpgradeFailed

if TYPE_CHECKING:
    from gateway.process_link import NodeEnd
    from gateway.process_succession import Left

_NAME: Final = "tidegate"


@click.command(epilog=PRECEDENCE)
@click.option(
    "--link-fd", type=int, hidden=True, help="given by a supervisor to its nodes: all they need comes over it"
)
@settings_options()
def command(config_file: Path | None, link_fd: int | None, **options: object) -> None:
    """Run a node until SIGTERM or Ctrl-C, which drain it.

    One port serves WebSocket connections, the HTTP API, its page, health checks and metrics. The address is printed on
    standard output once the node accepts connections; logs go to standard error. On its first start the node makes its
    data directory and, for HS256 tokens without --auth-secret, a development secret in it.

    With --processes N, N nodes share the port; one that dies is started again.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # which would end a process that cannot be upgraded yet
    if link_fd is not None:
        serve_supervised(link_fd)
        return
    if PREDECESSOR_VARIABLE in os.environ:
        succeed(lambda: settings_of(config_file, options))
        return
    left = left_behind()
    settings = settings_of(config_file, options)
    if settings.processes > 1 or left is not None:
        sys.exit(serve_several(settings, left))
    serve(settings)


def left_behind() -> "Left | None":
    """What the program before this one has left, if this process supervised several nodes then. Raises CliError."""
    if LEFT_VARIABLE not in os.environ:
        return None
    from gateway.process_succession import Left

    try:
        return Left.found()
    except UpgradeFailed as error:
        raise CliError(str(error), USAGE) from None


def serve(settings: Settings, link: "NodeEnd | None" = None) -> None:
    """Run a node; turn what an operator can put right into one line. Raises CliError."""
    from gateway import node  # late: help needs none of it
    from gateway.observe import logs

    logs.configure(settings.log_format, settings.log_level, node=settings.node_name if link else "")
    say = (lambda _: None) if link else (lambda started: announce(started.name, started.address, settings))
    with explained(settings):
        node.main(settings, say, link)


def succeed(read_settings: Callable[[], Settings], link: "NodeEnd | None" = None) -> None:
    """Take over from the node that has started this process, or whose supervisor has; tell it why, if that fails.

    Raises CliError.
    """
    from gateway.observe import logs
    from gateway.upgrade import successor
    from gateway.upgrade.channel import HandOverFailed

    try:
        channel = successor.channel_to_predecessor()
    except HandOverFailed as error:
        raise CliError(str(error), USAGE) from None
    try:
        settings = read_settings()
        logs.configure(settings.log_format, settings.log_level, node=settings.node_name if link else "")
        with explained(settings):
            successor.main(settings, channel, link)
    except Exception as error:
        # Whatever it is: the one who waits at the other end has to know
        cause = sole_cause(error)
        if isinstance(cause, HandOverFailed):
            successor.tell_failure(channel, str(cause))
            raise CliError(f"upgrade: {cause}") from None
        successor.tell_failure(channel, cause.format_message() if isinstance(cause, CliError) else repr(cause))
        raise


def serve_supervised(link_fd: int) -> None:
    """Run one of several nodes: its supervisor gives settings and orders. Raises CliError."""
    from gateway.process_link import NodeEnd

    try:
        link = NodeEnd.inherited(link_fd)
        settings = link.receive_settings()
    except (OSError, EOFError):
        raise CliError("--link-fd names no supervisor; use --processes N, which starts one", USAGE) from None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the supervisor passes it on
    if PREDECESSOR_VARIABLE in os.environ:
        succeed(lambda: settings, link)
    else:
        serve(settings, link)


def serve_several(settings: Settings, left: "Left | None" = None) -> int:
    """Run several nodes behind one port; the worst of their exit codes. Raises CliError."""
    from gateway import processes  # this process loads no part of a node: it stays small
    from gateway.observe import logs

    logs.configure(settings.log_format, settings.log_level)
    name = settings.node_name or socket.gethostname()
    names = f"{name}-1 to {name}-{settings.processes}"
    with explained(settings):
        return processes.main(settings, lambda address: announce(names, address, settings), left)


@contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Turn what an operator can put right into a CliError."""
    try:
        yield
    except Exception as error:
        reason = explain(sole_cause(error), settings)
        if reason is None:
            raise
        raise reason from None


def announce(name: str, address: str, settings: Settings) -> None:
    """Print where the node listens (the first line is for scripts too), and what to do next."""
    program = _program()
    click.echo(f"tidegate {version('tidegate')}: node {name} listening on {address}")
    if _takes_development_tokens(settings):
        target = "".join(f" {option}" for option in _chat_options(address, settings))
        # A new terminal begins elsewhere, where neither ./data nor .venv/bin is
        anywhere = settings.data_dir.is_absolute() and (program == _NAME or Path(shlex.split(program)[0]).is_absolute())
        click.echo(f"Chat, from two more terminals{'' if anywhere else f' in {Path.cwd()}'}:")
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
    beside = Path(sys.executable).with_name(_NAME)
    on_path = shutil.which(_NAME)
    if on_path is not None and Path(on_path) == beside:
        return _NAME
    return shlex.quote(os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside))


def explain(error: BaseException, settings: Settings) -> CliError | None:
    """What an operator has to put right when a node ended with ``error``; None if it is none of their doing."""
    from gateway.auth import AuthMisconfigured, SecretUnusable
    from gateway.check.witness import HistoryUnwritable
    from gateway.cluster.joining import CannotJoin
    from gateway.cluster.peer_address import PeerPortUnusable
    from gateway.edge.tls import TlsMisconfigured
    from store.embedded import DataDirLocked
    from store.interface import StoreError

    if isinstance(error, UpgradeFailed | AuthMisconfigured | TlsMisconfigured | HistoryUnwritable):
        return CliError(str(error), USAGE)
    if isinstance(error, StoreError | SecretUnusable):
        return CliError(str(error), UNAVAILABLE if isinstance(error, DataDirLocked) else FAILURE)
    if isinstance(error, PeerPortUnusable | CannotJoin):
        return CliError(str(error), UNAVAILABLE)
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
