"""What the nodes of a cluster stand on in benchmarks: one Cassandra and one Redis, started for the run."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from msgspec import Struct

from bench.errors import BenchError
from bench.load.accounts import Door
from bench.machine import Cores
from bench.node import disk_directory, running_node
from bench.processes import NodeProcess
from deploy.cassandra.launcher import CassandraCluster
from deploy.processes import ServerFailed
from deploy.redis import RedisServer

KEYSPACE = "tidegate"

MIGRATE_TIMEOUT_S = 120.0
"""Seconds that making the tables may take."""


class Backends(Struct, frozen=True):
    """Servers that are running.

    Attributes:
        address: of Cassandra.
        port: where it speaks CQL.
        pids: processes of Cassandra and, last, Redis.
        secret: of tokens of all nodes.
        environment: what tells nodes all this.
    """

    address: str
    port: int
    pids: tuple[int, ...]
    secret: str
    environment: dict[str, str]

    @property
    def redis_pid(self) -> int:
        """The process of Redis."""
        return self.pids[-1]

    def node(
        self, name: str, cores: Cores, parent: Path | None, *options: str
    ) -> AbstractContextManager[tuple[NodeProcess, Door]]:
        """A running node of the cluster; see ``bench.node.running_node``."""
        return running_node(
            cores, parent, "--node-name", name, *options, environment=self.environment, secret=self.secret
        )


@contextmanager
def running_backends(parent: Path | None) -> Iterator[Backends]:
    """Cassandra and Redis with empty tables; they and their data are gone afterwards.

    They may use all processors: each has threads of its own, and no node could do without them.

    Raises BenchError when they are not installed or do not start.
    """
    directory = Path(tempfile.mkdtemp(prefix="tidegate-bench-", dir=parent or disk_directory()))
    try:
        with CassandraCluster(directory / "cassandra") as cassandra, RedisServer(directory / "redis") as redis:
            secret = secrets.token_urlsafe(32)
            environment = {
                "TIDEGATE_STORE": "cassandra",
                "TIDEGATE_CASSANDRA_HOSTS": cassandra.addresses[0],
                "TIDEGATE_CASSANDRA_PORT": str(cassandra.port),
                "TIDEGATE_CASSANDRA_KEYSPACE": KEYSPACE,
                "TIDEGATE_REDIS_URL": redis.url,
                "TIDEGATE_CLUSTER_SECRET": secrets.token_urlsafe(32),
                "TIDEGATE_AUTH_SECRET": secret,
            }
            _migrate(environment)
            pids = (*(node.pid for node in cassandra.nodes), redis.pid)
            yield Backends(cassandra.addresses[0], cassandra.port, pids, secret, environment)
    except ServerFailed as error:
        raise BenchError(str(error)) from None
    finally:
        shutil.rmtree(directory)


def _migrate(environment: dict[str, str]) -> None:
    """Make the tables."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "migrate", "--create-keyspace", "1"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=MIGRATE_TIMEOUT_S,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    if done.returncode:
        raise BenchError(f"the tables could not be made: {done.stderr.strip()[-500:]}")
