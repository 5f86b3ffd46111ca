"""Numbered migrations of the cluster's tables: files ``schema/cassandra/NNNN_name.cql``, each applied once, in order.

The table ``schema_migrations`` records which. Cassandra changes a schema one statement at a time, so a migration that
was broken off is begun again and passes over what is there already. Two programs never migrate at once: the row of
``schema_lock`` is taken by lightweight transaction, and freed or given back by time. All functions here block.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from cassandra import AlreadyExists, ConsistencyLevel, InvalidRequest
from cassandra.cluster import Session
from cassandra.query import SimpleStatement

from store.cassandra_session import DRIVER_ERRORS, CannotUse
from store.interface import Unavailable
from store.migrations import Migration, SchemaTooNew, migrations_in, refuse_newer

LOCK_S: Final = 60
"""Seconds after which a lock that is neither renewed nor freed ends: its holder has died. It is renewed before each
statement, which takes some seconds at most."""

STATEMENT_TIMEOUT_S: Final = 30.0
"""Seconds that one statement may take. All Cassandra nodes have to make a table before it is answered, which takes some
times as long as any other request on a busy machine."""

assert STATEMENT_TIMEOUT_S < LOCK_S, "the lock has to last for a statement"

_BOOKKEEPING: Final = (
    "CREATE TABLE IF NOT EXISTS schema_migrations (number int PRIMARY KEY, name text)",
    "CREATE TABLE IF NOT EXISTS schema_lock (id text PRIMARY KEY, owner text)",
)


class SchemaTooOld(CannotUse):
    """The tables are missing or of an older schema. The message says how to bring them up to date."""


def cassandra_migrations() -> list[Migration]:
    """All migrations of the cluster's tables, in order."""
    return migrations_in("cassandra", "cql")


def statements_of(migration: Migration) -> list[str]:
    """The statements of a migration, without comments. (No text in them contains ``--`` or a semicolon.)"""
    text = "\n".join(line.partition("--")[0].rstrip() for line in migration.sql.splitlines())
    return [statement.strip() for statement in text.split(";") if statement.strip()]


def schema_number(session: Session) -> int:
    """The number of the last migration applied to the session's keyspace, 0 for an empty one. Raises Unavailable."""
    try:
        rows = session.execute(_quorum("SELECT number FROM schema_migrations"))
        return max((row[0] for row in rows), default=0)
    except InvalidRequest:
        return 0  # there is no such table
    except DRIVER_ERRORS as error:
        raise Unavailable(f"the schema's number cannot be read ({error})") from None


def check_schema(session: Session, keyspace: str) -> None:
    """Refuse tables of another schema than this program's.

    Raises:
        SchemaTooNew, SchemaTooOld: they are; the message says what to do.
        Unavailable: it cannot be told now.
    """
    found, known = schema_number(session), len(cassandra_migrations())
    refuse_newer(found, known, f"keyspace {keyspace}")
    if found < known:
        raise SchemaTooOld(
            f"keyspace {keyspace} is of schema {found}, and this tidegate needs schema {known}: run tidegate migrate"
        )


def migrate(session: Session, keyspace: str, told: Callable[[Migration], None]) -> int:
    """Bring the session's keyspace up to the newest schema; returns how many migrations were applied.

    Args:
        session: in the keyspace.
        keyspace: names it in errors.
        told: is called before each migration.

    Raises:
        SchemaTooNew: the keyspace is of a newer schema; it is unchanged.
        Unavailable: Cassandra does not answer, or another program migrates now; run it again.
    """
    migrations = cassandra_migrations()
    try:
        # Before anything is read: a table that another program is just making can be read by nobody.
        for statement in _BOOKKEEPING:
            session.execute(statement, timeout=STATEMENT_TIMEOUT_S)
        refuse_newer(schema_number(session), len(migrations), f"keyspace {keyspace}")
        with _lock(session, keyspace) as keep:
            found = schema_number(session)
            refuse_newer(found, len(migrations), f"keyspace {keyspace}")
            for migration in migrations[found:]:
                told(migration)
                _apply(session, migration, keep)
    except DRIVER_ERRORS as error:
        raise Unavailable(f"a migration was broken off ({error}): run it again") from None
    return len(migrations) - found


def _apply(session: Session, migration: Migration, keep: Callable[[], None]) -> None:
    for statement in statements_of(migration):
        keep()
        try:
            session.execute(statement, timeout=STATEMENT_TIMEOUT_S)
        except AlreadyExists:
            continue  # made by an attempt that was broken off
    keep()
    record = "INSERT INTO schema_migrations (number, name) VALUES (%s, %s)"
    session.execute(_quorum(record), (migration.number, migration.name))


@contextmanager
def _lock(session: Session, keyspace: str) -> Iterator[Callable[[], None]]:
    """Hold the lock, and renew it with what this gives. Both raise Unavailable: another program holds it."""
    owner = secrets.token_hex(8)
    taken = session.execute(
        _quorum("INSERT INTO schema_lock (id, owner) VALUES ('migrate', %s) IF NOT EXISTS USING TTL %s"),
        (owner, LOCK_S),
    )
    if not taken.one()[0]:
        raise Unavailable(
            f"another tidegate migrate works on keyspace {keyspace}: wait until it is done "
            f"(if it has died, its lock ends within {LOCK_S} s)"
        )

    def keep() -> None:
        kept = session.execute(
            _quorum("UPDATE schema_lock USING TTL %s SET owner = %s WHERE id = 'migrate' IF owner = %s"),
            (LOCK_S, owner, owner),
        )
        if not kept.one()[0]:
            raise Unavailable(f"this migration of keyspace {keyspace} took so long that its lock ended: run it again")

    try:
        yield keep
    finally:
        session.execute(_quorum("DELETE FROM schema_lock WHERE id = 'migrate' IF owner = %s"), (owner,))


def _quorum(text: str) -> SimpleStatement:
    return SimpleStatement(text, consistency_level=ConsistencyLevel.QUORUM)


__all__ = [
    "SchemaTooNew", "SchemaTooOld", "cassandra_migrations", "check_schema", "migrate", "schema_number", "statements_of"
]  # fmt: skip
