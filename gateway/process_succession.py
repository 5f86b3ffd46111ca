"""How the supervisor of several nodes goes on in a new program, in the same process, with the same children.

| step | by which program | what goes wrong then |
|---|---|---|
| try out: the new program, started beside this one, reads settings and what it would get, and ends | old | all stays |
| go on: execve(2). Process id, children, the port and the links to the nodes are kept | old | all stays |
| adopt the nodes, which have noticed nothing | new | the links close, and the nodes drain |
| upgrade them, one after the other (``process_keeper``) | new | the one that fails goes on as it is, and that is said |

The supervisor comes first, because it is the new program that knows what its nodes are to be started with. What it
then cannot bring over is still its child, and is tried again by the next upgrade.

SIGTERM and SIGINT wait from just before execve(2) until the new program heeds them.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from types import FrameType
from typing import Final, NoReturn, Self

import msgspec
import structlog
import trio
from msgspec import Struct

from gateway.config import Settings
from gateway.orders import heeding
from gateway.process_keeper import Child, Keeper
from gateway.process_launch import HeldPort, adopt
from gateway.upgrade import LEFT_VARIABLE
from gateway.upgrade.control import Refused, Several, Succeeded, UpgradeFailed
from gateway.upgrade.service import Asker

FORMAT: Final = 1
"""Raised when what is left, or what nodes and supervisors tell each other, changes so that others misunderstand it."""

TRY_TIMEOUT_S: Final = 60.0
"""Seconds until the new program must have said that it is fit: an import takes one, or many on a busy machine."""

FIT: Final = b"fit to go on\n"
"""What a program that is tried out prints."""

HELD_BACK: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGUSR2})

log = structlog.get_logger(__name__)


class LeftNode(Struct):
    """A node process that runs.

    Attributes:
        name: the node's name.
        pid: its process.
        link: descriptor of the supervisor's end of the link.
        address: its own address; empty if it is not ready.
    """

    name: str
    pid: int
    link: int
    address: str


class Left(Struct):
    """What a supervisor leaves to the program that goes on in its place.

    Attributes:
        format: FORMAT there.
        version: of that program.
        trial: whether the receiver is only to say whether it is fit.
        same: settings that must not change, as text by name.
        address, port: the first address, and the port, that the nodes share.
        held: descriptors of the sockets that hold the port.
        nodes: those that run.
        asker: descriptor of a connection to who asked for the upgrade; -1: nobody.
    """

    format: int
    version: str
    trial: bool
    same: dict[str, str]
    address: str
    port: int
    held: list[int]
    nodes: list[LeftNode]
    asker: int

    @classmethod
    def found(cls) -> Self | None:
        """What was left to this process, if anything; not a second time.

        Raises UpgradeFailed when it cannot be understood.
        """
        text = os.environ.pop(LEFT_VARIABLE, None)
        if text is None:
            return None
        try:
            left = msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise UpgradeFailed(
                f"{LEFT_VARIABLE} is for upgrades only, and not understood ({error}): remove it"
            ) from None
        if left.format != FORMAT:
            raise UpgradeFailed(
                f"this program (tidegate {version('tidegate')}) takes over in format {FORMAT}, "
                f"tidegate {left.version} leaves it in {left.format}: restart instead"
            )
        if not left.trial:
            for descriptor in left.descriptors:
                os.set_inheritable(descriptor, False)
        return left

    @property
    def descriptors(self) -> list[int]:
        """All that it names."""
        return [*self.held, *(node.link for node in self.nodes), *([self.asker] if self.asker >= 0 else [])]

    def try_out(self, settings: Settings, nodes: Sequence[Settings]) -> None:
        """Say that this program is fit to go on with these settings.

        Raises UpgradeFailed: it is not.
        """
        for name, here in same(settings, nodes).items():
            there = self.same.get(name, "(unknown)")
            if there != here:
                raise UpgradeFailed(f"{name} is {there} there and {here} here: restart instead")
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError as error:
            raise UpgradeFailed(f"this system has no descriptors for processes ({error}): restart instead") from None
        os.write(sys.stdout.fileno(), FIT)

    def port_held(self) -> HeldPort:
        """The port that is shared."""
        return HeldPort(self.address, self.port, [socket.socket(fileno=descriptor) for descriptor in self.held])

    def adopted(self, names: Sequence[str]) -> dict[str, Child]:
        """The nodes of these names that still run; others notice that they are not wanted any more, and drain."""
        children: dict[str, Child] = {}
        for node in self.nodes:
            if node.name not in names:
                os.close(node.link)
                continue
            try:
                children[node.name] = adopt(node.pid, node.link, node.address)
            except OSError as error:
                log.warning("node process is gone", process=node.name, pid=node.pid, error=str(error))
        return children

    def who_asked(self) -> Asker:
        """Whoever waits for the outcome."""
        if self.asker < 0:
            return Asker()
        sock = socket.socket(fileno=self.asker)
        sock.setblocking(False)
        return Asker(sock)


def same(settings: Settings, nodes: Sequence[Settings]) -> dict[str, str]:
    """What must not differ between two programs that keep the same nodes."""
    return {
        "host": settings.host,
        "port": str(settings.port),
        "process_port": str(settings.process_port),
        "the list of nodes": " ".join(node.node_name for node in nodes),
    }


def heed_signals_again() -> None:
    """Let in what was held back while one program took the place of the other."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)


