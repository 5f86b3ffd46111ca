"""``tidegate cluster``: see a cluster of nodes, and have one of them drain."""

import logging
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from gateway.cli.errors import FAILURE, UNAVAILABLE, USAGE, CliError, sole_cause
from gateway.cli.settings_options import PRECEDENCE, settings_of, settings_options
from gateway.config import Settings
from gateway.config_load import SETTINGS

if TYPE_CHECKING:
    from store.coordination import Coordination

_OPTIONS: Final = [
    "store",
    *(name for name in SETTINGS if name.startswith("cassandra_") and name != "cassandra_requests_max"),
    "cluster_secret",
    "lease_renew_s",
]

REQUESTS_MAX: Final = 4
"""Requests to Cassandra at once: a command asks one after the other."""

INDENT: Final = 2
"""Spaces a level of JSON."""


@click.group(epilog=PRECEDENCE)
def command() -> None:
    """See a cluster of nodes, and have one of them drain.

    Both commands take the settings that the nodes have (--config FILE, or TIDEGATE_* variables): where Cassandra is,
    and the cluster_secret, by which they prove to the nodes that they may ask.

    \b
    Examples:
      tidegate cluster status --config /etc/tidegate/tidegate.toml
      tidegate cluster drain node-2 --config /etc/tidegate/tidegate.toml
    """


@command.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object, for programs")
@settings_options(*_OPTIONS)
def status(as_json: bool, config_file: Path | None, **options: object) -> None:
    """Show nodes, their leases, slots and epochs, and what is wrong.

    Leases and slots are read from Cassandra; conversations and connections are what each node tells of itself. A node
    that tells nothing is looked at twice, some seconds apart, to see whether it renews its lease.

    \b
    serves     it answers
    drains     it answers, and leaves: it takes no slots and no clients
    joins      it renews its lease since some seconds, and does not answer yet
    unreached  it does not answer, but renews its lease: it lives
    refused    it lives and answers, but not this command: another cluster_secret
    unasked    it lives; this command was given no cluster_secret to ask it
    silent     it does not renew its lease; the others take over from it when
               that has lasted a lease
    dead       it owns nothing any more, or will in a moment
    """
    settings = _cluster_settings(config_file, options)

    async def run(coordination: "Coordination") -> None:
        import msgspec

        from gateway.cluster.observer import Observer
        from gateway.cluster.overview_text import as_text
        from gateway.cluster.peer_handshake import key_of

        key = key_of(settings.cluster_secret) if settings.cluster_secret else None
        observer = Observer(coordination, settings.cassandra_keyspace, key, settings.lease_renew_s)
        found = await observer.look()
        click.echo(
            msgspec.json.format(msgspec.json.encode(found), indent=INDENT).decode() if as_json else as_text(found)
        )

    _with_cluster(settings, run)


@command.command()
@click.argument("node")
@settings_options(*_OPTIONS)
def drain(node: str, config_file: Path | None, **options: object) -> None:
    """Have NODE leave the cluster, and wait until it has.

    It hands its slots over to the others, tells its clients in batches to come back elsewhere, and ends within its
    drain_grace_s, as after SIGTERM. What supervises it may start it again: to take it away for good, stop that first.
    Interrupting this command does not stop the drain.
    """
    settings = _cluster_settings(config_file, options)
    if not settings.cluster_secret:
        raise CliError(
            "cluster_secret is empty, so that no node can be told to drain: give this command the one that the nodes "
            "have (TIDEGATE_CLUSTER_SECRET, or --config FILE); or send the node SIGTERM where it runs",
            USAGE,
        )

    async def run(coordination: "Coordination") -> None:
        from gateway.cluster.draining import NotDrained, drain_node
        from gateway.cluster.peer_handshake import key_of

        key = key_of(settings.cluster_secret)
        try:
            await drain_node(coordination, key, node, settings.cassandra_keyspace, click.echo)
        except NotDrained as error:
            raise CliError(str(error), FAILURE) from None

    _with_cluster(settings, run)


def _cluster_settings(config_file: Path | None, options: dict[str, object]) -> Settings:
    settings = settings_of(config_file, options)
    if settings.store != "cassandra":
        raise CliError(
            f"store is {settings.store}: that is a single node, there is no cluster to look at; give the settings of a "
            "cluster's nodes (--config FILE, or --store cassandra --cassandra-hosts ADDRESS)",
            USAGE,
        )
    return settings


def _with_cluster(settings: Settings, run: "Callable[[Coordination], Awaitable[None]]") -> None:
    """Run something that reads leases and slots. Raises CliError."""
    import structlog
    import trio

    from gateway.cassandra_access import cassandra_access
    from store.cassandra_coordination import CassandraCoordination
    from store.cassandra_driver import CassandraTables
    from store.interface import StoreError, Unavailable

    # What goes wrong is said by this command itself, in one line.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    tables = CassandraTables(cassandra_access(settings), REQUESTS_MAX, patient=False)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(tables.run)
            await run(CassandraCoordination(tables))
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    except Exception as error:  # noqa: BLE001 - nurseries wrap it; what is not known here goes on
        cause = sole_cause(error)
        if isinstance(cause, Unavailable):
            raise CliError(str(cause), UNAVAILABLE) from None
        if isinstance(cause, StoreError):
            raise CliError(str(cause)) from None
        raise cause from None
