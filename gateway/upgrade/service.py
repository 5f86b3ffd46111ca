"""The doors to an upgrade: the control socket that ``tidegate upgrade`` uses, SIGUSR2, and a supervisor's order.

A supervisor of several processes has the first two as well, and gives its nodes that order.
"""

import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Final, NoReturn

import structlog
import trio

from gateway.upgrade import control
from gateway.upgrade.candidates import Sibling
from gateway.upgrade.channel import Channel
from gateway.upgrade.control import UpgradeFailed

if TYPE_CHECKING:
    from gateway.process_link import HandOver, NodeEnd
    from gateway.upgrade.predecessor import Upgrades  # which brings parts of a node, that a supervisor does without

REQUEST_TIMEOUT_S: Final = 5.0
"""Seconds in which somebody who connects to the control socket must have said what is wanted."""

log = structlog.get_logger(__name__)


class Asker:
    """Who asked for an upgrade and is told how it goes; by signal nobody is. Writes without waiting.

    Attributes:
        sock: a connection to who asked; None where there is none.
    """

    def __init__(
        self,
        sock: socket.socket | None = None,
        send: Callable[[bytes], object] | None = None,
        successor: int = 0,
    ) -> None:
        """What is to be told goes to ``sock``, or else to ``send``, which may raise OSError.

        ``successor``: the process that who asked has given to take over; 0: none.
        """
        self.sock = sock
        self._successor = successor
        self._send = send if sock is None else sock.send

    def reached(self, state: str) -> None:
        """Tell that a state was reached."""
        self._say(control.Progress(state))

    def failed(self, reason: str) -> None:
        """Tell that all is as before, and why."""
        log.error("upgrade failed, this process goes on", reason=reason)
        self._say(control.Refused(reason, self._successor))

    def ended(self) -> None:
        """Tell that nothing came of it, because this process ends."""
        self._say(control.Refused("the node ends", self._successor))

    def several(self, outcome: control.Several) -> None:
        """Tell what became of each of several processes."""
        self._say(outcome)

    def leave(self, outcome: control.Succeeded) -> NoReturn:
        """Tell that it is done, and end the process: no cleaning up may touch what belongs to the successor."""
        try:
            log.info(
                "upgraded",
                successor=outcome.pid,
                connections=outcome.connections,
                paused_ms=outcome.paused_ms,
                stood_still_ms=outcome.stood_still_ms,
            )
            self._say(outcome)
        finally:
            os._exit(0)

    def _say(self, line: control.Line) -> None:
        if self._send is None:
            return
        try:
            self._send(control.encode_line(line))
        except OSError as error:  # it went away; what it asked for goes on
            log.debug("nobody waits for the outcome of the upgrade any more", error=str(error))
            self._send = None


CarryOut = Callable[[Asker], Awaitable[object]]
"""Upgrades this process, and does not return. Raises UpgradeFailed: all is as before."""


async def heed_upgrades(carry_out: CarryOut, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Carry out what is asked for until cancelled."""
    with trio.open_signal_receiver(signal.SIGUSR2) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_on_signal, carry_out, signals)
            try:
                listening = control.listen_for_control()
            except OSError as error:
                log.warning("no control socket: an upgrade takes SIGUSR2", error=str(error))
            else:
                nursery.start_soon(_on_control, carry_out, listening)
            task_status.started()


async def _on_signal(carry_out: CarryOut, signals: AsyncIterator[int]) -> None:
    async for number in signals:
        log.info("signal", signal=signal.Signals(number).name)
        await upgrade(carry_out, Asker())


async def _on_control(carry_out: CarryOut, listening: socket.socket) -> None:
    with listening:
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(listening)
                try:
                    sock, _ = listening.accept()
                except OSError as error:  # it went away again, or there is no descriptor left for it
                    log.warning("control connection not accepted", error=str(error))
                    await trio.sleep(1)
                    continue
                nursery.start_soon(_serve, carry_out, sock)


async def _serve(carry_out: CarryOut, sock: socket.socket) -> None:
    """Do what one peer asks for."""
    with sock:
        sock.setblocking(False)
        if not control.may_ask(sock):
            log.warning("upgrade asked for by another user, and refused", uid=control.peer_of(sock)[1])
            return
        request = b""
        with trio.move_on_after(REQUEST_TIMEOUT_S):
            await trio.lowlevel.wait_readable(sock)
            request = sock.recv(control.LINE_BYTES_MAX)
        if request == control.REQUEST:
            await upgrade(carry_out, Asker(sock))


async def obey(upgrades: "Upgrades", link: "NodeEnd", order: "HandOver") -> None:
    """Carry out a supervisor's order to hand over to a process, and tell it over the link what became of it."""
    sibling = Sibling(order.pid, order.pidfd, Channel(socket.socket(fileno=order.channel)))
    asker = Asker(send=link.say_upgrade, successor=order.pid)
    try:
        await upgrade(lambda asker: upgrades.upgrade(asker.reached, asker.leave, sibling), asker)
    finally:
        sibling.close()


async def upgrade(carry_out: CarryOut, asker: Asker) -> None:
    """Carry out what one asks for."""
    try:
        await carry_out(asker)
    except UpgradeFailed as error:
        asker.failed(str(error))
    except trio.Cancelled:
        asker.ended()
        raise
