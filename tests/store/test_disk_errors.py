"""Disks that are full or broken: nothing unacknowledged is promised, nothing acknowledged is lost, and it heals."""

import os
import shutil
import sqlite3
import subprocess

import pytest
import trio

from protocol.codec import decode_entry
from store import embedded_writer
from store.embedded import EmbeddedStore
from store.interface import NotWritten, OutcomeUnknown, Unavailable
from tests.store.conformance import EVERYTHING, make, seqs
from tests.store.entries import append, created, record
from tests.store.outcomes import append_all
from tests.store.processes import run_with_store

BIG = "x" * 3_500


@pytest.fixture
def limit_pages(store, monkeypatch):
    """Lets the database have no more than so many pages: SQLITE_FULL, as from a full disk."""
    monkeypatch.setattr(embedded_writer, "PROBE_INTERVAL_S", 0.01)
    connection = store._writer._connection

    def limit(pages):
        [allowed] = connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()
        return allowed

    return limit


async def until_writable(store):
    with trio.fail_after(120):
        while not store.writable:
            await trio.lowlevel.checkpoint()


def read_log(data_dir):
    """The seqs of g1 in a store that no process has open."""

    async def read():
        store = EmbeddedStore.open(data_dir)
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            found = [decode_entry(each).seq for each in await store.read("g1", **EVERYTHING)]
            nursery.cancel_scope.cancel()
        return found

    return trio.run(read)


class TestFull:
    async def test_a_full_disk_refuses_writes_and_goes_on_reading(self, store, limit_pages):
        await make(store)
        assert await append_all(store, append("g1", 2, body=BIG)) == [None]
        limit_pages(1)  # no page more than there are
        errors = await append_all(store, append("g1", *range(3, 10), body=BIG), append("g1", 10, body=BIG))
        assert [type(error) for error in errors] == [NotWritten, NotWritten]
        assert "the disk is full: nothing was stored; free some space" in str(errors[0])
        assert not store.writable or store.write_error is None
        with pytest.raises(NotWritten, match="the disk is full"):
            await store.create(record("g2", title=BIG * 4), created("alice", title=BIG * 4), 1)
        assert await seqs(store) == [1, 2]
        assert (await store.take_over("g1", 1, 5)).head_seq == 2
        assert [each.head_seq for each in await store.memberships("alice")] == [2]

    async def test_it_heals_when_space_returns(self, store, limit_pages):
        await make(store)
        limit_pages(1)
        [error] = await append_all(store, append("g1", *range(2, 12), body=BIG))
        assert isinstance(error, NotWritten)
        limit_pages(1_000_000)
        await until_writable(store)
        assert store.write_error is None
        assert await append_all(store, append("g1", *range(2, 12), body=BIG)) == [None]
        assert await seqs(store) == list(range(1, 12))

    async def test_refused_members_are_no_members(self, store, limit_pages):
        await make(store)
        limit_pages(1)
        with pytest.raises(NotWritten):
            await store.create(record("g2"), created(*(f"user{n}" * 10 for n in range(500))), 1)
        limit_pages(1_000_000)
        await until_writable(store)
        assert await store.take_over("g2", 1, 1) is None
        assert await store.memberships("user0" * 10) == []

    async def test_a_new_epoch_that_cannot_be_recorded_is_not_taken(self, store, monkeypatch):
        await make(store)
        connection = store._writer._connection
        connection.execute("PRAGMA query_only = ON")  # every write fails, as on a disk gone read-only
        with pytest.raises(Unavailable):
            await store.take_over("g1", 2, 1)
        connection.execute("PRAGMA query_only = OFF")
        monkeypatch.setattr(embedded_writer, "PROBE_INTERVAL_S", 0.01)
        assert (await store.take_over("g1", 2, 1)).head_seq == 1


def test_a_write_beyond_the_size_limit_is_not_acknowledged_and_heals(tmp_path):
    """RLIMIT_FSIZE: the kernel refuses to let the write-ahead log grow, in the middle of a COMMIT."""
    run = run_with_store(
        tmp_path,
        """
        from store import embedded_writer
        embedded_writer.PROBE_INTERVAL_S = 0.01
        await make(store)
        size = os.path.getsize(sys.argv[1] + "/tidegate.db-wal")
        _soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, hard))
        refused = []
        head = 1
        for _ in range(30):
            [error] = await append_all(store, append("g1", head + 1, body="x" * 3_500))
            if error is None:
                head += 1
            else:
                refused.append(error)
        assert refused and all(isinstance(error, NotWritten) for error in refused), refused
        assert not store.writable
        assert "SQLITE_IOERR_WRITE" in str(store.write_error), store.write_error
        assert await seqs(store) == list(range(1, head + 1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        with trio.fail_after(120):
            while not store.writable:
                await trio.lowlevel.checkpoint()
        assert await append_all(store, append("g1", head + 1)) == [None]
        print(head + 1, flush=True)
        os.kill(os.getpid(), 9)
        """,
    )
    assert run.returncode == -9, run.stderr
    assert read_log(tmp_path) == list(range(1, int(run.stdout) + 1))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let us mount a small file system")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_disk_that_fills_up_keeps_what_was_acknowledged_and_takes_more_when_there_is_room(small_disk):
    async def scenario():
        store = EmbeddedStore.open(small_disk / "data")
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            await make(store)
            ballast = small_disk / "ballast"
            ballast.write_bytes(b"x" * 800_000)
            head, errors = 1, 0
            while errors < 20:
                [error] = await append_all(store, append("g1", head + 1, body=BIG))
                if error is None:
                    head += 1
                else:
                    assert isinstance(error, NotWritten | OutcomeUnknown)
                    errors += 1
            assert head > 10
            assert await seqs(store) == list(range(1, head + 1))
            ballast.unlink()
            await until_writable(store)
            assert await append_all(store, append("g1", head + 1, body=BIG)) == [None]
            nursery.cancel_scope.cancel()
        return head + 1

    head = trio.run(scenario)
    assert read_log(small_disk / "data") == list(range(1, head + 1))


