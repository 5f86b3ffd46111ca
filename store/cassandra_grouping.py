"""Writes on their way to Cassandra, put together so that one request carries many and each keeps its own outcome.

Writes of the same replica set travel in one unlogged batch: its coordinator is one of the replicas and sends nothing
twice. (Measured: three times as many rows a second as with a request for each.)
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from cassandra.metadata import Metadata
from cassandra.query import BatchStatement, BatchType, BoundStatement

from store.cassandra_requests import Request, Rows
from store.interface import NotWritten, OutcomeUnknown, StoreError
from store.tables import EntriesDone, EntryWrite

PARTITIONS_MAX: Final = 10
"""Partitions of one batch: with more, one slow partition holds up too many others."""

BATCH_BYTES_MAX: Final = 4_500
"""Bytes of one batch: Cassandra warns at 5 KiB (and refuses at 50 KiB) by default. A larger row travels alone."""

ROW_BYTES: Final = 64
"""Bytes that a row takes in a batch besides its value, about."""


class Landing:
    """One write of several rows: what became of it when all its requests are answered."""

    __slots__ = ("_done", "_error", "_left", "_some_written", "write")

    def __init__(self, write: EntryWrite, done: EntriesDone) -> None:
        self.write = write
        self._done = done
        self._left = 1  # the one who makes it
        self._error: StoreError | None = None
        self._some_written = False

    def add(self) -> None:
        """One more request carries a part of it."""
        self._left += 1

    def note(self, error: StoreError | None, landed: list["Landing"]) -> None:
        """Take what became of one of them; with the last, it is put into ``landed``."""
        self._left -= 1
        if error is None:
            self._some_written = True
        elif self._error is None or isinstance(self._error, NotWritten):
            self._error = error
        if not self._left:
            landed.append(self)

    def close(self) -> None:
        """All its requests are made."""
        self._left -= 1

    @property
    def done(self) -> EntriesDone:
        """Who is told."""
        return self._done

    @property
    def outcome(self) -> StoreError | None:
        """What became of all of it."""
        if self._some_written and isinstance(self._error, NotWritten):
            return OutcomeUnknown(f"some rows are written and others not ({self._error})")
        return self._error


class _Group:
    __slots__ = ("bytes", "landings", "last_key", "partitions", "statements")

    def __init__(self) -> None:
        self.statements: list[BoundStatement] = []
        self.landings: list[Landing] = []
        self.partitions = 0
        self.bytes = 0
        self.last_key: object = None


class Grouping:
    """Puts statements into requests. One for each round: ``add`` them all, then take ``requests``."""

    def __init__(self, replicas_of: Callable[[bytes], object]) -> None:
        """``replicas_of`` tells the replica set of a routing key: anything hashable."""
        self._replicas_of = replicas_of
        self._groups: dict[object, _Group] = {}
        self._full: list[_Group] = []

    def add(self, statement: BoundStatement, size: int, landing: Landing | None) -> None:
        """Add a statement with ``size`` bytes of values; ``landing`` hears what becomes of it."""
        key = statement.routing_key
        replicas = self._replicas_of(key)
        group = self._groups.get(replicas)
        size += ROW_BYTES
        if group is not None:
            new = group.last_key != key
            if group.bytes + size > BATCH_BYTES_MAX or group.partitions + new > PARTITIONS_MAX:
                self._full.append(group)
                group = None
        if group is None:
            group = self._groups[replicas] = _Group()
        if group.last_key != key:
            group.partitions += 1
            group.last_key = key
        group.statements.append(statement)
        group.bytes += size
        if landing is not None and (not group.landings or group.landings[-1] is not landing):
            landing.add()
            group.landings.append(landing)

    def requests(self, answered: Callable[[Sequence[Landing], StoreError | None], None]) -> list[Request]:
        """All requests; ``answered`` is told of each, with the writes that it carried a part of."""
        return [
            Request(_statement(group.statements), group.partitions, _telling(group.landings, answered))
            for group in (*self._full, *self._groups.values())
        ]


def _telling(
    landings: Sequence[Landing], answered: Callable[[Sequence[Landing], StoreError | None], None]
) -> Callable[[Rows, StoreError | None], None]:
    return lambda _rows, error: answered(landings, error)


def _statement(statements: Sequence[BoundStatement]) -> BoundStatement | BatchStatement:
    if len(statements) == 1:
        return statements[0]
    batch = BatchStatement(BatchType.UNLOGGED)
    for statement in statements:
        batch.add(statement)
    return batch


def replica_sets(metadata: Metadata, keyspace: str) -> Callable[[bytes], object]:
    """Tells replica sets by the driver's map of the ring; while it has none, all are one."""

    def replicas_of(key: bytes) -> object:
        if len(metadata.all_hosts()) <= 1:
            return None
        return frozenset(host.host_id for host in metadata.get_replicas(keyspace, key))

    return replicas_of


def tell(landed: Iterable[Landing]) -> None:
    """Tell those who wait, each once."""
    results: dict[EntriesDone, list[tuple[EntryWrite, StoreError | None]]] = {}
    for landing in landed:
        results.setdefault(landing.done, []).append((landing.write, landing.outcome))
    for done, found in results.items():
        done(found)
