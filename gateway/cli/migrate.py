"""``tidegate migrate``: make the tables of a cluster, or bring them up to date."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli.errors import UNAVAILABLE, CliError
from gateway.cli.settings_options import settings_of, settings_options
from gateway.config_load import SETTINGS
from store.interface import StoreError, Unavailable
from store.migrations import Migration, refuse_newer

if TYPE_CHECKING:
    from store.cassandra_session import Access

_OPTIONS = [name for name in SETTINGS if name.startswith("cassandra_") and name != "cassandra_requests_max"]


@click.command()
@click.option("--dry-run", is_flag=True, help="print the statements that would be run, and run none")
@click.option(
    "--create-keyspace",
    "copies",
    type=click.IntRange(min=1),
    metavar="N",
    help="first make the keyspace, with N copies of everything, if there is none",
)
@settings_options(*_OPTIONS)
def command(dry_run: bool, copies: int | None, config_file: Path | None, **options: object) -> None:
    """Make the tables of a cluster in Cassandra, or bring them up to date.

    Safe to run again, and from two places at once: one of them works, the other is told so. Tables of a newer schema
    than this program's are left alone. Example: tidegate migrate --create-keyspace 3
    """
    from gateway.cassandra_access import cassandra_access  # which brings the driver, that help does without

    access = cassandra_access(settings_of(config_file, options))
    try:
        _run(access, dry_run, copies)
    except Unavailable as error:
        raise CliError(str(error), UNAVAILABLE) from None
    except StoreError as error:
        raise CliError(str(error)) from None


def _run(access: "Access", dry_run: bool, copies: int | None) -> None:
    from store.cassandra_migrations import cassandra_migrations, migrate, schema_number
    from store.cassandra_session import connect, create_keyspace, keyspace_to_make, open_cluster

    cluster = open_cluster(access)
    try:
        if copies is not None and dry_run and (statement := keyspace_to_make(cluster, access, copies)):
            click.echo(f"{statement};")
            for migration in cassandra_migrations():
                _show(migration)
            return
        if copies is not None and not dry_run and create_keyspace(cluster, access, copies):
            each = "one copy" if copies == 1 else f"{copies} copies"
            click.echo(f"made keyspace {access.keyspace} with {each} of everything")
        session = connect(cluster, access)
        if dry_run:
            found, migrations = schema_number(session), cassandra_migrations()
            refuse_newer(found, len(migrations), f"keyspace {access.keyspace}")
            for migration in migrations[found:]:
                _show(migration)
        else:
            count = migrate(session, access.keyspace, _tell)
            number = len(cassandra_migrations())
            done = f"applied {count} migrations" if count else "nothing to do"
            click.echo(f"keyspace {access.keyspace} is of schema {number}: {done}")
    finally:
        cluster.shutdown()


def _tell(migration: Migration) -> None:
    click.echo(f"applying {migration.number:04} {migration.name}")


def _show(migration: Migration) -> None:
    from store.cassandra_migrations import statements_of

    click.echo(f"-- {migration.number:04} {migration.name}")
    for statement in statements_of(migration):
        click.echo(f"{statement};")
