"""Node processes as a supervisor starts them: fresh interpreters, behind one port that is held for all."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import trio

from gateway.config import Settings
from gateway.process_keeper import Child
from gateway.process_link import DRAIN, END, SupervisorEnd, make_pair
from gateway.upgrade import PREDECESSOR_VARIABLE
from gateway.upgrade.control import Line

PORT_TRIES_MAX: Final = 16
"""Ports tried, where the system chooses, until one is free at every address of the host."""

OWN_VARIABLES: Final = frozenset({"NOTIFY_SOCKET"})
"""Environment variables that are for the supervisor alone: it is the one to tell when all nodes are ready."""

SIGNALLED: Final = 128
"""Added to the number of the signal that ended a process, as shells do, to make its exit code."""


LAST_WORDS_S: Final = 1.0
"""Seconds after the end of a node in which what it said before is read: it is there already."""


class Process(Protocol):
    """A process of the system: ``trio.Process``, or one that this process did not start by itself."""

    @property
    def pid(self) -> int:
        """Its id."""

    async def wait(self) -> int:
        """Its exit code, once it has ended; the negative number of a signal. A cancellation loses nothing."""

    def kill(self) -> None:
        """End it."""


class InheritedProcess:
    """A child of this process from before it went on in a new program. Implements ``Process``."""

    def __init__(self, pid: int) -> None:
        """Raises OSError if there is no such process."""
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._code: int | None = None

    async def wait(self) -> int:
        """See Process.wait."""
        if self._code is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            self._code = self._reap()
        return self._code

    def _reap(self) -> int:
        """What has ended is waited for, which takes no time."""
        ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        assert ended is not None, "only WNOHANG gives None"
        os.close(self._pidfd)
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def kill(self) -> None:
        """See Process.kill."""
        if self._code is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class NodeProcess:
    """One running node. Implements ``gateway.process_keeper.Child``."""

    def __init__(self, process: Process, link: SupervisorEnd) -> None:
        self._process = process
        self._link = link
        self.pid = process.pid
        self.ready = link.ready

    @property
    def on_line(self) -> Callable[[Line], None]:
        """See Child."""
        return self._link.on_line

    @on_line.setter
    def on_line(self, call: Callable[[Line], None]) -> None:
        self._link.on_line = call

    @property
    def link_fd(self) -> int:
        """See Child."""
        return self._link.fd

    @property
    def address(self) -> str:
        """See Child."""
        return self._link.address

    async def run(self) -> int:
        """See Child."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._link.listen)
                code = await self._process.wait()
                nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS_S
        finally:
            self._link.close()
        return code if code >= 0 else SIGNALLED - code

    def drain(self) -> None:
        """See Child."""
        self._link.order(DRAIN)

    def end(self) -> None:
        """See Child."""
        self._link.order(END)

    def kill(self) -> None:
        """See Child."""
        self._process.kill()

    def hand_over(self, successor_pid: int, channel: socket.socket) -> None:
        """See Child. Raises OSError: the successor is gone, or the system has no descriptors for processes."""
        pidfd = os.pidfd_open(successor_pid)
        try:
            self._link.hand_over(successor_pid, channel, pidfd)
        finally:
            os.close(pidfd)


async def launch(settings: Settings, predecessor: Child | None = None) -> NodeProcess:
    """Start a node that runs with these settings, whatever the environment and configuration files say.

    It is executed anew, not forked from this process, so that it carries nothing of it along, and ends when this
    process does. A ``predecessor`` is told to hand over to it. A cancellation is heeded when it has been started.

    Raises:
        OSError: no process can be started, or the settings are too long to be handed over.
    """
    environment = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
    ours, theirs = make_pair()
    link = SupervisorEnd(ours)
    with ExitStack() as failing, ExitStack() as closing:
        failing.callback(link.close)
        closing.enter_context(theirs)
        handed = [theirs.fileno()]
        if predecessor is not None:
            channel, its_end = (closing.enter_context(sock) for sock in socket.socketpair())
            environment[PREDECESSOR_VARIABLE] = str(its_end.fileno())
            handed.append(its_end.fileno())
        link.send_settings(settings)
        process = await trio.lowlevel.open_process(
            _command(settings.node_name, theirs.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),  # what is said on standard output, the supervisor says for all
            pass_fds=handed,
            env=environment,
        )
        if predecessor is not None:
            failing.callback(process.kill)
            predecessor.hand_over(process.pid, channel)
        failing.pop_all()
    return NodeProcess(process, link)


def adopt(pid: int, link_fd: int, address: str) -> NodeProcess:
    """A node that was started before this process went on in a new program.

    Args:
        pid: its process.
        link_fd: the descriptor of this process's end of the link.
        address: its own address; empty if it was not ready.

    Raises:
        OSError: it is gone.
    """
    link = SupervisorEnd(socket.socket(fileno=link_fd))
    try:
        process = InheritedProcess(pid)
    except OSError:
        link.close()
        raise
    if address:
        link.address = address
        link.ready.set()
    return NodeProcess(process, link)


def _command(name: str, link_fd: int) -> list[str]:
    """How a node is started. Its name is of use to whoever looks at the list of processes only."""
    # Python looks for modules in the working directory first, unless told not to: only where this one was found there.
    here = [] if Path(sys.path[0] or ".").resolve() == Path(__file__).parents[1] else ["-P"]
    options = ["--node-name", name, "--link-fd", str(link_fd)]
    return [sys.executable, *here, "-m", "gateway.cli.main", "serve", *options]


class HeldPort(NamedTuple):
    """A port that is held for nodes.

    Attributes:
        address: the first of the addresses.
        port: its number.
        sockets: what holds it.
    """

    address: str
    port: int
    sockets: list[socket.socket]


@contextmanager
def held_port(host: str, port: int) -> Iterator[HeldPort]:
    """Hold ``port`` (0: one that the system chooses) at every address of ``host``, for nodes that share it.

    The sockets held are bound and do not listen, so that no connection comes to them: they keep the port from others
    while nodes restart.

    Raises:
        OSError: something else has the port, or the address cannot be used.
    """
    addresses = _addresses(host)
    if port:
        for family, address in addresses:
            _bind(family, address, port, shared=False).close()  # shared, it would join whoever shares it already
    sockets = _hold(addresses, port)
    try:
        address, chosen = sockets[0].getsockname()[:2]
        yield HeldPort(address, chosen, sockets)
    finally:
        for sock in sockets:
            sock.close()


def _addresses(host: str) -> list[tuple[int, str]]:
    found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [(family, str(address[0])) for family, _, _, _, address in found]


def _hold(addresses: list[tuple[int, str]], port: int) -> list[socket.socket]:
    for tries_left in reversed(range(1 if port else PORT_TRIES_MAX)):
        sockets: list[socket.socket] = []
        try:
            for family, address in addresses:
                chosen = sockets[0].getsockname()[1] if sockets else port
                sockets.append(_bind(family, address, chosen, shared=True))
        except OSError:
            for sock in sockets:
                sock.close()
            if not tries_left:
                raise
        else:
            return sockets
    raise AssertionError("the last try returns or raises")


def _bind(family: int, address: str, port: int, *, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock
