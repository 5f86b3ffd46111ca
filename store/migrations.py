"""Numbered migrations of the embedded database: files ``schema/embedded/NNNN_name.sql``, each applied once, in order.

The table ``schema_migrations`` in the database records which. A migration is one transaction: it is applied wholly or
not at all, and a database of a newer schema than this program knows is refused untouched.
"""

import re
import sqlite3
from importlib import resources
from typing import Final

from msgspec import Struct

from store.interface import StoreError

_MAKE_TABLE: Final = "CREATE TABLE IF NOT EXISTS schema_migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL)"
_APPLIED: Final = "SELECT coalesce(max(number), 0) FROM schema_migrations"
_HAS_TABLE: Final = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'schema_migrations'"


class SchemaTooNew(StoreError):
    """The database was written by a newer tidegate. The message gives both schema numbers."""


class Migration(Struct, frozen=True):
    """One step of the schema. ``number`` counts from 1 without a gap."""

    number: int
    name: str
    sql: str


def migrations_in(folder: str, ending: str) -> list[Migration]:
    """The migrations in ``schema/folder`` whose file names end in ``ending``, in order."""
    file_name = re.compile(rf"(\d{{4}})_([a-z0-9_]+)\.{ending}")
    found = []
    for file in resources.files("schema").joinpath(folder).iterdir():
        match = file_name.fullmatch(file.name)
        if match is not None:
            found.append(Migration(int(match[1]), match[2], file.read_text("utf-8")))
    found.sort(key=lambda migration: migration.number)
    assert [migration.number for migration in found] == list(range(1, len(found) + 1)), "a migration is missing"
    return found


def embedded_migrations() -> list[Migration]:
    """The migrations of the embedded database, in order."""
    return migrations_in("embedded", "sql")


def schema_number(connection: sqlite3.Connection) -> int:
    """The number of the last migration applied to a database, 0 for an empty one. Raises sqlite3.Error."""
    if not connection.execute(_HAS_TABLE).fetchone()[0]:
        return 0
    number: int = connection.execute(_APPLIED).fetchone()[0]
    return number


def refuse_newer(found: int, known: int, what: str) -> None:
    """Raise SchemaTooNew if ``what`` (a database or a backup) is of a schema that this program does not know."""
    if found > known:
        raise SchemaTooNew(
            f"{what} is of schema {found}, and this tidegate knows schemas up to {known}: "
            "run the newer tidegate that wrote it, or restore a backup made before the upgrade"
        )


def migrate(connection: sqlite3.Connection, migrations: list[Migration], what: str) -> int:
    """Bring a database up to the newest schema; returns how many migrations were applied.

    Args:
        connection: in autocommit mode, not in a transaction.
        migrations: all that are known, in order.
        what: names the database in errors.

    Raises:
        SchemaTooNew: the database is of a newer schema; it is unchanged.
        sqlite3.Error: a migration failed; those before it stay applied, it itself left nothing behind.
    """
    found = schema_number(connection)
    refuse_newer(found, len(migrations), what)
    connection.execute(_MAKE_TABLE)
    for migration in migrations[found:]:
        record = f"INSERT INTO schema_migrations VALUES ({migration.number}, '{migration.name}')"  # noqa: S608
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{migration.sql}\n;{record};COMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return len(migrations) - found
