"""What the embedded store does beyond the conformance suite: its directory, its threads, its index and its restarts."""

import os
import sqlite3
import stat
import sys
from pathlib import Path

import pytest
import trio

from protocol.codec import decode_entry
from store import embedded_checkpoints, embedded_recent, embedded_writer
from store.embedded import DataDirLocked, DataDirUnusable, EmbeddedStore, SchemaTooNew
from store.interface import NotWritten, Unavailable
from tests.store.conformance import EVERYTHING, make, seqs
from tests.store.entries import append, created, record
from tests.store.huge import check_channel
from tests.store.outcomes import Outcomes, append_all
from tests.store.processes import run_with_store


class Reopened:
    """``async with Reopened(path) as store``: opens, runs, and closes by cancelling."""

    def __init__(self, path):
        self._path = path

    async def __aenter__(self):
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        store = EmbeddedStore.open(self._path)
        await self._nursery.start(store.run)
        return store

    async def __aexit__(self, *error):
        self._nursery.cancel_scope.cancel()
        return await self._manager.__aexit__(*error)


class TestDirectory:
    def test_it_is_made_private(self, tmp_path):
        EmbeddedStore.open(tmp_path / "a" / "data").close()
        data = tmp_path / "a" / "data"
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in data.iterdir()} == {
            "tidegate.db": 0o600,
            "lock": 0o600,
        }

    def test_a_second_store_is_told_the_firsts_pid(self, tmp_path):
        first = EmbeddedStore.open(tmp_path)
        with pytest.raises(DataDirLocked, match=rf"in use by another tidegate process \(pid {os.getpid()}\): stop"):
            EmbeddedStore.open(tmp_path)
        first.close()
        EmbeddedStore.open(tmp_path).close()

    def test_the_lock_ends_with_the_process_that_is_killed(self, tmp_path):
        killed = run_with_store(tmp_path, "os.kill(os.getpid(), 9)")
        assert killed.returncode == -9, killed.stderr
        assert int((tmp_path / "lock").read_text()) != os.getpid()
        EmbeddedStore.open(tmp_path).close()

    def test_a_file_in_its_place_is_a_clear_error(self, tmp_path):
        (tmp_path / "file").touch()
        for path, reason in ((tmp_path / "file", "it is a file"), (tmp_path / "file" / "below", "Not a directory")):
            with pytest.raises(DataDirUnusable, match=f"{path} .*{reason}: .*choose another one with --data-dir"):
                EmbeddedStore.open(path)

    def test_a_read_only_place_is_a_clear_error(self):
        with pytest.raises(DataDirUnusable, match="cannot be used"):
            EmbeddedStore.open(Path("/proc/tidegate"))

    def test_a_damaged_database_is_a_clear_error_and_lets_go_of_the_lock(self, tmp_path):
        (tmp_path / "tidegate.db").write_bytes(b"this is not a database, it is only a text" * 200)
        for _ in range(2):
            with pytest.raises(DataDirUnusable, match="SQLITE_NOTADB"):
                EmbeddedStore.open(tmp_path)


class TestSchema:
    def test_a_newer_schema_is_refused_and_left_alone(self, tmp_path):
        EmbeddedStore.open(tmp_path).close()
        connection = sqlite3.connect(tmp_path / "tidegate.db")
        connection.execute("INSERT INTO schema_migrations VALUES (7, 'later')")
        connection.commit()
        connection.close()
        for _ in range(2):
            with pytest.raises(SchemaTooNew, match=r"is of schema 7, and this tidegate knows schemas up to 1: run"):
                EmbeddedStore.open(tmp_path)

    def test_opening_again_applies_nothing(self, tmp_path):
        for _ in range(2):
            EmbeddedStore.open(tmp_path).close()
        connection = sqlite3.connect(tmp_path / "tidegate.db")
        assert connection.execute("SELECT * FROM schema_migrations").fetchall() == [(1, "conversations")]
        connection.close()


