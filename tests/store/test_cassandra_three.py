"""The cluster's store on three Cassandra nodes with three copies of everything, one of which was killed."""

import itertools
from collections.abc import Iterator
from functools import partial

import pytest
import trio

from deploy.cassandra import cql, launcher
from deploy.cassandra.launcher import CassandraCluster, CassandraOptions
from store.cassandra import CassandraStore
from store.cassandra_coordination import CassandraCoordination
from store.cassandra_driver import CassandraTables
from store.cassandra_migrations import cassandra_migrations, migrate
from store.cassandra_session import Access, connect, create_keyspace, open_cluster
from store.interface import NotWritten, OutcomeUnknown
from tests.store.apart import Apart
from tests.store.conformance import StoreConformance, make, seqs
from tests.store.entries import append
from tests.store.outcomes import append_all
from tests.store.running import running
from tests.store.test_cassandra_coordination import live

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(launcher.what_is_missing()), reason=launcher.what_is_missing())]

KEYSPACE = "tidegate_three"
_marks = (f"test{number}-" for number in itertools.count())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CassandraCluster]:
    """Three nodes that agree on their tables."""
    options = CassandraOptions(nodes=3, commitlog_sync="batch")
    with CassandraCluster(tmp_path_factory.mktemp("three"), options) as started:
        yield started


@pytest.fixture(scope="module")
def access(cluster: CassandraCluster) -> Access:
    """Migrated tables on two living nodes, and on one that was killed and is still asked, being among the hosts."""
    found = Access(tuple(cluster.addresses), cluster.port, KEYSPACE, "datacenter1")
    driver = open_cluster(found)
    try:
        assert create_keyspace(driver, found, 3)
        assert migrate(connect(driver, found), KEYSPACE, lambda _migration: None) == len(cassandra_migrations())
    finally:
        driver.shutdown()
    cluster.nodes[0].kill()
    return found


@pytest.fixture
async def tables(access):
    async with running(CassandraTables(access, requests_max=64)) as made:
        yield made


@pytest.fixture
async def store(tables):
    """An empty store that owns everything."""
    async with running(CassandraStore(Apart(tables, next(_marks)), lambda _conversation_id, _epoch: True)) as made:
        yield made


class TestTwoOfThree(StoreConformance):
    """With two of three replicas."""


async def test_leases_and_slots(tables):
    await live(CassandraCoordination(tables))


async def test_another_node_dies_and_what_was_acknowledged_is_there_when_it_is_back(cluster, store):
    """Without a quorum nothing is acknowledged; with one again, a takeover finds all that was."""
    _, dies, stays = cluster.nodes
    await make(store)
    await store.take_over("g1", 1, 10)
    assert await append_all(store, append("g1", 2)) == [None]
    dies.kill()
    (error,) = await append_all(store, append("g1", 3))
    assert isinstance(error, NotWritten | OutcomeUnknown)
    await trio.to_thread.run_sync(dies.start)
    has_quorum = partial(stays.answers, cql.QUORUM, f"{KEYSPACE}.conversations")
    await trio.to_thread.run_sync(stays.wait_until, has_quorum, launcher.START_TIMEOUT_S, "answer with a quorum")
    loaded = await store.take_over("g1", 2, 10)
    assert loaded.head_seq in (2, 3), "the one whose outcome was unknown may be there"
    assert await seqs(store) == list(range(1, loaded.head_seq + 1))
    assert await append_all(store, append("g1", loaded.head_seq + 1, epoch=2)) == [None]
