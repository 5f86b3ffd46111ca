"""Starting a peer in a process of its own, pinned to the server core."""

import importlib.util
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.child import ChildProcess
from bench.errors import BenchError, PeerMissing

START_TIMEOUT_S = 20.0
"""Seconds from a peer's start to its line on standard output."""

BACKLOG = 4_096
"""Listen backlog of every peer: the default of some (100) would measure SYN retries."""

_LISTENING = re.compile(rb"listening on ([0-9.]+):(\d+)\n")


class PeerProcess(ChildProcess):
    """A running peer: ``python -m bench.peers.MODULE ARGUMENTS``; a context manager that ends it.

    Attributes:
        host: address it listens on.
        port: its port.
    """

    def __init__(self, module: str, *arguments: str, core: int, needs: tuple[str, ...] = ()) -> None:
        """Start it and wait until it listens. ``needs`` are the packages it imports.

        Raises PeerMissing when one of them is not installed, BenchError when it does not start.
        """
        missing = [name for name in needs if importlib.util.find_spec(name) is None]
        if missing:
            raise PeerMissing(f"{module}: not installed: {', '.join(missing)} (pip install 'tidegate[bench]')")
        self._module = module
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"bench.peers.{module}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=Path(__file__).parents[2],
        )
        try:
            os.sched_setaffinity(self._process.pid, {core})
            self.host, self.port = self._read_address()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()

    def _read_address(self) -> tuple[str, int]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        said = b""
        while (found := _LISTENING.search(said)) is None:
            left_s = max(0.0, deadline - time.monotonic())
            chunk = b""
            if select.select([self._process.stdout], [], [], left_s)[0]:
                chunk = os.read(self._process.stdout.fileno(), 4_096)
            if not chunk:
                self._stderr.seek(0)
                complaint = self._stderr.read().decode(errors="replace").strip().splitlines()[-1:]
                raise BenchError(f"the peer {self._module} did not start: {said.decode()!r} {complaint}")
            said += chunk
        return found[1].decode(), int(found[2])


def say_address(host: str, port: int) -> None:
    """Tell the benchmark, from inside a peer, that connections are accepted now."""
    print(f"listening on {host}:{port}", flush=True)