class TestGroups:
    async def test_what_waits_is_committed_as_one_group(self, store):
        for n in range(10):
            await make(store, f"g{n}")
        before = store.commits
        outcomes = Outcomes()
        for seq in range(2, 52):  # 500 batches, queued before the writer's thread can have worked off the first few
            for n in range(10):
                store.append([append(f"g{n}", seq)], outcomes)
        await outcomes.wait(500)
        assert outcomes.errors == [None] * 500
        assert 1 <= store.commits - before <= 50
        assert len(outcomes.calls) == 500  # one call for each batch

    async def test_a_group_has_an_end(self, store, monkeypatch):
        monkeypatch.setattr(embedded_writer, "GROUP_ENTRIES_MAX", 5)
        await make(store)
        before = store.commits
        outcomes = Outcomes()
        for seq in range(2, 102):
            store.append([append("g1", seq)], outcomes)
        await outcomes.wait(100)
        assert store.commits - before >= 20

    async def test_a_group_without_a_change_costs_no_commit(self, store):
        await make(store)
        before = store.commits
        await store.take_over("g1", 1, 1)
        assert not await store.create(record("g1"), created("alice"), 1)
        assert await append_all(store, append("g1", 7)) != [None]
        assert store.commits == before


class TestRunning:
    async def test_what_was_queued_is_durable_and_told_before_the_end(self, tmp_path):
        outcomes = Outcomes()
        async with Reopened(tmp_path) as store:
            await make(store)
            for seq in range(2, 200):
                store.append([append("g1", seq)], outcomes)
        assert outcomes.errors == [None] * 198
        async with Reopened(tmp_path) as store:
            assert await seqs(store) == list(range(1, 200))

    async def test_a_store_that_does_not_run_says_so(self, tmp_path):
        store = EmbeddedStore.open(tmp_path)
        [error] = await append_all(store, append("g1", 2))
        assert isinstance(error, NotWritten)
        with pytest.raises(Unavailable):
            await store.memberships("alice")
        with pytest.raises(NotWritten):
            await store.create(record("g1"), created("alice"), 1)
        store.close()

    async def test_an_error_in_done_ends_the_store_loudly_and_whole(self, tmp_path):
        def broken(_outcomes):
            raise ZeroDivisionError("a bug of the owner")

        async def scenario():
            async with Reopened(tmp_path) as store:
                await make(store)
                store.append([append("g1", 2)], broken)
                await trio.sleep_forever()

        with pytest.raises(BaseExceptionGroup) as raised:
            await scenario()
        assert raised.group_contains(ZeroDivisionError)
        async with Reopened(tmp_path) as store:
            assert await seqs(store) == [1, 2]

    async def test_nothing_is_left_behind(self, tmp_path):
        async with Reopened(tmp_path) as store:
            await make(store)
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(3):
            async with Reopened(tmp_path) as store:
                await append_all(store, append("g1", 2))
                await store.memberships("alice")
        assert len(os.listdir("/proc/self/fd")) <= len(before)


class TestHugeConversations:
    async def test_a_channel_of_a_hundred_thousand(self, store):
        await check_channel(store, 100_000)


