import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import Cluster, ExecutionProfile, Session
from cassandra.policies import AddressTranslator, RoundRobinPolicy

from deploy.cassandra import cql
from deploy.cassandra.launcher import NODES_MAX, CassandraCluster, CassandraOptions, what_is_missing
from deploy.processes import ServerFailed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())]


class PastProxies(AddressTranslator):
    """Leads the driver from the advertised addresses, where nothing listens in these tests, to the nodes."""

    def __init__(self, cluster: CassandraCluster) -> None:
        self.hidden = {node.advertised: node.address for node in cluster.nodes}

    def translate(self, addr: str) -> str:
        return self.hidden.get(addr, addr)


@contextmanager
def session_of(cluster: CassandraCluster) -> Iterator[Session]:
    profile = ExecutionProfile(RoundRobinPolicy(), request_timeout=30)
    driver = Cluster(
        [node.address for node in cluster.nodes],
        port=cluster.port,
        protocol_version=5,
        auth_provider=PlainTextAuthProvider(cluster.user, cluster.password) if cluster.user else None,
        ssl_context=cluster.certificate.client_context() if cluster.certificate else None,
        ssl_options={"server_hostname": "localhost"} if cluster.certificate else None,
        execution_profiles={"default": profile},
        address_translator=PastProxies(cluster),
        connect_timeout=30,
        control_connection_timeout=30,
    )
    try:
        yield driver.connect()
    finally:
        driver.shutdown()


def test_login_tls_and_advertised_addresses(tmp_path: Path) -> None:
    options = CassandraOptions(commitlog_sync="batch", authentication=True, tls=True, proxied=True)
    with CassandraCluster(tmp_path, options) as cluster:
        (node,) = cluster.nodes
        assert node.address != node.advertised
        assert cluster.certificate is not None
        trusted = cluster.certificate.client_context()
        statement = "SELECT * FROM system.local"
        cql.ask(node.address, node.port, statement, access=cql.Access("cassandra", "cassandra", trusted))
        with pytest.raises(cql.Refused, match="password are incorrect"):
            cql.ask(node.address, node.port, statement, access=cql.Access("cassandra", "wrong", trusted))
        stranger = cql.Access("cassandra", "cassandra", ssl.create_default_context())
        with pytest.raises(ssl.SSLCertVerificationError):
            cql.ask(node.address, node.port, statement, access=stranger)
        with pytest.raises(ConnectionError):
            cql.ask(node.address, node.port, statement, access=cql.Access("cassandra", "cassandra"))
        with session_of(cluster) as session:
            (row,) = session.execute("SELECT rpc_address, listen_address FROM system.local")
            assert (row.rpc_address, row.listen_address) == (node.advertised, node.address)


def test_a_killed_node_comes_back_with_its_data(tmp_path: Path) -> None:
    with CassandraCluster(tmp_path, CassandraOptions(commitlog_sync="batch")) as cluster:
        (node,) = cluster.nodes
        with session_of(cluster) as session:
            session.execute("CREATE KEYSPACE k WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}")
            session.execute("CREATE TABLE k.t (k int PRIMARY KEY)")
            session.execute("INSERT INTO k.t (k) VALUES (7)")
        before = node.pid
        node.kill()
        assert not node.answers()
        node.restart()
        assert node.pid != before
        with session_of(cluster) as session:
            assert [row.k for row in session.execute("SELECT k FROM k.t")] == [7]


def test_a_node_alone_does_not_take_itself_for_the_cluster(tmp_path: Path) -> None:
    cluster = CassandraCluster(tmp_path, CassandraOptions(nodes=3))
    first = cluster.nodes[0]
    try:
        first.start()
        assert first.answers()
        assert not first.answers(cql.ALL, "system_traces.sessions")
    finally:
        cluster.kill()


def test_three_nodes_form_one_cluster_and_survive_one(tmp_path: Path) -> None:
    with CassandraCluster(tmp_path, CassandraOptions(nodes=3)) as cluster:
        first, _, third = cluster.nodes
        with session_of(cluster) as session:
            # The driver waits until all nodes know the table.
            replication = "{'class': 'NetworkTopologyStrategy', 'datacenter1': 3}"
            session.execute(f"CREATE KEYSPACE k WITH replication = {replication}")
            session.execute("CREATE TABLE k.t (k int PRIMARY KEY)")
        third.pause()
        cql.ask(first.address, first.port, "INSERT INTO k.t (k) VALUES (7) IF NOT EXISTS", cql.QUORUM)
        third.resume()
        first.restart()
        cluster.wait_agreed()
        cql.ask(first.address, first.port, "SELECT k FROM k.t WHERE k = 7", cql.ALL)


def test_a_node_that_cannot_start_says_why(tmp_path: Path) -> None:
    cluster = CassandraCluster(tmp_path)
    (tmp_path / "node1" / "cassandra.yaml").write_text("no_such_setting: 1\n")
    with pytest.raises(ServerFailed, match="no_such_setting"):
        cluster.start()
    assert not cluster.nodes[0].running


@pytest.mark.parametrize("nodes", [0, NODES_MAX + 1])
def test_wrong_number_of_nodes(tmp_path: Path, nodes: int) -> None:
    with pytest.raises(ValueError, match=f"nodes is {nodes}; allowed are 1 to {NODES_MAX}"):
        CassandraCluster(tmp_path, CassandraOptions(nodes=nodes))
