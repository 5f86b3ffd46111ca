"""A driver that was told one address finds only proxies, and faults reach every connection it makes."""

from collections.abc import Iterator

import pytest
from cassandra import OperationTimedOut
from cassandra.cluster import Cluster, ExecutionProfile, NoHostAvailable, Session
from cassandra.policies import FallthroughRetryPolicy, RoundRobinPolicy

from bench.torture.proxy import DOWN, FaultProxy, Faults
from deploy.cassandra import cql
from deploy.cassandra.launcher import CassandraCluster, CassandraOptions, what_is_missing
from tests.faults.thread import ProxyThread

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CassandraCluster]:
    with CassandraCluster(tmp_path_factory.mktemp("cassandra"), CassandraOptions(proxied=True)) as cluster:
        yield cluster


def connect(cluster: CassandraCluster) -> tuple[Cluster, Session]:
    profile = ExecutionProfile(RoundRobinPolicy(), FallthroughRetryPolicy(), request_timeout=30)
    driver = Cluster(
        cluster.addresses, port=cluster.port, protocol_version=5, execution_profiles={"default": profile},
        connect_timeout=30, control_connection_timeout=30,
    )  # fmt: skip
    return driver, driver.connect()


def test_an_lwt_whose_answer_is_lost_was_applied(cluster: CassandraCluster) -> None:
    faults = Faults()
    (node,) = cluster.nodes
    proxy = FaultProxy((node.advertised, node.port), (node.address, node.port), faults)
    with ProxyThread([proxy]) as thread:
        driver, session = connect(cluster)
        try:
            assert {host.endpoint.address for host in driver.metadata.all_hosts()} == {node.advertised}
            # One connection for requests and one to learn of the cluster, both through the proxy.
            assert thread.call(lambda: faults.open_connections) >= 2
            session.execute("CREATE KEYSPACE k WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}")
            session.execute("CREATE TABLE k.t (k int PRIMARY KEY, v int)")
            thread.call(faults.silence, DOWN)
            # Long enough for a very busy node to apply it, so that the second try below does come second.
            future = session.execute_async("INSERT INTO k.t (k, v) VALUES (1, 1) IF NOT EXISTS", timeout=10)
            with pytest.raises(OperationTimedOut):
                future.result()
            # Asked past the proxy: a second try is the only one that is not applied, so it must not change the row.
            cql.ask(node.address, node.port, "INSERT INTO k.t (k, v) VALUES (1, 2) IF NOT EXISTS")
            thread.call(faults.heal)
            (row,) = session.execute("SELECT v FROM k.t WHERE k = 1")
            assert row.v == 1
        finally:
            thread.call(faults.heal)
            driver.shutdown()


def test_a_partition_leaves_the_driver_without_a_node(cluster: CassandraCluster) -> None:
    faults = Faults()
    (node,) = cluster.nodes
    proxy = FaultProxy((node.advertised, node.port), (node.address, node.port), faults)
    with ProxyThread([proxy]) as thread:
        thread.call(faults.partition)
        assert node.answers()
        driver = Cluster(cluster.addresses, port=cluster.port, protocol_version=5, connect_timeout=5)
        with pytest.raises(NoHostAvailable):
            driver.connect()
        driver.shutdown()