class TestIndex:
    @pytest.fixture
    def generations_of_ten(self, monkeypatch):
        monkeypatch.setattr(embedded_recent, "GENERATION_ENTRIES", 10)
        monkeypatch.setattr(embedded_recent, "INDEX_ENTRIES_MIN", 3)

    def _indexed(self, tmp_path):
        connection = sqlite3.connect(tmp_path / "tidegate.db")
        rows = connection.execute("SELECT count(*) FROM entry_index").fetchone()[0]
        through = connection.execute("SELECT indexed_through FROM index_state").fetchone()[0]
        connection.close()
        return rows, through

    async def test_entries_move_to_the_index_in_slices(self, tmp_path, generations_of_ten):
        async with Reopened(tmp_path) as store:
            await make(store)
            for seq in range(2, 11):
                await append_all(store, append("g1", seq))
            assert self._indexed(tmp_path) == (0, 0)
            await append_all(store, append("g1", 11))
            assert self._indexed(tmp_path) == (3, 0)
            for seq in range(12, 15):
                await append_all(store, append("g1", seq))
            assert self._indexed(tmp_path) == (10, 10)
            assert await seqs(store) == list(range(1, 15))

    @pytest.mark.parametrize("entries", [5, 11, 12, 13, 14, 25])
    async def test_a_restart_finds_entries_wherever_they_were(self, tmp_path, generations_of_ten, entries):
        async with Reopened(tmp_path) as store:
            await make(store)
            await make(store, "g2")
            for seq in range(2, entries + 1):
                await append_all(store, append("g1", seq))
        async with Reopened(tmp_path) as store:
            expected = list(range(1, entries + 1))
            assert await seqs(store) == expected
            assert await seqs(store, limit=4, newest=True) == expected[-4:]
            assert (await store.memberships("alice"))[0].head_seq == entries
            for seq in range(entries + 1, entries + 30):
                assert await append_all(store, append("g1", seq)) == [None]
            assert await seqs(store) == list(range(1, entries + 30))
            assert await seqs(store, "g2") == [1]

    async def test_readers_see_every_acknowledged_entry_while_the_index_moves(self, tmp_path, generations_of_ten):
        async with Reopened(tmp_path) as store:
            await make(store)
            acknowledged = 1
            finished = False
            reads = 0

            async def read_on():
                nonlocal reads
                while not finished:
                    at_least = acknowledged
                    found = await seqs(store)
                    assert found == list(range(1, len(found) + 1))
                    assert len(found) >= at_least
                    newest = await seqs(store, limit=15, newest=True)
                    assert newest == list(range(newest[0], newest[-1] + 1))
                    assert newest[-1] >= at_least
                    reads += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_on)
                nursery.start_soon(read_on)
                for seq in range(2, 400):
                    await append_all(store, append("g1", seq))
                    acknowledged = seq
                finished = True
            assert reads > 10


class TestCheckpoints:
    async def test_the_write_ahead_log_begins_anew(self, tmp_path, monkeypatch):
        monkeypatch.setattr(embedded_writer, "CHECKPOINT_PAGES", 16)
        monkeypatch.setattr(embedded_checkpoints, "LOG_PAGES_MAX", 64)
        async with Reopened(tmp_path) as store:
            await make(store)
            body = "x" * 2_000
            for seq in range(2, 802):
                assert await append_all(store, append("g1", seq, body=body)) == [None]
            written = 800 * 4_096  # at least a page a commit
            assert (tmp_path / "tidegate.db-wal").stat().st_size < written / 2
            assert await seqs(store) == list(range(1, 802))
        connection = sqlite3.connect(tmp_path / "tidegate.db")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()


class TestKilled:
    def test_a_killed_process_loses_nothing_it_acknowledged(self, tmp_path):
        killed = run_with_store(
            tmp_path,
            """
            await make(store)
            outcomes = Outcomes()
            for seq in range(2, 3_000):
                store.append([append("g1", seq)], outcomes)
            await outcomes.wait(500)
            print(len(outcomes.all), flush=True)
            os.kill(os.getpid(), 9)
            """,
        )
        assert killed.returncode == -9, killed.stderr
        acknowledged = int(killed.stdout)
        assert acknowledged >= 500

        async def check():
            async with Reopened(tmp_path) as store:
                found = [decode_entry(each).seq for each in await store.read("g1", **EVERYTHING)]
            assert found == list(range(1, len(found) + 1))
            assert len(found) >= acknowledged + 1

        trio.run(check)

    def test_python_is_new_enough_for_error_codes(self):
        assert sys.version_info >= (3, 11)
        assert sqlite3.sqlite_version_info >= (3, 37)
