"""A real node as a process of its own: started, watched, ended and started again by benchmarks and tests.

Everything here blocks; under trio call it through ``trio.to_thread.run_sync``. Only processes started here are ended,
by their process id.
"""

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jwt
import psutil

from deploy.processes import Startable

START_TIMEOUT_S = 120.0
"""Seconds from start until a node must accept connections: an import takes one on a busy machine, recovery more, and
ten times as much on a machine that is starved."""

STOP_TIMEOUT_S = 120.0
"""Seconds from SIGTERM until a node must be gone: its drain grace (60 s by default) and as much room."""

STDERR_TAIL_BYTES = 4_000
"""How much of a node's log a failure shows, bytes."""

_LISTENING = re.compile(rb"listening on (https?)://([^:\s]+):(\d+)")


class NodeFailed(Exception):
    """A node did not start or did not stop; the message ends with the tail of its log."""


class NodeProcess(Startable):
    """One node, started as ``tidegate serve``; also a context manager that starts it and ends it for good.

    Attributes:
        data_dir: the node's data directory; the caller makes and removes its parent.
        stderr_path: where the node's log goes; all runs append to one file.
        host: the address it listens on, known once started.
        port: the port it listens on, known once started.
    """

    def __init__(
        self,
        data_dir: Path,
        *options: str,
        port: int = 0,
        cpus: Sequence[int] | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        stderr_path: Path | None = None,
    ) -> None:
        """Describe a node; nothing is started yet.

        Args:
            data_dir: handed to ``--data-dir``.
            options: more options of ``tidegate serve``.
            port: port of the first start; 0 lets the system choose.
            cpus: the only processors it may run on; None for all.
            environment: added to this process's environment.
            prefix: a command to run the node under, as ``("strace", "-f")``.
            stderr_path: where its log goes; by default beside the data directory.
        """
        self.data_dir = data_dir
        self.host = ""
        self.port = port
        self._scheme = "http"
        self.stderr_path = stderr_path or data_dir.with_name(data_dir.name + ".stderr")
        self._options = options
        self._cpus = set(cpus) if cpus is not None else None
        self._environment = dict(environment or {})
        self._prefix = tuple(prefix)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the node and wait until it accepts connections.

        A later start uses the port of the first. Raises NodeFailed.
        """
        if self._process is not None:
            raise RuntimeError(f"the node is running already, pid {self.pid}")
        with self.stderr_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", *self._program()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**_environment(), "PYTHONUNBUFFERED": "1", **self._environment},
                cwd=Path(__file__).parent.parent,
                start_new_session=True,
            )
        try:
            if self._cpus is not None:
                # Before the node has made a thread: what it starts later inherits this.
                os.sched_setaffinity(self._process.pid, self._cpus)
            self._scheme, self.host, self.port = self._read_address()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Process id of the node; of ``prefix``'s first word where that stays in between."""
        if self._process is None:
            raise RuntimeError("the node is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended by itself since."""
        return self._process is not None and self._process.poll() is None

    @property
    def url(self) -> str:
        """Address for an HTTP client, without a path."""
        return f"{self._scheme}://{self.host}:{self.port}"

    @property
    def ws_url(self) -> str:
        """Address for a chat client."""
        return f"{self._scheme.replace('http', 'ws')}://{self.host}:{self.port}/v1/connect"

    @property
    def secret(self) -> str:
        """The HS256 secret that the node made on its first start."""
        return (self.data_dir / "secret").read_text(encoding="ascii").strip()

    def token(self, user: str, ttl_s: float = 3_600.0, **claims: object) -> str:
        """A token for ``user`` that runs out in ``ttl_s`` seconds; ``claims`` are added to it."""
        payload = {"sub": user, "aud": "tidegate", "exp": int(time.time() + ttl_s), **claims}
        return jwt.encode(payload, self.secret, algorithm="HS256")

    def terminate(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask the node to drain (SIGTERM), wait, and return its exit code. Raises NodeFailed if it does not end."""
        self._running_process().send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait until it ends by itself and return its exit code. Raises NodeFailed if it does not, having killed it."""
        if self._process is None:
            raise RuntimeError("the node is not running")
        process = self._process
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            tail = self.stderr_tail()
            self.kill()
            raise NodeFailed(f"the node did not end within {timeout_s:g} s\n{tail}") from None
        self._forget()
        return process.returncode

    def wait_for_exit(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait until it ends by itself and return its exit code; a successor that it leaves behind ends with ``kill``.

        Raises NodeFailed if it does not.
        """
        if self._process is None:
            raise RuntimeError("the node is not running")
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise NodeFailed(f"the node did not end within {timeout_s:g} s\n{self.stderr_tail()}") from None

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would; no error when it is gone already."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # gone, and its whole session with it
                # The session is the one start() made: the node, and the command it runs under.
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._forget()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, such as SIGSTOP or SIGCONT."""
        self._running_process().send_signal(number)

    def cpu_s(self) -> float:
        """Processor time used so far by all its threads, user and system, seconds."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def rss_bytes(self) -> int:
        """Resident anonymous memory: what the node itself took, without mapped files (RssAnon of /proc)."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise NodeFailed(f"the kernel does not tell the memory of process {self.pid}")

    def fd_count(self) -> int:
        """Open descriptors of the node."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def stderr_tail(self) -> str:
        """The end of the node's log."""
        data = self.stderr_path.read_bytes() if self.stderr_path.exists() else b""
        return "last lines of its log:\n" + data[-STDERR_TAIL_BYTES:].decode(errors="replace")

    def _program(self) -> list[str]:
        """The module to run, and its arguments."""
        options = ["--port", str(self.port), "--data-dir", str(self.data_dir), *self._options]
        return ["gateway.cli.main", "serve", *options]

    def _running_process(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            raise NodeFailed(f"the node is not running\n{self.stderr_tail()}")
        return self._process

    def _read_address(self) -> tuple[str, str, int]:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        said = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while (found := _LISTENING.search(said)) is None or not said[found.end() :]:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not selector.select(left_s):
                    raise NodeFailed(f"the node said no address within {START_TIMEOUT_S:g} s\n{self.stderr_tail()}")
                chunk = os.read(process.stdout.fileno(), 4096)
                if not chunk:
                    raise NodeFailed(f"the node ended with code {process.wait()}\n{self.stderr_tail()}")
                said += chunk
        return found[1].decode(), found[2].decode(), int(found[3])

    def _forget(self) -> None:
        assert self._process is not None
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None


class SharedPort(NodeProcess):
    """Several nodes behind one port, each on a data directory of its own; see bench/several_nodes.py.

    What is said of the node is the supervisor's; options are NAME=VALUE.
    """

    def __init__(
        self,
        count: int,
        data_dir: Path,
        *options: str,
        cpus: Sequence[int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Describe ``count`` nodes; nothing is started yet."""
        super().__init__(data_dir, *options, cpus=cpus, environment=environment)
        self._count = count

    def node_pids(self) -> list[int]:
        """Process ids of the nodes that run now."""
        return [child.pid for child in psutil.Process(self.pid).children()]

    def _program(self) -> list[str]:
        return ["bench.several_nodes", str(self._count), str(self.data_dir), f"port={self.port}", *self._options]


def _environment() -> dict[str, str]:
    """This process's environment without settings for nodes: what runs here is described by options alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
