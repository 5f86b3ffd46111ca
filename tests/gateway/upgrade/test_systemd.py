"""What a service manager is told."""

import socket
from pathlib import Path

import pytest

from gateway.upgrade.systemd import notify


def manager(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(10)
    return sock


def test_it_is_told_by_path_and_by_abstract_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    with manager(path) as sock:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify("MAINPID=7")
        assert sock.recv(100) == b"MAINPID=7"
    with manager(f"\0{path}") as sock:
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{path}")
        notify("READY=1")
        assert sock.recv(100) == b"READY=1"


def test_without_one_and_with_one_that_is_gone_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert not capsys.readouterr().out
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    said = capsys.readouterr()
    assert "service manager not notified" in said.out + said.err
