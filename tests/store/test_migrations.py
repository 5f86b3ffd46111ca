"""Numbered migrations: applied once, in order, wholly or not at all."""

import sqlite3

import pytest

from store.migrations import Migration, SchemaTooNew, embedded_migrations, migrate, schema_number

FIRST = Migration(1, "first", "CREATE TABLE a (x); INSERT INTO a VALUES (1);")
SECOND = Migration(2, "second", "ALTER TABLE a ADD COLUMN y; UPDATE a SET y = 2;")
BROKEN = Migration(2, "broken", "CREATE TABLE b (x); INSERT INTO a VALUES (5); INSERT INTO nowhere VALUES (1);")


@pytest.fixture
def connection():
    made = sqlite3.connect(":memory:", isolation_level=None)
    yield made
    made.close()


def test_they_are_numbered_without_a_gap_and_apply_to_an_empty_database(connection):
    migrations = embedded_migrations()
    assert [migration.number for migration in migrations] == list(range(1, len(migrations) + 1))
    assert migrate(connection, migrations, "database x") == len(migrations)
    assert schema_number(connection) == len(migrations)


def test_each_is_applied_once(connection):
    assert schema_number(connection) == 0
    assert migrate(connection, [FIRST], "database x") == 1
    assert migrate(connection, [FIRST], "database x") == 0
    assert migrate(connection, [FIRST, SECOND], "database x") == 1
    assert connection.execute("SELECT x, y FROM a").fetchall() == [(1, 2)]
    assert connection.execute("SELECT number, name FROM schema_migrations").fetchall() == [(1, "first"), (2, "second")]


def test_a_failing_one_leaves_nothing_behind_and_keeps_those_before(connection):
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, [FIRST, BROKEN], "database x")
    assert schema_number(connection) == 1
    assert connection.execute("SELECT x FROM a").fetchall() == [(1,)]
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'b'").fetchone() == (0,)
    assert migrate(connection, [FIRST, SECOND], "database x") == 1


def test_a_newer_database_is_refused_unchanged(connection):
    migrate(connection, [FIRST, SECOND], "database x")
    with pytest.raises(SchemaTooNew, match="database x is of schema 2, and this tidegate knows schemas up to 1"):
        migrate(connection, [FIRST], "database x")
    assert connection.execute("SELECT x, y FROM a").fetchall() == [(1, 2)]
