"""Real nodes of one cluster on the session's Cassandra and Redis, as processes."""

import subprocess
import sys
from pathlib import Path

from bench.processes import NodeProcess
from tests.servers.fixtures import Keyspace
from tests.servers.redis import RedisServer

SECRET = "the secret that all nodes and tests of one cluster share"
DEADLINE_S = 240
PATIENT = ("--lease-s", "60")
"""Options of nodes of which none is to be taken for dead, however long a machine that is very busy lets one wait."""
MIGRATIONS_MAX = 3
"""Times that a migration is begun: on a very busy machine Cassandra may break one off, and says to run it again."""


class ClusterNode(NodeProcess):
    """One node; whoever has the secret that all share makes its tokens."""

    @property
    def secret(self) -> str:
        """See NodeProcess.secret."""
        return SECRET


class ClusterNodes:
    """Nodes of one cluster, by name. Call ``kill_all`` at the end.

    Attributes:
        options: what each of them is started with, besides its name.
    """

    def __init__(self, tmp_path: Path, cassandra: Keyspace, redis_server: RedisServer) -> None:
        self.options = (
            "--store", "cassandra", "--cassandra-hosts", cassandra.contact_points[0],
            "--cassandra-port", str(cassandra.port), "--cassandra-keyspace", cassandra.name,
            "--redis-url", redis_server.url, "--cluster-secret", SECRET, "--auth-secret", SECRET,
            "--commands-per-s-max", "0", "--conversation-sends-per-s-max", "0", "--log-format", "json",
        )  # fmt: skip
        self._tmp_path = tmp_path
        self._nodes: list[NodeProcess] = []
        for _ in range(MIGRATIONS_MAX):
            done = self.tidegate("migrate", *self.options[2:8])
            if done.returncode == 0:
                break
        assert done.returncode == 0, done.stderr

    def tidegate(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command of ours. Blocks."""
        command = [sys.executable, "-m", "gateway.cli.main", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    def start(self, name: str, *options: str) -> ClusterNode:
        """Start a node and wait until it accepts connections. Blocks."""
        node = ClusterNode(self._tmp_path / name, "--node-name", name, *self.options, *options)
        self._nodes.append(node)
        node.start()
        return node

    def kill_all(self) -> None:
        """End all that still run."""
        for node in self._nodes:
            node.kill()
