"""``tidegate backup`` and ``tidegate restore``: what they print and how they fail."""

import subprocess
import sys

from store.embedded import EmbeddedStore


def tidegate(*arguments, cwd):
    command = [sys.executable, "-m", "gateway.cli.main", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True, timeout=240)


def test_a_backup_of_a_store_in_use_is_restored(tmp_path):
    opened = EmbeddedStore.open(tmp_path / "data")
    backed_up = tidegate("backup", "copy.db", cwd=tmp_path)
    assert (backed_up.returncode, backed_up.stderr) == (0, "")
    assert backed_up.stdout.startswith("backed up 0 conversations with 0 entries to copy.db (")
    opened.close()
    restored = tidegate("restore", "copy.db", "--data-dir", "new", cwd=tmp_path)
    assert (restored.returncode, restored.stderr) == (0, "")
    assert restored.stdout == "restored 0 conversations with 0 entries to new\n"
    EmbeddedStore.open(tmp_path / "new").close()


def test_errors_are_one_line_and_an_exit_code(tmp_path):
    missing = tidegate("backup", "copy.db", "--data-dir", "nowhere", cwd=tmp_path)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == (
        "tidegate: there is no store in nowhere: name the node's data directory with --data-dir\n"
    )
    opened = EmbeddedStore.open(tmp_path / "data")
    assert tidegate("backup", "copy.db", cwd=tmp_path).returncode == 0
    again = tidegate("backup", "copy.db", cwd=tmp_path)
    assert (again.returncode, len(again.stderr.splitlines())) == (1, 1)
    assert again.stderr.startswith("tidegate: copy.db exists: ")
    locked = tidegate("restore", "copy.db", cwd=tmp_path)
    assert (locked.returncode, len(locked.stderr.splitlines())) == (69, 1)
    assert "is in use by another tidegate process" in locked.stderr
    opened.close()
    assert tidegate("backup", cwd=tmp_path).returncode == 2


def test_a_cluster_has_its_data_elsewhere(tmp_path):
    """A store that lies in the data directory is then an old one: nobody may take a copy of it for a backup."""
    EmbeddedStore.open(tmp_path / "data").close()
    assert tidegate("backup", "copy.db", cwd=tmp_path).returncode == 0
    (tmp_path / "tidegate.toml").write_text(
        'store = "cassandra"\ncluster_secret = "01234567890123456789012345678901"\n'
    )
    for arguments in (("backup", "other.db"), ("restore", "copy.db", "--data-dir", "new")):
        refused = tidegate(*arguments, cwd=tmp_path)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith("tidegate: store is cassandra (from ")
        assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "other.db").exists()
    assert not (tmp_path / "new").exists()
