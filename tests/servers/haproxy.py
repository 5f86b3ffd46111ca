"""A real HAProxy for tests, run on the configuration that the test gives."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from deploy.loopback import accepts
from deploy.processes import ServerFailed, ServerProcess, Startable

START_TIMEOUT_S = 30.0
"""From start until its front end must accept connections, seconds."""

# Debian keeps it in a folder that is not in everybody's path.
_PROGRAM = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")


def what_is_missing() -> str:
    """Why no HAProxy can be started here, in words; empty when one can."""
    if _PROGRAM is None:
        return "haproxy is missing (install the package haproxy, or run deploy/test-packages.sh)"
    return ""


class HaproxyServer(ServerProcess, Startable):
    """One HAProxy in the foreground; also a context manager that starts it and ends it for good.

    Its log comes into ``log_path`` if the configuration says ``log stdout format raw local0``.
    """

    def __init__(
        self, configuration: Path, log_path: Path, front: tuple[str, int], environment: Mapping[str, str] | None = None
    ) -> None:
        """Describe a proxy; nothing is started yet.

        Args:
            configuration: its configuration file.
            log_path: where its output goes.
            front: address and port of a front end; it has started when connections are accepted there.
            environment: what ``${NAME}`` stands for in the configuration, added to this process's environment.

        Raises:
            ServerFailed: haproxy is not installed.
        """
        if _PROGRAM is None:
            raise ServerFailed(what_is_missing())
        super().__init__("HAProxy", [_PROGRAM, "-db", "-f", str(configuration)], log_path, environment)
        self.front = front

    def start(self) -> None:
        """Start it and wait until the front end accepts connections. Raises ServerFailed, with what it complains of."""
        self.start_until(lambda: accepts(*self.front), START_TIMEOUT_S, f"front end at {self.front}")


def check(configuration: Path, environment: Mapping[str, str]) -> str:
    """Let HAProxy judge a configuration without running it; empty when all is well, else its complaints."""
    if _PROGRAM is None:
        raise ServerFailed(what_is_missing())
    done = subprocess.run(
        [_PROGRAM, "-c", "-f", str(configuration)],
        check=False,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
    )
    # On success it says so on stdout; warnings and errors are on stderr.
    return done.stderr.strip() or (f"code {done.returncode}" if done.returncode else "")