class Renewal:
    """Upgrades a supervisor and its nodes, once at a time."""

    def __init__(
        self,
        keepers: Sequence[Keeper],
        draining: Callable[[], bool],
        same: Mapping[str, str],
        held: HeldPort,
        command: Sequence[str] | None = None,
    ) -> None:
        """Go on in what ``command`` starts: by default the very command line of this process."""
        self._keepers = keepers
        self._draining = draining
        self._same = dict(same)
        self._held = held
        self._command = list(command) if command is not None else [sys.executable, *sys.orig_argv[1:]]
        self._busy = False

    async def go_on(self, asker: Asker) -> NoReturn:
        """Go on in the new program, which upgrades the nodes.

        Raises UpgradeFailed: all is as it was. A cancellation, too, leaves all as it was.
        """
        if self._busy:
            raise UpgradeFailed("an upgrade is under way already: wait for its outcome")
        self._busy = True
        try:
            self._check()
            asker.reached("supervisor: starting")
            await self._try_out()
            asker.reached("supervisor: going on in the new program")
            await self._execute(asker)
        finally:
            self._busy = False

    async def upgrade_nodes(self, asker: Asker) -> None:
        """Upgrade the nodes, one after the other, and tell who has asked. A cancellation leaves those not yet done."""
        self._busy = True
        try:
            outcomes: dict[str, Succeeded | Refused] = {}
            for keeper in self._keepers:
                outcomes[keeper.name] = await keeper.upgrade(_telling(asker, keeper.name))
            failed = [name for name, outcome in outcomes.items() if isinstance(outcome, Refused)]
            log.info("upgraded", processes=len(outcomes), failed=failed)
            asker.several(Several(outcomes))
        finally:
            self._busy = False
            if asker.sock is not None:
                asker.sock.close()

    def _check(self) -> None:
        """Raises UpgradeFailed if this is no moment to go on."""
        if self._draining():
            raise UpgradeFailed("the processes drain")
        for keeper in self._keepers:
            if keeper.launching or not keeper.settled.is_set():
                raise UpgradeFailed(f"{keeper.name} is being started: try again when it is ready")

    async def _try_out(self) -> None:
        """Start the new program and have it say whether it is fit. Raises UpgradeFailed if not."""
        environment = self._environment(self._left(trial=True, asker=-1))
        with trio.move_on_after(TRY_TIMEOUT_S) as patience:
            try:
                tried = await trio.run_process(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    env=environment,
                )
            except OSError as error:
                raise UpgradeFailed(f"{self._command[0]} cannot be started: {error.strerror}") from None
        if patience.cancelled_caught:
            raise UpgradeFailed(f"the new program did not say within {TRY_TIMEOUT_S:g} s that it is fit")
        if tried.returncode or tried.stdout != FIT:
            said = tried.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            reason = said[-1].removeprefix("tidegate: ")
            raise UpgradeFailed(f"the new program is not fit, and ended with code {tried.returncode}: {reason}")

    async def _execute(self, asker: Asker) -> NoReturn:
        """Become the new program. Raises UpgradeFailed if that is not possible any more."""
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            with heeding(dict.fromkeys(HELD_BACK, _hold_back)):
                await trio.lowlevel.checkpoint()  # what came just before is heeded
                self._check()
                left = self._left(trial=False, asker=-1 if asker.sock is None else asker.sock.fileno())
                log.info("going on in the new program", processes=len(left.nodes))
                for descriptor in left.descriptors:
                    os.set_inheritable(descriptor, True)
                try:
                    os.execve(self._command[0], self._command, self._environment(left))  # noqa: S606 - as it was called
                except OSError as error:
                    for descriptor in left.descriptors:
                        os.set_inheritable(descriptor, False)
                    raise UpgradeFailed(f"{self._command[0]} cannot be executed: {error.strerror}") from None
        finally:
            heed_signals_again()

    def _left(self, *, trial: bool, asker: int) -> Left:
        nodes = [
            LeftNode(keeper.name, child.pid, child.link_fd, child.address if child.ready.is_set() else "")
            for keeper in self._keepers
            if (child := keeper.child) is not None and child.link_fd >= 0  # else it has just ended
        ]
        held = self._held
        descriptors = [sock.fileno() for sock in held.sockets]
        return Left(
            FORMAT, version("tidegate"), trial, self._same, held.address, held.port, descriptors, nodes, asker
        )  # fmt: skip

    def _environment(self, left: Left) -> dict[str, str]:
        return {**os.environ, LEFT_VARIABLE: msgspec.json.encode(left).decode()}


def _hold_back(number: int, _frame: FrameType | None) -> None:
    """Let a signal that another thread took wait for this one, which has it blocked, and for what comes after it."""
    signal.raise_signal(number)


def _telling(asker: Asker, name: str) -> Callable[[str], None]:
    """Tells who asked what state a node has reached."""
    return lambda state: asker.reached(f"{name}: {state}")
