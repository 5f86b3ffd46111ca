"""Backups taken while a store works, and what restoring them gives."""

import fcntl
import os
import sqlite3

import pytest
import trio

from protocol.codec import decode_entry
from protocol.frames import ConversationKind
from store import backup as backup_module
from store import embedded_directory
from store.backup import BackupError, back_up, restore
from store.embedded import DataDirLocked, EmbeddedStore, SchemaTooNew
from store.embedded_directory import DataDirectory
from tests.store.conformance import EVERYTHING, make, seqs
from tests.store.entries import append
from tests.store.outcomes import Outcomes, append_all
from tests.store.processes import run_with_store


async def log_of(data_dir, *conversation_ids):
    """All entries of some conversations of a store that nobody has open."""
    opened = EmbeddedStore.open(data_dir)
    async with trio.open_nursery() as nursery:
        await nursery.start(opened.run)
        logs = {each: await opened.read(each, **EVERYTHING) for each in conversation_ids}
        nursery.cancel_scope.cancel()
    return logs


async def test_a_backup_restores_to_the_same_store(store, tmp_path):
    await make(store, "g1", "alice", "bob", title="Sailing")
    await make(store, "d1", "alice", "bob", kind=ConversationKind.DIRECT)
    await append_all(store, append("g1", *range(2, 400)))
    contents = back_up(tmp_path / "data", tmp_path / "copy.db")
    assert (contents.conversations, contents.entries) == (2, 400)
    assert contents.file_bytes == (tmp_path / "copy.db").stat().st_size
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    expected = {each: await store.read(each, **EVERYTHING) for each in ("g1", "d1")}
    await append_all(store, append("g1", 400))  # after the backup: not in it

    assert restore(tmp_path / "copy.db", tmp_path / "new") == contents
    assert await log_of(tmp_path / "new", "g1", "d1") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.db", "data", "new"]


async def test_a_backup_under_load_has_all_that_was_acknowledged_and_no_gap(store, tmp_path, monkeypatch):
    monkeypatch.setattr(backup_module, "STEP_PAGES", 4)
    conversations = [f"g{n}" for n in range(20)]
    for each in conversations:
        await make(store, each)
    await append_all(store, *(append(each, *range(2, 100), body="x" * 300) for each in conversations))
    acknowledged = dict.fromkeys(conversations, 99)
    head = dict(acknowledged)
    steps = 0

    def keep_writing():
        """One more entry everywhere; the loop runs on until all of them are acknowledged."""
        outcomes = Outcomes()
        for each in conversations:
            head[each] += 1
        store.append([append(each, head[each]) for each in conversations], outcomes)
        return outcomes

    def progress(_done, total):
        nonlocal steps
        steps += 1
        assert total > 8
        if steps < 40:
            outcomes = trio.from_thread.run_sync(keep_writing)
            trio.from_thread.run(outcomes.wait, len(conversations))
            assert outcomes.errors == [None] * len(conversations)

    await trio.to_thread.run_sync(back_up, tmp_path / "data", tmp_path / "copy.db", progress)
    assert steps > 10
    assert head["g0"] > 109  # entries were acknowledged while pages were copied
    restore(tmp_path / "copy.db", tmp_path / "new")
    for each, log in (await log_of(tmp_path / "new", *conversations)).items():
        found = [decode_entry(encoded).seq for encoded in log]
        assert found == list(range(1, len(found) + 1))
        assert acknowledged[each] <= len(found) <= head[each]
    assert await seqs(store, "g0") == list(range(1, head["g0"] + 1))


async def test_a_restored_store_goes_on(store, tmp_path):
    await make(store)
    await append_all(store, append("g1", 2))
    back_up(tmp_path / "data", tmp_path / "copy.db")
    restore(tmp_path / "copy.db", tmp_path / "new")
    opened = EmbeddedStore.open(tmp_path / "new")
    async with trio.open_nursery() as nursery:
        await nursery.start(opened.run)
        assert (await opened.take_over("g1", 2, 10)).head_seq == 2
        assert await append_all(opened, append("g1", 3, epoch=2)) == [None]
        nursery.cancel_scope.cancel()


def test_a_backup_of_a_store_that_was_killed_has_everything(tmp_path):
    killed = run_with_store(
        tmp_path / "data",
        """
        await make(store)
        assert await append_all(store, append("g1", 2, 3)) == [None]
        os.kill(os.getpid(), 9)
        """,
    )
    assert killed.returncode == -9, killed.stderr
    assert back_up(tmp_path / "data", tmp_path / "copy.db").entries == 3


def test_a_backup_overwrites_nothing(tmp_path):
    EmbeddedStore.open(tmp_path / "data").close()
    (tmp_path / "copy.db").write_text("precious")
    with pytest.raises(BackupError, match=r"copy\.db exists: a backup overwrites nothing"):
        back_up(tmp_path / "data", tmp_path / "copy.db")
    assert (tmp_path / "copy.db").read_text() == "precious"


