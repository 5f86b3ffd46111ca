"""Starts that must fail: one clear line on standard error, an exit code, no traceback; and the first node unharmed."""

import os
import socket
import sqlite3
from pathlib import Path

import pytest

from bench.processes import NodeProcess
from tests.process.failing import UNAVAILABLE, fails

pytestmark = pytest.mark.process

UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
"""Runs a command to which the modes of files apply, as they do not to root."""


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The data directory of a node that ran and was drained."""
    node = NodeProcess(tmp_path / "data")
    with node:
        assert node.terminate() == 0
    return tmp_path / "data"


def contents(data_dir: Path) -> dict[str, bytes]:
    """The files of a data directory, but for the one in which whoever tries notes its pid."""
    return {path.name: path.read_bytes() for path in data_dir.iterdir() if path.name != "lock"}


def test_a_second_node_on_the_same_data_learns_the_pid_of_the_first(node: NodeProcess) -> None:
    code, line = fails("--data-dir", str(node.data_dir))
    assert code == UNAVAILABLE
    assert str(node.pid) in line
    assert str(node.data_dir) in line
    assert node.running


def test_a_data_directory_whose_node_was_killed_is_free_again(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "data") as node:
        node.kill()
        node.start()
        assert node.running


def test_a_port_in_use_is_named(node: NodeProcess, tmp_path: Path) -> None:
    code, line = fails("--data-dir", str(tmp_path / "data"), "--port", str(node.port))
    assert code == UNAVAILABLE
    assert str(node.port) in line
    assert "in use" in line
    with socket.create_connection((node.host, node.port), timeout=10):
        assert node.running


def test_a_database_of_a_newer_schema_is_refused_and_left_alone(stopped: Path) -> None:
    (path,) = stopped.glob("*.db")
    with sqlite3.connect(path) as database:
        (table,) = database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%number%' AND name LIKE '%migration%'"
        ).fetchone()
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        newest = database.execute(f"SELECT * FROM {table} ORDER BY number DESC LIMIT 1").fetchone()
        future = [99 if name == "number" else value for name, value in zip(columns, newest, strict=True)]
        database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", future)
    database.close()
    before = path.read_bytes()
    code, line = fails("--data-dir", str(stopped))
    assert code == 1
    assert "newer" in line
    assert "99" in line
    assert path.read_bytes() == before


def test_a_data_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a directory")
    code, line = fails("--data-dir", str(tmp_path / "data"))
    assert code == 1
    assert f"{tmp_path / 'data'} cannot be used: it is a file" in line
    assert "--data-dir" in line


@pytest.mark.parametrize("existing", [True, False])
def test_a_data_directory_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path, existing: bool) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    data_dir = closed if existing else closed / "data"
    code, line = fails("--data-dir", str(data_dir), prefix=UNPRIVILEGED)
    assert code == 1
    assert str(data_dir) in line
    assert "--data-dir" in line


@pytest.mark.parametrize("name", ["", "lock", "tidegate.db", "secret"])
def test_data_that_became_unwritable_is_named_with_what_to_do_and_left_alone(stopped: Path, name: str) -> None:
    """As after a start as another user: the directory may be the node's and what is in it not, or the reverse."""
    before = contents(stopped)
    closed = stopped / name
    closed.chmod(0o500 if not name else 0o000 if name == "secret" else 0o400)
    code, line = fails("--data-dir", str(stopped), prefix=UNPRIVILEGED)
    assert code == 1
    assert str(stopped) in line
    assert name in line
    assert "--data-dir" in line
    closed.chmod(0o700)
    assert contents(stopped) == before


def test_an_unknown_option_and_an_unknown_key_are_named_with_the_nearest(tmp_path: Path) -> None:
    code, line = fails("--data-dri", "x")
    assert code == 2
    assert "--data-dir" in line
    config = tmp_path / "tidegate.toml"
    config.write_text("idle_timout_s = 5\n")
    code, line = fails("--config", str(config), "--data-dir", str(tmp_path / "data"))
    assert code == 2
    assert "idle_timout_s" in line
    assert "idle_timeout_s" in line
