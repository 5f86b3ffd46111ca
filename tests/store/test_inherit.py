"""Two processes have the embedded store open for a moment: the one that stands still, and the one that goes on."""

import os
from pathlib import Path

import pytest
import trio

from store import embedded
from store.embedded import DataDirLocked, DataDirUnusable, EmbeddedStore, SchemaTooNew, SchemaTooOld, require_current
from store.embedded_directory import holder_pid
from store.migrations import embedded_migrations
from tests.store.conformance import make, seqs
from tests.store.entries import append
from tests.store.outcomes import append_all


async def test_the_successor_reads_and_writes_on_under_the_same_lock(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        first = EmbeddedStore.open(tmp_path)
        await nursery.start(first.run)
        await make(first, "g1")
        await append_all(first, append("g1", 2, 3))
        assert first.quiet
        second = EmbeddedStore.inherit(tmp_path, os.dup(first.lock_descriptor))
        second.note_holder()
        await nursery.start(second.run)
        assert await seqs(second) == [1, 2, 3]
        assert await append_all(second, append("g1", 4)) == [None]
        with pytest.raises(DataDirLocked):
            EmbeddedStore.open(tmp_path)
        nursery.cancel_scope.cancel()
    third = EmbeddedStore.open(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(third.run)
        assert await seqs(third) == [1, 2, 3, 4]
        nursery.cancel_scope.cancel()


def test_when_the_successor_lets_go_the_first_still_has_the_lock(tmp_path: Path) -> None:
    first = EmbeddedStore.open(tmp_path)
    EmbeddedStore.inherit(tmp_path, os.dup(first.lock_descriptor)).close()
    with pytest.raises(DataDirLocked):
        EmbeddedStore.open(tmp_path)
    first.close()
    EmbeddedStore.open(tmp_path).close()


def test_a_schema_that_would_have_to_change_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = EmbeddedStore.open(tmp_path)
    require_current(tmp_path)
    known = embedded_migrations()
    monkeypatch.setattr(embedded, "embedded_migrations", lambda: [*known, known[-1]])
    for refused in (
        lambda: require_current(tmp_path),
        lambda: EmbeddedStore.inherit(tmp_path, os.dup(first.lock_descriptor)),
    ):
        with pytest.raises(SchemaTooOld, match="stop the node and start the new one"):
            refused()
    monkeypatch.setattr(embedded, "embedded_migrations", lambda: known[:-1])
    with pytest.raises(SchemaTooNew):
        require_current(tmp_path)
    first.close()


def test_a_database_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataDirUnusable, match=r"tidegate\.db"):
        require_current(tmp_path)


def test_the_holder_is_known_only_while_there_is_one(tmp_path: Path) -> None:
    assert holder_pid(tmp_path) is None
    store = EmbeddedStore.open(tmp_path)
    assert holder_pid(tmp_path) == os.getpid()
    store.close()
    assert holder_pid(tmp_path) is None