def test_a_backup_needs_a_store_and_a_place(tmp_path):
    with pytest.raises(BackupError, match="there is no store in"):
        back_up(tmp_path / "data", tmp_path / "copy.db")
    EmbeddedStore.open(tmp_path / "data").close()
    with pytest.raises(BackupError, match="cannot be written: No such file or directory"):
        back_up(tmp_path / "data", tmp_path / "nowhere" / "copy.db")


def test_restore_wants_a_directory_without_a_store(tmp_path):
    EmbeddedStore.open(tmp_path / "data").close()
    back_up(tmp_path / "data", tmp_path / "copy.db")
    with pytest.raises(BackupError, match="has a store already"):
        restore(tmp_path / "copy.db", tmp_path / "data")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "tidegate.db-wal").write_bytes(b"entries of a store whose database was moved away")
    with pytest.raises(BackupError, match="has a store already"):
        restore(tmp_path / "copy.db", tmp_path / "half")
    opened = EmbeddedStore.open(tmp_path / "busy")
    with pytest.raises(DataDirLocked, match=f"pid {os.getpid()}"):
        restore(tmp_path / "copy.db", tmp_path / "busy")
    opened.close()


def test_restore_refuses_what_is_no_intact_backup(tmp_path):
    EmbeddedStore.open(tmp_path / "data").close()
    back_up(tmp_path / "data", tmp_path / "copy.db")
    with pytest.raises(BackupError, match="there is no backup"):
        restore(tmp_path / "absent.db", tmp_path / "new")
    (tmp_path / "text.db").write_text("hello, this is no database" * 40)
    with pytest.raises(BackupError, match="SQLITE_NOTADB"):
        restore(tmp_path / "text.db", tmp_path / "new")
    (tmp_path / "empty.db").touch()
    with pytest.raises(BackupError, match="was not written by tidegate"):
        restore(tmp_path / "empty.db", tmp_path / "new")
    assert not (tmp_path / "new").exists(), "nothing is left behind"


def test_a_restore_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    (tmp_path / "text.db").write_text("hello, this is no database" * 40)
    with pytest.raises(BackupError):
        restore(tmp_path / "text.db", tmp_path / "deep" / "er" / "new")
    assert not (tmp_path / "deep").exists()
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(BackupError):
        restore(tmp_path / "text.db", there)
    assert list(there.iterdir()) == []
    (there / "lock").write_text("4711\n")
    (there / "notes").touch()
    with pytest.raises(BackupError):
        restore(tmp_path / "text.db", there)
    assert sorted(path.name for path in there.iterdir()) == ["lock", "notes"]


def test_who_waited_for_a_lock_that_a_failed_restore_removed_locks_a_new_one(tmp_path, monkeypatch):
    """Otherwise two processes could hold the locks of two files, of which only one is there."""
    flock, raced = fcntl.flock, []

    def after_another_removed_it(lock, operation):
        if not raced:
            raced.append(True)
            (tmp_path / "data" / "lock").unlink()
        flock(lock, operation)

    monkeypatch.setattr(embedded_directory.fcntl, "flock", after_another_removed_it)
    directory = DataDirectory.lock(tmp_path / "data")
    assert raced
    with pytest.raises(DataDirLocked):
        DataDirectory.lock(tmp_path / "data")
    assert os.fstat(directory.lock_descriptor).st_ino == (tmp_path / "data" / "lock").stat().st_ino
    directory.unlock()


async def test_restore_refuses_a_backup_with_a_gap(store, tmp_path):
    await make(store)
    await append_all(store, append("g1", 2, 3, 4))
    back_up(tmp_path / "data", tmp_path / "copy.db")
    connection = sqlite3.connect(tmp_path / "copy.db")
    connection.execute("DELETE FROM entries WHERE seq = 3")
    connection.commit()
    connection.close()
    with pytest.raises(BackupError, match="conversation g1 has 3 entries between 1 and 4"):
        restore(tmp_path / "copy.db", tmp_path / "new")
    assert not (tmp_path / "new").exists()


async def test_restore_refuses_a_damaged_page(store, tmp_path):
    await make(store)
    await append_all(store, append("g1", *range(2, 500)))
    back_up(tmp_path / "data", tmp_path / "copy.db")
    with (tmp_path / "copy.db").open("r+b") as file:
        file.seek(4096 * 12)
        file.write(b"\xff" * 4096)
    with pytest.raises(BackupError):
        restore(tmp_path / "copy.db", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_newer_schema_is_refused_both_ways(tmp_path):
    EmbeddedStore.open(tmp_path / "data").close()
    back_up(tmp_path / "data", tmp_path / "copy.db")
    for file in (tmp_path / "data" / "tidegate.db", tmp_path / "copy.db"):
        connection = sqlite3.connect(file)
        connection.execute("INSERT INTO schema_migrations VALUES (99, 'from_the_future')")
        connection.commit()
        connection.close()
    with pytest.raises(SchemaTooNew, match="is of schema 99, and this tidegate knows schemas up to"):
        back_up(tmp_path / "data", tmp_path / "other.db")
    with pytest.raises(SchemaTooNew, match="is of schema 99"):
        restore(tmp_path / "copy.db", tmp_path / "new")
    assert not (tmp_path / "other.db").exists()
