"""Real nodes: one for all tests that do not harm it, and those of a cluster."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.processes import NodeProcess
from tests.process.cluster_nodes import ClusterNodes
from tests.servers.fixtures import Keyspace
from tests.servers.redis import RedisServer


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node with short deadlines, shared by the whole session; at its end it has to drain without an error."""
    data_dir = tmp_path_factory.mktemp("node") / "data"
    with NodeProcess(
        data_dir, "--handshake-timeout-s", "3", "--commands-per-s-max", "0", "--log-format", "json"
    ) as node:
        yield node
        code = node.terminate()
        log = node.stderr_path.read_text(encoding="utf-8")
        assert code == 0, node.stderr_tail()
        assert "Traceback" not in log, log
        assert '"level":"error"' not in log.replace(" ", ""), log


@pytest.fixture
def nodes(tmp_path: Path, cassandra: Keyspace, redis_server: RedisServer) -> Iterator[ClusterNodes]:
    """Starts nodes of one cluster; those that are left at the end are killed."""
    each = ClusterNodes(tmp_path, cassandra, redis_server)
    yield each
    each.kill_all()
