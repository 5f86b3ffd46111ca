"""The process that is to take over: started by the node that hands over, or by the supervisor of that node."""

import os
import select
import signal
import socket
import subprocess
from collections.abc import Sequence
from typing import Final, Protocol

from gateway.upgrade import PREDECESSOR_VARIABLE
from gateway.upgrade.channel import Channel, HandOverFailed

KILL_TIMEOUT_S: Final = 10.0
"""Seconds in which a killed process must be gone."""


class Candidate(Protocol):
    """Such a process.

    Attributes:
        pid: its process id.
        channel: what is handed over goes there.
    """

    pid: int
    channel: Channel

    def end(self) -> None:
        """End it for certain, whatever it is doing. Blocks until it is dead. Raises TimeoutError if it does not die."""

    def how_ended(self) -> str:
        """With which code it has ended, as the continuation of a sentence; empty where nobody tells this process."""

    def close(self) -> None:
        """Give up what leads to it; it goes on. Once more does nothing."""


class Child:
    """A candidate that this process has started. Implements ``Candidate``."""

    def __init__(self, process: "subprocess.Popen[bytes]", channel: Channel) -> None:
        self.pid = process.pid
        self.channel = channel
        self._process = process

    def end(self) -> None:
        """See Candidate.end."""
        self._process.kill()
        self._wait()

    def how_ended(self) -> str:
        """See Candidate.how_ended."""
        return f" with code {self._wait()}"

    def close(self) -> None:
        """See Candidate.close."""
        self.channel.close()

    def _wait(self) -> int:
        try:
            return self._process.wait(KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"process {self.pid} does not end") from None


class Sibling:
    """A candidate that this process's supervisor has started, known by its descriptor. Implements ``Candidate``."""

    def __init__(self, pid: int, pidfd: int, channel: Channel) -> None:
        """Takes over ``pidfd`` (pidfd_open(2)) and the channel."""
        self.pid = pid
        self.channel = channel
        self._pidfd = pidfd

    def end(self) -> None:
        """See Candidate.end."""
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return  # it has ended, and the supervisor knows
        dead = select.poll()
        dead.register(self._pidfd, select.POLLIN)
        if not dead.poll(KILL_TIMEOUT_S * 1e3):
            raise TimeoutError(f"process {self.pid} does not end")

    def how_ended(self) -> str:
        """See Candidate.how_ended. Only the supervisor hears its code."""
        return ""

    def close(self) -> None:
        """See Candidate.close."""
        self.channel.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def start_candidate(command: Sequence[str]) -> Child:
    """Start a candidate that finds its end of a channel. Raises HandOverFailed when it cannot be started."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            environment = {**os.environ, PREDECESSOR_VARIABLE: str(theirs.fileno())}
            # All else that Python opens is closed there; it shares standard output and error.
            process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])  # noqa: S603 - as called
    except OSError as error:
        ours.close()
        raise HandOverFailed(f"{command[0]} cannot be started: {error.strerror}") from None
    return Child(process, Channel(ours))
