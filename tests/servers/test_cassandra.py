from deploy.cassandra import cql
from tests.servers.fixtures import Keyspace


def test_a_keyspace_is_fresh_and_usable(cassandra: Keyspace) -> None:
    address, port = cassandra.contact_points[0], cassandra.port
    cql.ask(address, port, f"CREATE TABLE {cassandra.name}.t (k int PRIMARY KEY)")
    cql.ask(address, port, f"INSERT INTO {cassandra.name}.t (k) VALUES (1)")


def test_a_second_keyspace_knows_nothing_of_the_first(cassandra: Keyspace) -> None:
    cql.ask(cassandra.contact_points[0], cassandra.port, f"CREATE TABLE {cassandra.name}.t (k int PRIMARY KEY)")
