"""The two doors to an upgrade: the control socket that ``tidegate upgrade`` uses, and SIGUSR2."""

import os
import signal
import socket
from collections.abc import AsyncIterator
from typing import NoReturn

import structlog
import trio

from gateway.upgrade import control
from gateway.upgrade.predecessor import UpgradeFailed, Upgrades

REQUEST_TIMEOUT_S = 5.0
"""Seconds in which somebody who connects to the control socket must have said what is wanted."""

log = structlog.get_logger(__name__)


class Asker:
    """Who asked for an upgrade and is told how it goes; by signal nobody is. Writes without waiting."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self._sock = sock

    def reached(self, state: str) -> None:
        """Tell that a state was reached."""
        self._say(control.Progress(state))

    def failed(self, reason: str) -> None:
        """Tell that all is as before, and why."""
        log.error("upgrade failed, this process goes on", reason=reason)
        self._say(control.Refused(reason))

    def leave(self, outcome: control.Succeeded) -> NoReturn:
        """Tell that it is done, and end the process: no cleaning up may touch what belongs to the successor."""
        log.info(
            "upgraded",
            successor=outcome.pid,
            connections=outcome.connections,
            paused_ms=outcome.paused_ms,
            stood_still_ms=outcome.stood_still_ms,
        )
        self._say(outcome)
        os._exit(0)

    def _say(self, line: control.Line) -> None:
        if self._sock is None:
            return
        try:
            self._sock.send(control.encode_line(line))
        except OSError as error:  # it went away; what it asked for goes on
            log.debug("nobody waits for the outcome of the upgrade any more", error=str(error))
            self._sock = None


async def heed_upgrades(upgrades: Upgrades, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Carry out what is asked for until cancelled; an upgrade that succeeds ends the process."""
    with trio.open_signal_receiver(signal.SIGUSR2) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_on_signal, upgrades, signals)
            try:
                listening = control.listen_for_control()
            except OSError as error:
                log.warning("no control socket: an upgrade takes SIGUSR2", error=str(error))
            else:
                nursery.start_soon(_on_control, upgrades, listening)
            task_status.started()


async def _on_signal(upgrades: Upgrades, signals: AsyncIterator[int]) -> None:
    async for number in signals:
        log.info("signal", signal=signal.Signals(number).name)
        await _upgrade(upgrades, Asker())


async def _on_control(upgrades: Upgrades, listening: socket.socket) -> None:
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
                nursery.start_soon(_serve, upgrades, sock)


async def _serve(upgrades: Upgrades, sock: socket.socket) -> None:
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
            await _upgrade(upgrades, Asker(sock))


async def _upgrade(upgrades: Upgrades, asker: Asker) -> None:
    try:
        await upgrades.upgrade(asker.reached, asker.leave)
    except UpgradeFailed as error:
        asker.failed(str(error))
