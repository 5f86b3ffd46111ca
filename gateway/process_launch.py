"""Node processes as a supervisor starts them: fresh interpreters, behind one port that is held for all."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

from gateway.config import Settings
from gateway.process_link import DRAIN, END, SupervisorEnd, make_pair

PORT_TRIES_MAX: Final = 16
"""Ports tried, where the system chooses, until one is free at every address of the host."""

OWN_VARIABLES: Final = frozenset({"NOTIFY_SOCKET"})
"""Environment variables that are for the supervisor alone: it is the one to tell when all nodes are ready."""

SIGNALLED: Final = 128
"""Added to the number of the signal that ended a process, as shells do, to make its exit code."""


class NodeProcess:
    """One running node. Implements ``gateway.processes.Child``."""

    def __init__(self, process: trio.Process, link: SupervisorEnd) -> None:
        self._process = process
        self._link = link
        self.pid = process.pid
        self.ready = link.ready

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
                nursery.cancel_scope.cancel()
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


async def launch(settings: Settings) -> NodeProcess:
    """Start a node that runs with these settings, whatever the environment and configuration files say.

    It is executed anew, not forked from this process, so that it carries nothing of it along, and ends when this
    process does. A cancellation is heeded when it has been started.

    Raises:
        OSError: no process can be started, or the settings are too long to be handed over.
    """
    ours, theirs = make_pair()
    link = SupervisorEnd(ours)
    try:
        link.send_settings(settings)
        process = await trio.lowlevel.open_process(
            _command(settings.node_name, theirs.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),  # what is said on standard output, the supervisor says for all
            pass_fds=(theirs.fileno(),),
            env={name: value for name, value in os.environ.items() if name not in OWN_VARIABLES},
        )
    except BaseException:
        link.close()
        raise
    finally:
        theirs.close()
    return NodeProcess(process, link)


def _command(name: str, link_fd: int) -> list[str]:
    """How a node is started. Its name is of use to whoever looks at the list of processes only."""
    # Python looks for modules in the working directory first, unless told not to: only where this one was found there.
    here = [] if Path(sys.path[0] or ".").resolve() == Path(__file__).parents[1] else ["-P"]
    options = ["--node-name", name, "--link-fd", str(link_fd)]
    return [sys.executable, *here, "-m", "gateway.cli.main", "serve", *options]


@contextmanager
def held_port(host: str, port: int) -> Iterator[tuple[str, int]]:
    """Hold ``port`` (0: one that the system chooses) at every address of ``host``, for nodes that share it.

    The sockets held are bound and do not listen, so that no connection comes to them: they keep the port from others
    while nodes restart. Gives the first address and the port.

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
        yield address, chosen
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
