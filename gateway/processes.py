"""Several nodes behind one port: started, started again when they die, and drained together.

The supervisor holds no connection and knows nothing of conversations. It stays small: it imports no part of a node.

What becomes of a node process that ended, by exit code:

====================  =====================  ====================================================================
when                  exit code              then
====================  =====================  ====================================================================
draining              any                    it stays ended; the worst code of all is the supervisor's
before it was ready   any but 75             at the first start: all are drained, and the code is the supervisor's,
for the first time                           because whoever started it has to put something right
later                 75 (it lost its        started again at once: this is how a node comes back
                      lease)
later                 0 (somebody drained    started again at once
                      just this one)
later                 any other, a signal    started again after a wait that doubles with each such end
====================  =====================  ====================================================================
"""

import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import structlog
import trio
from msgspec.structs import replace

from gateway.addresses import http_url
from gateway.config import Settings
from gateway.process_keeper import START_INTERVAL_S, Child, Keeper, Launch
from gateway.process_launch import HeldPort, held_port, launch
from gateway.process_succession import Left, Renewal, heed_signals_again, same
from gateway.upgrade import systemd
from gateway.upgrade.service import heed_upgrades

DRAIN_MARGIN_S: Final = 10.0
"""Seconds beyond their grace that nodes get to end before they are killed: store and HTTP requests finish there."""

END_WAIT_S: Final = 5.0
"""Seconds that nodes which are to end at once get before they are killed."""

log = structlog.get_logger(__name__)


class Supervisor:
    """Keeps several nodes running until ``drain``."""

    def __init__(self, nodes: Sequence[Settings], launch: Launch, adopted: Mapping[str, Child] | None = None) -> None:
        """Nothing is started yet.

        Args:
            nodes: what each is to run with; their names differ.
            launch: starts one.
            adopted: those that run already, by name, as they did under another program; None: this is the first start.
        """
        self._draining = trio.Event()
        self._grace_s = max(settings.drain_grace_s for settings in nodes)
        self._patience = trio.CancelScope()
        running = adopted or {}
        self.keepers = [
            Keeper(
                settings,
                launch,
                self._draining,
                self.drain,
                settled=adopted is not None,
                child=running.get(settings.node_name),
            )
            for settings in nodes
        ]

    @property
    def draining(self) -> bool:
        """Whether all are to end."""
        return self._draining.is_set()

    async def run(self, announce: Callable[[], None]) -> int:
        """Run until all nodes have ended, which they do after ``drain``; the worst of their exit codes.

        The first node starts alone: what is wrong is said once, and what has to be made is made by one. ``announce``
        is called when all accept connections. A cancellation leaves the nodes to drain themselves.
        """
        async with trio.open_nursery() as enforcing:
            enforcing.start_soon(self._enforce)
            async with trio.open_nursery() as keeping:
                for group in (self.keepers[:1], self.keepers[1:]):
                    for keeper in group:
                        keeping.start_soon(keeper.run)
                    for keeper in group:
                        await keeper.settled.wait()
                if not self._draining.is_set():
                    announce()
            enforcing.cancel_scope.cancel()
        return max(keeper.code for keeper in self.keepers)

    def drain(self) -> None:
        """Let all nodes finish and exit; those that do not in their grace are killed."""
        if self._draining.is_set():
            return
        self._draining.set()
        log.info("draining", processes=len(self._children), grace_s=self._grace_s)
        self._patience.deadline = trio.current_time() + self._grace_s + DRAIN_MARGIN_S
        for child in self._children:
            child.drain()

    def end(self) -> None:
        """End all nodes at once; nothing that was acknowledged is lost by it."""
        self._draining.set()
        self._patience.deadline = min(self._patience.deadline, trio.current_time() + END_WAIT_S)
        for child in self._children:
            child.end()

    @property
    def _children(self) -> list[Child]:
        return [keeper.child for keeper in self.keepers if keeper.child is not None]

    async def _enforce(self) -> None:
        """Kill who is still there when patience is over; also one that was being started meanwhile."""
        with self._patience:
            await trio.sleep_forever()
        while True:
            for child in self._children:
                log.error("node process killed: it did not end in time", pid=child.pid)
                child.kill()
            await trio.sleep(START_INTERVAL_S)


def settings_of_each(settings: Settings, port: int) -> list[Settings]:
    """What each node of ``settings.processes`` runs with: a name and a port of its own beside the shared one."""
    name = settings.node_name or socket.gethostname()
    return [
        replace(
            settings,
            processes=1,
            port=port,
            node_name=f"{name}-{number}",
            process_port=settings.process_port and settings.process_port + number - 1,
        )
        for number in range(1, settings.processes + 1)
    ]


NodesOf = Callable[[Settings, int], list[Settings]]
"""What each node runs with, given the settings of all and the port they share."""


def main(settings: Settings, announce: Callable[[str], None], left: Left | None = None) -> int:
    """Run ``settings.processes`` nodes until SIGTERM or SIGINT, which drain them; a second signal ends them at once.

    Args:
        settings: the effective settings.
        announce: called with the URL of the shared port once all nodes accept connections.
        left: by the program that did so before in this process, with its nodes; nothing is announced again then.

    Returns:
        the worst of the nodes' exit codes.

    Raises:
        OSError: the address cannot be listened on.
        UpgradeFailed: this program was tried out, and is not fit.
    """
    return run(settings, settings_of_each, announce, left)


def run(settings: Settings, nodes_of: NodesOf, announce: Callable[[str], None], left: Left | None) -> int:
    """Run nodes with these settings, as ``main`` does."""
    if left is not None and left.trial:
        left.try_out(settings, nodes_of(settings, left.port))
        return 0
    with _held(settings, left) as held:
        url = http_url(held.address, held.port, tls=bool(settings.tls_cert))
        return trio.run(_supervise, settings, nodes_of(settings, held.port), held, lambda: announce(url), left)


@contextmanager
def _held(settings: Settings, left: Left | None) -> Iterator[HeldPort]:
    """The shared port, held from others."""
    if left is None:
        with held_port(settings.host, settings.port) as held:
            yield held
        return
    held = left.port_held()
    try:
        yield held
    finally:
        for sock in held.sockets:
            sock.close()


async def _supervise(
    settings: Settings, nodes: Sequence[Settings], held: HeldPort, announce: Callable[[], None], left: Left | None
) -> int:
    def all_ready() -> None:
        if left is None:
            announce()
            systemd.notify("READY=1")

    adopted = None if left is None else left.adopted([node.node_name for node in nodes])
    supervisor = Supervisor(nodes, launch, adopted)
    renewal = Renewal(supervisor.keepers, lambda: supervisor.draining, same(settings, nodes), held)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_heed_signals, supervisor, signals)
            await nursery.start(heed_upgrades, renewal.go_on)
            if left is not None:
                heed_signals_again()
                nursery.start_soon(renewal.upgrade_nodes, left.who_asked())
            code = await supervisor.run(all_ready)
            nursery.cancel_scope.cancel()
    return code


async def _heed_signals(supervisor: Supervisor, signals: AsyncIterator[int]) -> None:
    """The first signal drains all, the second ends them."""
    order = supervisor.drain
    async for number in signals:
        log.info("signal", signal=signal.Signals(number).name)
        order()
        order = supervisor.end