def test_a_store_opens_on_a_full_disk_and_is_read(small_disk):
    run = run_with_store(
        small_disk / "data",
        """
        await make(store)
        assert await append_all(store, append("g1", 2, 3)) == [None]
        os.kill(os.getpid(), 9)
        """,
    )
    assert run.returncode == -9, run.stderr
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(b"x" * 4_000_000)
    assert read_log(small_disk / "data") == [1, 2, 3]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace makes fdatasync fail")
@pytest.mark.parametrize("when", ["4", "4..9", "6+3"])
def test_no_acknowledged_entry_is_lost_when_fdatasync_fails(tmp_path, when):
    """The failed group's pages are in the kernel's cache, and the process is killed: they must not count as stored."""
    EmbeddedStore.open(tmp_path / "data").close()  # so that opening it again syncs nothing
    run = run_with_store(
        tmp_path / "data",
        """
        from store import embedded_writer
        embedded_writer.PROBE_INTERVAL_S = 0.01
        await make(store)
        errors = 0
        for seq in range(2, 40):
            with trio.fail_after(60):
                while True:
                    [error] = await append_all(store, append("g1", seq, body="x" * 300))
                    if error is None:
                        break
                    assert isinstance(error, OutcomeUnknown | NotWritten), error
                    errors += 1
            assert await seqs(store) == list(range(1, seq + 1))
        print(errors, flush=True)
        os.kill(os.getpid(), 9)
        """,
        *("strace", "-f", "-qq", "-o", str(tmp_path / "trace")),
        *("-e", "trace=fdatasync", "-e", f"inject=fdatasync:error=EIO:when={when}"),
    )
    assert run.returncode in (-9, 128 + 9), run.stderr
    assert int(run.stdout) > 0  # it did fail
    assert read_log(tmp_path / "data") == list(range(1, 40))


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace makes fdatasync fail")
def test_while_fdatasync_fails_every_outcome_is_unknown_and_nothing_is_seen(tmp_path):
    EmbeddedStore.open(tmp_path / "data").close()
    run = run_with_store(
        tmp_path / "data",
        """
        await make(store)
        errors = []
        seq = 2
        while len(errors) < 3:
            [error] = await append_all(store, append("g1", seq))
            if error is None:
                seq += 1
            else:
                errors.append(error)
                assert not store.writable
                assert await seqs(store) == list(range(1, seq))
        assert all(isinstance(error, OutcomeUnknown) for error in errors), errors
        assert "SQLITE_IOERR_FSYNC" in str(errors[0]), errors[0]
        print(seq - 1, flush=True)
        os.kill(os.getpid(), 9)
        """,
        *("strace", "-f", "-qq", "-o", str(tmp_path / "trace")),
        *("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=6+"),
    )
    assert run.returncode in (-9, 128 + 9), run.stderr
    acknowledged = int(run.stdout)
    found = read_log(tmp_path / "data")
    assert found in (list(range(1, acknowledged + 1)), list(range(1, acknowledged + 2)))


async def test_a_connection_that_cannot_roll_back_is_replaced(store, monkeypatch):
    monkeypatch.setattr(embedded_writer, "PROBE_INTERVAL_S", 0.01)
    await make(store)
    store._writer._connection.close()
    [error] = await append_all(store, append("g1", 2))
    assert isinstance(error, NotWritten)
    await until_writable(store)
    assert await append_all(store, append("g1", 2)) == [None]
    assert await seqs(store) == [1, 2]


def test_a_read_error_is_unavailable(tmp_path):
    """A page of the database file that is garbage."""

    async def scenario():
        store = EmbeddedStore.open(tmp_path)
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            await make(store)
            nursery.cancel_scope.cancel()
        connection = sqlite3.connect(tmp_path / "tidegate.db")
        [(root,)] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'members'").fetchall()
        connection.close()
        with (tmp_path / "tidegate.db").open("r+b") as file:
            file.seek((root - 1) * 4_096)
            file.write(b"\xff" * 4_096)
        store = EmbeddedStore.open(tmp_path)
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            with pytest.raises(Unavailable, match="cannot be read"):
                await store.take_over("g1", 1, 1)
            nursery.cancel_scope.cancel()

    trio.run(scenario)
