"""The process that hands over: starts its successor, comes to rest, gives everything away and ends; or goes on.

The table of states stands in the package's docstring.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

import structlog
import trio

from gateway.orders import Heed, heeding
from gateway.upgrade import systemd
from gateway.upgrade.candidates import Candidate, start_candidate
from gateway.upgrade.channel import Channel, Gone, HandOverFailed
from gateway.upgrade.control import Succeeded, UpgradeFailed
from gateway.upgrade.messages import CHUNKS_UNACKNOWLEDGED_MAX, FORMAT, Ack, Begin, Offer, Ready, Taken
from gateway.upgrade.ports import Estate
from gateway.upgrade.settling import Rest
from gateway.upgrade.snapshot import chunks_of, movable_connections

if TYPE_CHECKING:
    from gateway.node import Node

START_TIMEOUT_S: Final = 60.0
"""Seconds from the start of the new program until it is ready: an import takes one, or half a minute on a machine that
has thirty times too much to do; a first fetch of public keys takes up to ten. Nobody waits for it."""

ANSWERS_MAX: Final = 2 * CHUNKS_UNACKNOWLEDGED_MAX
"""Messages of a successor that may be unread when it is ended; more than there can be."""

FIRST_PID: Final = 1

FIRST_NAME: Final = Path("/proc/1/comm")

INITS_THAT_END: Final = frozenset({"tini", "docker-init", "podman-init", "dumb-init", "catatonit"})
"""First processes of containers that end, and the container with them, when the process does that they have started
(``docker run --init``)."""

ORDERS_TO_END: Final = (signal.SIGTERM, signal.SIGINT)
"""Signals that a process which stands still does not heed any more; who takes over gets them."""

log = structlog.get_logger(__name__)


class Upgrades:
    """Makes upgrades of a node, one at a time.

    Attributes:
        state: what is being done, as the table of states calls it.
    """

    def __init__(
        self, node: "Node", estate: Estate, command: Sequence[str] | None = None, *, supervised: bool = False
    ) -> None:
        """Upgrade ``node`` to what ``command`` starts: by default the very command line of this process.

        A node that is ``supervised`` starts nothing: its supervisor gives it the process that is to take over.
        """
        self.state = "idle"
        self._taken = False
        self._node = node
        self._estate = estate
        self._supervised = supervised
        self._command = list(command) if command is not None else [sys.executable, *sys.orig_argv[1:]]

    async def upgrade(
        self, tell: Callable[[str], None], leave: Callable[[Succeeded], NoReturn], given: Candidate | None = None
    ) -> NoReturn:
        """Hand over to a new program.

        Args:
            tell: called with each state that is reached.
            leave: called when the successor has taken over; ends the process without letting anything run.
            given: the process that is to take over, started by this node's supervisor; None: this one starts it.

        Raises:
            UpgradeFailed: this process goes on as before, or an upgrade is under way already.

        A cancellation ends the successor and goes on as before.
        """
        self._check(given)
        estate = self._estate
        rest = Rest(self._node, estate)
        try:
            with self._successor(given) as candidate, _noting(ORDERS_TO_END) as orders:
                self._enter("starting", tell)
                await self._await_ready(candidate, estate)
                self._enter("settling", tell)
                await rest.settle()
                self._enter("quieting", tell)
                paused_s = time.monotonic()
                await rest.wait_until_quiet()
                self._enter("handing over", tell)
                stood_still_s = time.monotonic()
                count = self._hand_over(candidate.channel, estate)
                self._taken = True
                now_s = time.monotonic()
                for number in orders:
                    with suppress(ProcessLookupError):
                        os.kill(candidate.pid, number)
                if given is None:
                    systemd.notify(f"MAINPID={candidate.pid}")
                leave(Succeeded(candidate.pid, count, (now_s - paused_s) * 1e3, (now_s - stood_still_s) * 1e3))
        except HandOverFailed as error:
            raise UpgradeFailed(f"{self.state}: {error}") from None
        except Exception:
            if self._taken:
                raise
            # An upgrade must not end the node that it was to preserve: it is our bug, logged whole.
            log.exception("upgrade failed", state=self.state)
            raise UpgradeFailed(f"{self.state}: a fault of the node, which has logged it") from None
        finally:
            if not self._taken:
                self.state = "idle"
                rest.resume()

    def _check(self, given: Candidate | None) -> None:
        """Raises UpgradeFailed if there is no sense in trying."""
        if self.state != "idle":
            raise UpgradeFailed(f"an upgrade is under way already ({self.state}): wait for its outcome")
        if _ends_the_container():
            raise UpgradeFailed(
                "the container of this node ends with this process: replace the container, or let several processes "
                "share the port (--processes), whose supervisor can be upgraded"
            )
        if self._supervised and given is None:
            raise UpgradeFailed(
                f"it is one of several processes behind one port: upgrade their supervisor, process {os.getppid()}, "
                "which sees to each of them"
            )
        objection = "the node drains" if self._node.draining else self._estate.objection()
        if objection:
            raise UpgradeFailed(objection)

    def _enter(self, state: str, tell: Callable[[str], None]) -> None:
        if self._node.draining:
            raise HandOverFailed("the node drains")
        self.state = state
        tell(state)

    @contextmanager
    def _successor(self, given: Candidate | None) -> Iterator[Candidate]:
        """A started successor; unless it has taken over, it is ended at the end."""
        candidate = given or start_candidate(self._command)
        log.info("upgrade begun", successor=candidate.pid)
        try:
            yield candidate
        except BaseException:
            if not self._taken:
                candidate.end()
                _require_not_taken(candidate.channel)
            raise
        finally:
            candidate.close()

    async def _await_ready(self, candidate: Candidate, estate: Estate) -> None:
        channel = candidate.channel
        until_s = time.monotonic() + START_TIMEOUT_S
        node = self._node
        data_dir = str(node.settings.data_dir.absolute())
        state, descriptors = estate.offer()
        offer = Offer(FORMAT, version("tidegate"), os.getpid(), estate.kind, data_dir, estate.same(), state)
        channel.send(offer, descriptors, until_s=until_s)
        with trio.move_on_after(START_TIMEOUT_S) as patience:
            await trio.lowlevel.wait_readable(channel.sock)
        if patience.cancelled_caught:
            raise HandOverFailed(f"the new program was not ready within {START_TIMEOUT_S:g} s")
        try:
            channel.receive(Ready, until_s=until_s)
        except Gone:
            raise HandOverFailed(
                f"the new program ended{candidate.how_ended()} before it was ready; its standard error says why"
            ) from None

    def _hand_over(self, channel: Channel, estate: Estate) -> int:
        """Give everything away; returns how many connections. A plain call, so that nothing of it changes meanwhile.

        Raises HandOverFailed when the successor fails or is too slow.
        """
        node = self._node
        until_s = time.monotonic() + estate.stand_still_max_s
        listeners = [sock.fileno() for sock in node.sockets]
        connections = movable_connections(node)
        now_s = trio.current_time()
        begin = Begin(
            len(listeners),
            len(connections),
            now_s,
            time.monotonic(),
            node.presences.left_ago_s(now_s),
            estate.state(),
            node.hub.followers.all(),
        )
        channel.send(begin, [*listeners, *estate.descriptors()], until_s=until_s)
        unacknowledged = 0
        for chunk, descriptors in chunks_of(node, connections):
            if unacknowledged == CHUNKS_UNACKNOWLEDGED_MAX:
                channel.receive(Ack, until_s=until_s)
                unacknowledged -= 1
            channel.send(chunk, descriptors, until_s=until_s)
            unacknowledged += 1
        for _ in range(unacknowledged):
            channel.receive(Ack, until_s=until_s)
        channel.receive(Taken, until_s=until_s)
        return len(connections)


def _ends_the_container() -> bool:
    """Whether nothing goes on where this process ends."""
    if os.getpid() == FIRST_PID:
        return True
    try:
        return os.getppid() == FIRST_PID and FIRST_NAME.read_text().strip() in INITS_THAT_END
    except OSError:
        return False


@contextmanager
def _noting(numbers: Sequence[signal.Signals]) -> Iterator[list[int]]:
    """The signals of these that somebody here heeds, as they come; whoever heeds them gets them as ever."""
    came: list[int] = []

    def note(heed: Heed, number: int, frame: FrameType | None) -> None:
        came.append(number)
        heed(number, frame)

    with heeding({number: partial(note, heed) for number in numbers if callable(heed := signal.getsignal(number))}):
        yield came


def _require_not_taken(channel: Channel) -> None:
    """Make sure that a successor which is dead had not taken over.

    Raises SystemExit if it had: it may have answered clients, so that what this process remembers is out of date.
    """
    for _ in range(ANSWERS_MAX):
        try:
            channel.receive(Taken, until_s=time.monotonic())
        except Gone:
            return
        except HandOverFailed:
            continue  # what it sent before
        log.critical("the successor took over and was ended: this process cannot go on; start the node again")
        sys.exit(1)
