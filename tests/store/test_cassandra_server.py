"""The cluster's store on a real Cassandra: what every store must do, and how it says that it cannot be used."""

import socket
from collections.abc import Iterator

import msgspec
import pytest
import trio

from deploy.cassandra import cql
from deploy.cassandra.launcher import CassandraCluster
from store.cassandra import CassandraStore
from store.cassandra_coordination import CassandraCoordination
from store.cassandra_driver import CassandraTables
from store.cassandra_migrations import cassandra_migrations, check_schema, migrate, schema_number
from store.cassandra_session import Access, CannotUse, connect, open_cluster
from store.coordination import LeaseRecord
from store.interface import StaleEpoch, Unavailable
from store.migrations import Migration, SchemaTooNew
from tests.store.conformance import StoreConformance, make, seqs
from tests.store.entries import append
from tests.store.huge import check_channel
from tests.store.outcomes import append_all
from tests.store.running import running
from tests.store.test_cassandra_coordination import live

pytestmark = pytest.mark.slow

KEYSPACE = "tidegate_store"
TABLES = ("conversations", "log_entries", "members", "conversations_by_user", "last_seen", "leases", "slots")


@pytest.fixture(scope="module")
def access(cassandra_server: CassandraCluster) -> Iterator[Access]:
    """A migrated keyspace for all tests of this file."""
    node = cassandra_server.nodes[0]
    replication = "{'class': 'NetworkTopologyStrategy', 'datacenter1': 1}"
    cql.ask(node.address, node.port, f"CREATE KEYSPACE {KEYSPACE} WITH replication = {replication}")
    found = Access((node.address,), node.port, KEYSPACE, "datacenter1")
    cluster = open_cluster(found)
    try:
        assert migrate(connect(cluster, found), KEYSPACE, lambda _migration: None) == len(cassandra_migrations())
    finally:
        cluster.shutdown()
    yield found
    cql.ask(node.address, node.port, f"DROP KEYSPACE {KEYSPACE}")


@pytest.fixture
async def tables(access):
    """Empty tables with a session."""
    for table in TABLES:
        cql.ask(access.hosts[0], access.port, f"TRUNCATE {KEYSPACE}.{table}")
    async with running(CassandraTables(access, requests_max=64)) as made:
        yield made


@pytest.fixture
async def store(tables):
    async with running(CassandraStore(tables, lambda _conversation_id, _epoch: True)) as made:
        yield made


class TestCassandra(StoreConformance):
    """With one replica."""


async def test_a_channel_of_many_members(store):
    await check_channel(store, 10_000)


async def test_appends_of_many_conversations_travel_together(store, tables):
    names = [f"g{number}" for number in range(40)]
    for name in names:
        await make(store, name)
        await store.take_over(name, 1, 10)
    requests, statements = tables.requests, tables.statements
    assert await append_all(store, *(append(name, 2) for name in names)) == [None] * 40
    assert tables.requests - requests <= 8
    assert tables.statements - statements == 40
    assert [await seqs(store, name) for name in names] == [[1, 2]] * 40


async def test_two_stores_take_over_from_each_other(store, tables):
    other = CassandraStore(tables, lambda _conversation_id, _epoch: True)
    await make(store)
    await store.take_over("g1", 1, 4)
    async with trio.open_nursery() as nursery:
        await nursery.start(other.run)
        for epoch in range(2, 8, 2):
            loaded = await other.take_over("g1", epoch, 4)
            assert await append_all(other, append("g1", loaded.head_seq + 1, epoch=epoch, body="other")) == [None]
            [late] = await append_all(store, append("g1", loaded.head_seq + 1, epoch=epoch - 1, body="late"))
            assert late is None  # written, and it counts for nobody
            with pytest.raises(StaleEpoch):
                await store.take_over("g1", epoch - 1, 4)
            loaded = await store.take_over("g1", epoch + 1, 4)
            assert loaded.tail[-1].entry.body == "other"
            assert await append_all(store, append("g1", loaded.head_seq + 1, epoch=epoch + 1)) == [None]
        assert await seqs(store) == list(range(1, 8))
        nursery.cancel_scope.cancel()


async def test_leases_and_slots(tables):
    await live(CassandraCoordination(tables))


@pytest.mark.parametrize(
    ("changes", "asked"),
    [({}, "datacenter1"), ({"datacenter": ""}, "datacenter1"), ({"consistency": "QUORUM"}, "")],
)
async def test_whose_replicas_alone_are_asked_is_known_once_connected(access, changes, asked):
    async with running(CassandraTables(msgspec.structs.replace(access, **changes), requests_max=4)) as tables:
        assert tables.datacenter == asked


def opened(access: Access):
    cluster = open_cluster(access)
    try:
        return connect(cluster, access)
    finally:
        cluster.shutdown()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keyspace": "nowhere"}, "no keyspace 'nowhere'"),
        ({"datacenter": "moon"}, "no datacenter 'moon'; it has datacenter1"),
        ({"tls_ca": "/nonexistent.pem"}, "cassandra_tls_ca /nonexistent.pem cannot be used"),
    ],
)
def test_wrong_settings_are_named(access, changes, message):
    with pytest.raises(CannotUse, match=message):
        opened(msgspec.structs.replace(access, **changes))


