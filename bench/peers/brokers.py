"""The peers nats-server and mosquitto, from Debian's packages, where they are installed.

Message brokers in Go and in C: they store nothing and know no members, so they show what a fan-out costs elsewhere, not
what a chat gateway costs.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.errors import BenchError, PeerMissing
from bench.load.accounts import Door

HOST = "127.0.0.1"
START_TIMEOUT_S = 10.0
"""Seconds from a broker's start to its first accepted connection."""

_NATS_SETTINGS = """\
listen: "{host}:{port}"
ping_interval: "1h"
"""

_MOSQUITTO_SETTINGS = """\
listener {port} {host}
allow_anonymous true
persistence false
log_type error
user root
max_queued_messages 0
set_tcp_nodelay true
"""


@contextlib.contextmanager
def running_broker(name: str, core: int) -> Iterator[Door]:
    """nats-server or mosquitto on ``core``, ended afterwards. Raises PeerMissing when it is not installed."""
    program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise PeerMissing(f"{name}: not installed (Debian package {name})")
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as directory:
        port = _free_port()
        process = subprocess.Popen(
            [program, *_arguments(name, port, Path(directory))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509 -- before it counts its cores
        )
        try:
            _await_listening(name, process, port)
            yield Door(HOST, port, process.pid)
        finally:
            process.kill()
            process.wait()


def _arguments(name: str, port: int, directory: Path) -> list[str]:
    settings = directory / "settings"
    text = _NATS_SETTINGS if name == "nats-server" else _MOSQUITTO_SETTINGS
    settings.write_text(text.format(port=port, host=HOST), encoding="ascii")
    return ["-c", str(settings)]


def _free_port() -> int:
    """A port that was free a moment ago: these programs cannot tell which one the system chose."""
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _await_listening(name: str, process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((HOST, port), timeout=1.0).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    raise BenchError(f"{name} did not start, or does not listen on port {port}")
