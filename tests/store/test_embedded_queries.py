"""Reads whose snapshot is older than what the writer's memory already knows."""

import sqlite3
from pathlib import Path

import pytest
import trio

from store import embedded_queries as queries
from store.embedded import EmbeddedStore
from store.embedded_database import connect
from store.embedded_recent import Recent, last_position, last_seq
from tests.store.entries import append, created, record

HEAD = 6


@pytest.fixture
async def database(tmp_path: Path) -> Path:
    """The database of a closed store with one conversation of HEAD entries, none of them indexed."""
    store = EmbeddedStore.open(tmp_path / "data")
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        await store.create(record("c"), created("alice", "bob"), 1)
        done = trio.Event()
        store.append([append("c", *range(2, HEAD + 1))], lambda _: done.set())
        await done.wait()
        nursery.cancel_scope.cancel()
    (path,) = (tmp_path / "data").glob("*.db")
    return path


def _ahead(connection: sqlite3.Connection) -> Recent:
    """Memory that knows the entries of the database, and ten more that were committed after the snapshot began."""
    recent = Recent()
    for seq, (position,) in enumerate(connection.execute("SELECT position FROM entries ORDER BY position"), start=1):
        recent.add(1, seq, position)
    recent.add(1, HEAD + 1, position + 1, 10)
    return recent


async def test_a_conversation_that_moved_on_meanwhile_is_still_there(database: Path) -> None:
    connection = connect(database, cache_kib=64, read_only=True)
    try:
        generations = _ahead(connection).generations
        (membership,) = queries.memberships(connection, generations, "bob")
        assert membership.head_seq == HEAD
    finally:
        connection.close()


@pytest.mark.parametrize("limit", [1, 2, HEAD, 100])
async def test_the_newest_entries_of_the_snapshot_are_found_without_a_gap(database: Path, limit: int) -> None:
    connection = connect(database, cache_kib=64, read_only=True)
    try:
        generations = _ahead(connection).generations
        bounds = {"after_seq": 0, "before_seq": queries.SEQ_MAX, "limit": limit}
        found = queries.entries(connection, generations, "c", newest=True, **bounds)
        seqs = [queries.decode_entry(encoded).seq for encoded in found]
        assert seqs == list(range(max(1, HEAD + 1 - limit), HEAD + 1))
    finally:
        connection.close()


def test_the_newest_place_up_to_a_position_may_be_in_an_older_generation() -> None:
    older, newer = Recent(), Recent()
    older.add(1, 1, 10, 3)
    newer.add(1, 4, 20, 2)
    generations = (*older.generations, *newer.generations)
    assert [last_seq(generations, 1, through) for through in (9, 10, 12, 19, 20, 21, 99)] == [0, 1, 3, 3, 4, 5, 5]
    assert [last_position(generations, 1, through) for through in (9, 11, 19, 20)] == [0, 11, 12, 20]
    assert (last_seq(generations, 1), last_position(generations, 1), last_seq(generations, 2)) == (5, 21, 0)
