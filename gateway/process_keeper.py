"""One node of several: kept running, and upgraded live, as the table in ``gateway.processes`` says.

An upgrade of a node never leaves the keeper without a process. The predecessor, which serves, decides whether its
successor has taken over; when it says no, the successor is put away and all is as before. When it ends, whether it said
anything or not, the successor is the node: it either has everything, or ends by itself, and is then started anew.
"""

import socket
from collections.abc import Callable
from typing import Final, Protocol

import structlog
import trio

from gateway.config import Settings
from gateway.upgrade.control import Line, Progress, Refused, Succeeded

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

HAND_OVER_TIMEOUT_S: Final = 120.0
"""Seconds that a node gets to hand over to its successor: more than all states of an upgrade together may take."""

log = structlog.get_logger(__name__)


class Child(Protocol):
    """A running node process.

    Attributes:
        pid: its process id.
        ready: set when it accepts connections.
        on_line: called with what it says of its upgrade.
    """

    pid: int
    ready: trio.Event
    on_line: Callable[[Line], None]

    @property
    def address(self) -> str:
        """Its own address, once it is ready."""

    @property
    def link_fd(self) -> int:
        """The descriptor of this process's end of the link to it."""

    async def run(self) -> int:
        """Wait for its end, and for the last it said; the exit code, 128 + number after a signal.

        A cancellation leaves it to drain itself.
        """

    def drain(self) -> None:
        """Tell it to finish and exit."""

    def end(self) -> None:
        """Tell it to end at once."""

    def kill(self) -> None:
        """End it, whatever it is doing."""

    def hand_over(self, successor_pid: int, channel: socket.socket) -> None:
        """Tell it to hand everything over to a process, at the other end of ``channel``, of which it gets a copy."""


class Launch(Protocol):
    """Starts node processes."""

    async def __call__(self, settings: Settings, predecessor: Child | None = None) -> Child:
        """Start one, in the place of ``predecessor`` if there is one, which is told. Raises OSError if that fails."""


def restart_wait_s(crashes: int) -> float:
    """Seconds to wait after so many crashes in a row."""
    return float(min(RESTART_WAIT_MIN_S * 2 ** min(crashes - 1, 32), RESTART_WAIT_MAX_S))


class _Attempt:
    """One try to have a node go on in another process.

    Attributes:
        successor: that process, once it is started and the predecessor was told.
        outcome: what the predecessor said of the end; None: nothing yet.
        decided: set when the predecessor has refused, or has ended.
        done: whether the successor is the node now.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.successor: Child | None = None
        self.outcome: Succeeded | Refused | None = None
        self.decided = trio.Event()
        self.done = False
        self._tell = tell

    def heard(self, line: Line) -> None:
        """The predecessor says something."""
        if isinstance(line, Progress):
            self._tell(line.state)
        elif isinstance(line, Refused) and line.successor not in (0, self._pid):
            log.info("what a node says of an upgrade that was given up", successor=line.successor, reason=line.reason)
        elif isinstance(line, Succeeded | Refused):
            self.outcome = line
            if isinstance(line, Refused):
                self.decided.set()

    @property
    def _pid(self) -> int:
        return self.successor.pid if self.successor is not None else 0

    @property
    def heir(self) -> Child | None:
        """Who is the node if the predecessor ends now; None: nobody."""
        return None if isinstance(self.outcome, Refused) else self.successor


class Keeper:
    """Keeps one node running.

    Attributes:
        name: the node's name.
        child: its process; None while there is none.
        code: how it ended last; 0 before that.
        settled: set when it was ready for the first time, or failed before.
        launching: whether a process is being started this moment.
    """

    def __init__(
        self,
        settings: Settings,
        launch: Launch,
        draining: trio.Event,
        give_up: Callable[[], None],
        *,
        settled: bool = False,
        child: Child | None = None,
    ) -> None:
        """Keep a node running that was started for the first time before, if ``settled``; in ``child``, if it runs."""
        self.name = settings.node_name
        self.child = child
        self.code = 0
        self.settled = trio.Event()
        if settled:
            self.settled.set()
        self.launching = False
        self._settings = settings
        self._launch = launch
        self._draining = draining
        self._give_up = give_up
        self._crashes = 0
        self._attempt: _Attempt | None = None

    async def run(self) -> None:
        """Start the node, and again whenever it ends, until the drain. A cancellation leaves it to drain itself."""
        while self.child is not None or not self._draining.is_set():
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

    async def upgrade(self, tell: Callable[[str], None]) -> Succeeded | Refused:
        """Have the node go on in a new process; ``tell`` is called with each state that is reached.

        A cancellation leaves the two processes to decide it.
        """
        child = self.child
        if self._draining.is_set():
            return Refused("it drains")
        if child is None or not child.ready.is_set():
            return Refused("it is being started: try again when it is ready")
        attempt = self._attempt = _Attempt(tell)
        child.on_line = attempt.heard
        try:
            outcome = await self._succeed(child, attempt)
        finally:
            self._attempt = None
        if isinstance(outcome, Refused):
            log.error("node process not upgraded, it goes on", process=self.name, reason=outcome.reason)
        return outcome

    async def _succeed(self, child: Child, attempt: _Attempt) -> Succeeded | Refused:
        """Start a successor to ``child`` and wait until it is decided which of the two is the node."""
        try:
            successor = await self._launch(self._settings, child)
        except OSError as error:
            return Refused(f"no process can be started: {error}")
        log.info("node process to be succeeded", process=self.name, pid=child.pid, successor=successor.pid)
        if self.child is child:
            attempt.successor = successor
            with trio.move_on_after(HAND_OVER_TIMEOUT_S):
                await attempt.decided.wait()
        if attempt.done:
            return attempt.outcome or Refused(f"it ended in the middle of it; process {successor.pid} has its place")
        self._attempt = None  # whatever becomes of the predecessor now: its keeper starts the next one
        successor.kill()
        await successor.run()
        if isinstance(attempt.outcome, Refused):
            return attempt.outcome
        if self.child is not child:
            return Refused("it ended meanwhile, and is started anew")
        return Refused(f"nothing came of it within {HAND_OVER_TIMEOUT_S:g} s")

    async def _run_once(self) -> int:
        """One life of the node, in one process after the other: its exit code."""
        child = self.child
        if child is None:
            self.launching = True
            try:
                child = await self._launch(self._settings)
            except OSError as error:
                log.error("node process cannot be started", process=self.name, error=str(error))
                return 1
            finally:
                self.launching = False
            log.info("node process started", process=self.name, pid=child.pid)
        while True:
            code = await self._live(child)
            attempt = self._attempt
            if attempt is None or attempt.heir is None:
                return code
            child = self.child = attempt.heir
            attempt.done = True
            attempt.decided.set()
            self._attempt = None
            log.info("node process succeeded by another", process=self.name, code=code, pid=child.pid)

    async def _live(self, child: Child) -> int:
        """The life of one process."""
        self.child = child
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
        if not child.ready.is_set():
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