def test_too_few_nodes_for_the_replication_are_named(access):
    cql.ask(
        access.hosts[0],
        access.port,
        "CREATE KEYSPACE IF NOT EXISTS tidegate_three "
        "WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 3}",
    )
    with pytest.raises(CannotUse, match="replication factor 3 in datacenter 'datacenter1', which has 1 nodes"):
        opened(msgspec.structs.replace(access, keyspace="tidegate_three"))


def test_nobody_there_is_something_to_wait_for(access):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Unavailable, match=r"no Cassandra node answers at 127\.0\.0\.1"):
        opened(msgspec.structs.replace(access, hosts=("127.0.0.1",), port=port))


SCHEMA_1 = {
    "select": "SELECT incarnation, node, nonce, alive, address, owns, draining, protocol FROM leases",
    "insert": """
        INSERT INTO leases (incarnation, node, nonce, alive, address, owns, draining, protocol)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS""",
    "renew": """
        UPDATE leases SET node = ?, nonce = ?, alive = ?, address = ?, owns = ?, draining = ?, protocol = ?
        WHERE incarnation = ? IF nonce = ? AND alive = true""",
}
"""What a node of the first schema asks."""


async def test_a_running_node_of_the_schema_before_goes_on_over_the_migration(cassandra, monkeypatch):
    everything = cassandra_migrations()
    access = Access((cassandra.contact_points[0],), cassandra.port, cassandra.name)
    cluster = open_cluster(access)
    try:
        session = connect(cluster, access)
        with monkeypatch.context() as before:
            before.setattr("store.cassandra_migrations.cassandra_migrations", lambda: everything[:1])
            assert migrate(session, access.keyspace, lambda _migration: None) == 1
        old = {name: session.prepare(text) for name, text in SCHEMA_1.items()}
        face = ("127.0.0.1:1", True, False, 1)
        assert session.execute(old["insert"], ("old:a", "old", 1, True, *face)).one()[0]
        assert list(session.execute(old["select"])) == [("old:a", "old", 1, True, *face)]
        assert migrate(session, access.keyspace, lambda _migration: None) == len(everything) - 1
        assert session.execute(old["renew"], ("old", 2, True, *face, "old:a", 1)).one()[0]
        assert not session.execute(old["renew"], ("old", 3, True, *face, "old:a", 1)).one()[0]
        async with running(CassandraTables(access, requests_max=4)) as tables:
            new = LeaseRecord("new:b", "new", 1, True, *face, "datacenter1")
            assert await tables.insert_lease(new)
            rows = {row.incarnation: row for row in await tables.leases()}
            assert rows == {"old:a": LeaseRecord("old:a", "old", 2, True, *face, ""), "new:b": new}
            assert await tables.mark_lease_dead("old:a", 2)
            assert await tables.lease("old:a") == LeaseRecord("old:a", "old", 2, False, *face, "")
        assert not session.execute(old["insert"], ("new:b", "new", 1, True, *face)).one()[0]
        expected = [("new:b", "new", 1, True, *face), ("old:a", "old", 2, False, *face)]
        assert sorted(session.execute(old["select"])) == expected
    finally:
        cluster.shutdown()


def test_every_migration_that_was_broken_off_before_it_was_noted_is_done_again(access):
    cluster = open_cluster(access)
    try:
        session = connect(cluster, access)
        session.execute("TRUNCATE schema_migrations")
        assert migrate(session, KEYSPACE, lambda _migration: None) == len(cassandra_migrations())
        assert schema_number(session) == len(cassandra_migrations())
    finally:
        cluster.shutdown()


def test_migrating_again_does_nothing_and_a_newer_schema_is_refused(access):
    cluster = open_cluster(access)
    try:
        session = connect(cluster, access)
        told: list[Migration] = []
        assert migrate(session, KEYSPACE, told.append) == 0
        assert not told
        check_schema(session, KEYSPACE)
        known = schema_number(session)
        session.execute(f"INSERT INTO schema_migrations (number, name) VALUES ({known + 1}, 'future')")
        try:
            for refused in (check_schema, lambda session, name: migrate(session, name, told.append)):
                with pytest.raises(SchemaTooNew, match=f"is of schema {known + 1}"):
                    refused(session, KEYSPACE)
        finally:
            session.execute(f"DELETE FROM schema_migrations WHERE number = {known + 1}")
        session.execute("INSERT INTO schema_lock (id, owner) VALUES ('migrate', 'another') USING TTL 60")
        with pytest.raises(Unavailable, match="another tidegate migrate works on"):
            migrate(session, KEYSPACE, told.append)
        session.execute("DELETE FROM schema_lock WHERE id = 'migrate'")
    finally:
        cluster.shutdown()
