"""A server program that is started beside tidegate for trials and tests: watched, paused, ended by its process id.

Everything here blocks; under trio call it through ``trio.to_thread.run_sync``.
"""

import contextlib
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

POLL_INTERVAL_S = 0.05
"""How often a server that is starting is asked whether it answers, seconds."""

STOP_TIMEOUT_S = 30.0
"""How long a server may take to end after SIGTERM before it is killed, seconds."""

LOG_TAIL_BYTES = 4_000
"""How much of a server's log a failure shows, bytes."""

# Ends the server when its starter is gone, however that died: then the pipe closes without the word. Its whole group,
# because after a live upgrade another process is in its place. dash takes the "--" only behind "-s".
_GUARD = 'read -r word; [ "$word" = over ] || kill -s KILL -- "-$1"'


class ServerFailed(Exception):
    """A server did not start, ended by itself or did not answer; the message ends with the tail of its log."""


class Startable(ABC):
    """One program or several that ``with`` starts, and kills at the end of the block."""

    @abstractmethod
    def start(self) -> None:
        """Start it and wait until it answers; if that fails, nothing of it is left."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would; no error when it is gone already."""

    def restart(self) -> None:
        """Kill it if it runs, and start it again, with the data that it had."""
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


class ServerProcess:
    """One server program, at most once running at a time.

    Attributes:
        name: what messages call it.
        log_path: where its output goes; all runs append to one file.
    """

    def __init__(
        self, name: str, command: Sequence[str], log_path: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Describe a server; nothing is started yet. ``environment`` is added to this process's own."""
        self.name = name
        self.log_path = log_path
        self._command = list(command)
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._paused = False

    @property
    def pid(self) -> int:
        """Its process id. Raises ServerFailed when it is not running."""
        return self._running_process().pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended since; a paused one is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def paused(self) -> bool:
        """Whether it stands still because of pause()."""
        return self._paused and self.running

    def launch(self) -> None:
        """Start the program without waiting for it to answer. It ends with this process, whatever happens to that."""
        if self.running:
            raise RuntimeError(f"{self.name} is running already, pid {self.pid}")
        self._reap()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self._process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )

    def start_until(self, answers: Callable[[], bool], timeout_s: float, waiting_for: str) -> None:
        """Start it and wait until ``answers`` says yes; one that does not come up is ended again.

        Raises:
            ServerFailed: it ended by itself, or ``timeout_s`` seconds were over.
        """
        self.launch()
        try:
            self.wait_until(answers, timeout_s, waiting_for)
        except BaseException:
            self.kill()
            raise

    def wait_until(self, answers: Callable[[], bool], timeout_s: float, waiting_for: str) -> None:
        """Ask ``answers`` again and again until it says yes.

        Raises:
            ServerFailed: the server ended by itself, or ``timeout_s`` seconds were over.
        """
        deadline = time.monotonic() + timeout_s
        process = self._running_process()
        while not answers():
            try:
                process.wait(POLL_INTERVAL_S)
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    raise ServerFailed(
                        f"{self.name}: no {waiting_for} within {timeout_s:g} s\n{self.log_tail()}"
                    ) from None
            else:
                raise ServerFailed(f"{self.name} ended with code {process.returncode}\n{self.log_tail()}")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal. Raises ServerFailed when it is not running."""
        self._running_process().send_signal(number)

    def pause(self) -> None:
        """Let it stand still (SIGSTOP): its sockets stay open and nothing answers."""
        self.signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """Let it go on after pause(); nothing happens to one that goes."""
        self.signal(signal.SIGCONT)
        self._paused = False

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would, and wait for that; no error when it is gone already."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ask it to end (SIGTERM), wait, and kill it after ``timeout_s`` seconds; no error when it is gone already.

        Who went on in its place (a live upgrade) is ended likewise.
        """
        if self._process is None:
            return
        group = self._process.pid
        self._process.terminate()
        # A paused process gets its SIGTERM only when it goes on.
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        _end_group(group, timeout_s)
        self._reap()

    def terminate(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask it to end (SIGTERM), wait, and return its exit code.

        Raises ServerFailed when it is not running, or does not end within ``timeout_s`` seconds; then it was killed.
        """
        process = self._running_process()
        process.terminate()
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerFailed(f"{self.name} did not end within {timeout_s:g} s\n{self.log_tail()}") from None
        self._reap()
        return code

    def log_tail(self) -> str:
        """The end of its log."""
        data = self.log_path.read_bytes() if self.log_path.exists() else b""
        return f"last lines of {self.log_path}:\n" + data[-LOG_TAIL_BYTES:].decode(errors="replace")

    def _running_process(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            raise ServerFailed(f"{self.name} is not running\n{self.log_tail()}")
        return self._process

    def _reap(self) -> None:
        """Take note of its end, and tell the guard that there is nothing to kill."""
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._guard is not None:
            self._guard.communicate(b"over\n")
            self._guard = None
        self._paused = False


def _end_group(group: int, timeout_s: float) -> None:
    """End who is left of a process group whose first process has ended."""
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        while _lives(group):
            if time.monotonic() > deadline:
                os.killpg(group, signal.SIGKILL)
                return
            time.sleep(POLL_INTERVAL_S)


def _lives(group: int) -> bool:
    """Whether any process of a group has not ended; whoever should have waited for one that has is not waited for."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, its_group, *_ = path.read_text(errors="replace").rpartition(")")[2].split()
            if state not in "ZX" and int(its_group) == group:
                return True
    return False
