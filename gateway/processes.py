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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Protocol

import structlog
import trio
from msgspec.structs import replace

from gateway.addresses import http_url
from gateway.config import Settings
from gateway.process_launch import held_port, launch
from gateway.upgrade import systemd

FENCED: Final = 75
"""Exit code (EX_TEMPFAIL) of a node that lost its lease: it has to be started anew."""

RESTART_WAIT_MIN_S: Final = 0.5
"""Seconds until a node that died is started again: nearly at once, as one crash is most often the only one."""

RESTART_WAIT_MAX_S: Final = 30.0
"""Seconds that the wait, doubled with each crash, grows to: what keeps it from starting may need some time."""

STEADY_S: Final = 60.0
"""Seconds of life after which a crash counts as the first one again."""

START_INTERVAL_S: Final = 1.0
"""Seconds from one start of a node to its next at least, however it ended: no tight circle."""

DRAIN_MARGIN_S: Final = 10.0
"""Seconds beyond their grace that nodes get to end before they are killed: store and HTTP requests finish there."""

END_WAIT_S: Final = 5.0
"""Seconds that nodes which are to end at once get before they are killed."""

log = structlog.get_logger(__name__)


class Child(Protocol):
    """A running node process.

    Attributes:
        pid: its process id.
        ready: set when it accepts connections.
    """

    pid: int
    ready: trio.Event

    @property
    def address(self) -> str:
        """Its own address, once it is ready."""

    async def run(self) -> int:
        """Wait for its end; the exit code, 128 + number after a signal. A cancellation leaves it to drain itself."""

    def drain(self) -> None:
        """Tell it to finish and exit."""

    def end(self) -> None:
        """Tell it to end at once."""

    def kill(self) -> None:
        """End it, whatever it is doing."""


Launch = Callable[[Settings], Awaitable[Child]]


def restart_wait_s(crashes: int) -> float:
    """Seconds to wait after so many crashes in a row."""
    return float(min(RESTART_WAIT_MIN_S * 2 ** min(crashes - 1, 32), RESTART_WAIT_MAX_S))


class Keeper:
    """Keeps one node running.

    Attributes:
        name: the node's name.
        child: its process; None while there is none.
        code: how it ended last; 0 before that.
        settled: set when it was ready for the first time, or failed before.
    """

    def __init__(self, settings: Settings, launch: Launch, draining: trio.Event, give_up: Callable[[], None]) -> None:
        self.name = settings.node_name
        self.child: Child | None = None
        self.code = 0
        self.settled = trio.Event()
        self._settings = settings
        self._launch = launch
        self._draining = draining
        self._give_up = give_up
        self._crashes = 0

    async def run(self) -> None:
        """Start the node, and again whenever it ends, until the drain. A cancellation leaves it to drain itself."""
        while not self._draining.is_set():
            started_s = trio.current_time()
            self.code = await self._run_once()
            if self._draining.is_set():
                break
            if not self.settled.is_set() and self.code != FENCED:
                log.error("node process failed to start", process=self.name, code=self.code)
                self._give_up()
                break
            wait_s = self._wait_s(trio.current_time() - started_s)
            log.warning("node process ended", process=self.name, code=self.code, restart_in_s=round(wait_s, 3))
            with trio.move_on_after(wait_s):
                await self._draining.wait()
        self.settled.set()

    async def _run_once(self) -> int:
        """One life of the node: its exit code."""
        try:
            child = self.child = await self._launch(self._settings)
        except OSError as error:
            log.error("node process cannot be started", process=self.name, error=str(error))
            return 1
        log.info("node process started", process=self.name, pid=child.pid)
        if self._draining.is_set():
            child.drain()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._await_ready, child)
                code = await child.run()
                nursery.cancel_scope.cancel()
        finally:
            self.child = None
        return code

    async def _await_ready(self, child: Child) -> None:
        await child.ready.wait()
        log.info("node process ready", process=self.name, pid=child.pid, address=child.address)
        self.settled.set()

    def _wait_s(self, lived_s: float) -> float:
        """Seconds until the next start."""
        soonest_s = max(0.0, START_INTERVAL_S - lived_s)
        if self.code in (0, FENCED):
            return soonest_s
        self._crashes = 1 if lived_s >= STEADY_S else self._crashes + 1
        return max(soonest_s, restart_wait_s(self._crashes))


class Supervisor:
    """Keeps several nodes running until ``drain``."""

    def __init__(self, nodes: Sequence[Settings], launch: Launch) -> None:
        """Nothing is started yet.

        Args:
            nodes: what each is to run with; their names differ.
            launch: starts one.
        """
        self._draining = trio.Event()
        self._grace_s = max(settings.drain_grace_s for settings in nodes)
        self._patience = trio.CancelScope()
        self.keepers = [Keeper(settings, launch, self._draining, self.drain) for settings in nodes]

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


def main(settings: Settings, announce: Callable[[str], None]) -> int:
    """Run ``settings.processes`` nodes until SIGTERM or SIGINT, which drain them; a second signal ends them at once.

    Args:
        settings: the effective settings.
        announce: called with the URL of the shared port once all nodes accept connections.

    Returns:
        the worst of the nodes' exit codes.

    Raises:
        OSError: the address cannot be listened on.
    """
    with held_port(settings.host, settings.port) as (address, port):
        return supervise(
            settings_of_each(settings, port), lambda: announce(http_url(address, port, tls=bool(settings.tls_cert)))
        )


def supervise(nodes: Sequence[Settings], announce: Callable[[], None]) -> int:
    """Run these nodes, whose shared port is held, as ``main`` does."""
    return trio.run(_supervise, nodes, announce)


async def _supervise(nodes: Sequence[Settings], announce: Callable[[], None]) -> int:
    def all_ready() -> None:
        announce()
        systemd.notify("READY=1")

    supervisor = Supervisor(nodes, launch)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_heed_signals, supervisor, signals)
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
