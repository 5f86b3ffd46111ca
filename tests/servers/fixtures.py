"""Real servers for any test that asks for them; skipped, with the reason, where they are not installed.

One server of a kind serves the whole session, because a Cassandra takes seconds to start and most of a gigabyte. Tests
that harm a server start their own.
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from deploy.cassandra import cql, launcher
from deploy.cassandra.launcher import DATACENTER, CassandraCluster
from tests.servers import redis

SCHEMA_TIMEOUT_S = 60.0
"""Seconds that making or dropping a keyspace may take: a fraction of one on an idle machine, and much on a busy one."""


@dataclass(frozen=True, slots=True)
class Keyspace:
    """An empty keyspace of the session's Cassandra, with replication factor 1; gone when the test is over."""

    name: str
    cluster: CassandraCluster
    contact_points: list[str]
    port: int
    datacenter: str = DATACENTER


@pytest.fixture(scope="session")
def cassandra_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CassandraCluster]:
    """The session's Cassandra: one node, no login, no TLS. Tests must leave it running."""
    if missing := launcher.what_is_missing():
        pytest.skip(missing)
    with CassandraCluster(tmp_path_factory.mktemp("cassandra")) as cluster:
        yield cluster


@pytest.fixture
def cassandra(cassandra_server: CassandraCluster) -> Iterator[Keyspace]:
    """A fresh keyspace for one test."""
    node = cassandra_server.nodes[0]
    name = f"tidegate_{secrets.token_hex(6)}"
    replication = "{'class': 'NetworkTopologyStrategy', 'datacenter1': 1}"
    make = f"CREATE KEYSPACE {name} WITH replication = {replication}"
    cql.ask(node.address, node.port, make, timeout_s=SCHEMA_TIMEOUT_S)
    yield Keyspace(name, cassandra_server, cassandra_server.addresses, cassandra_server.port)
    cql.ask(node.address, node.port, f"DROP KEYSPACE IF EXISTS {name}", timeout_s=SCHEMA_TIMEOUT_S)


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.RedisServer]:
    """The session's Redis: no password, no TLS. Tests must leave it running."""
    if missing := redis.what_is_missing():
        pytest.skip(missing)
    with redis.RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(redis_process: redis.RedisServer) -> redis.RedisServer:
    """The session's Redis, empty; a test that harms it takes a ``RedisServer(tmp_path)`` of its own instead."""
    redis_process.flush()
    return redis_process
