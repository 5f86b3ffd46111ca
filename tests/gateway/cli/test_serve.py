import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from gateway import node, processes
from gateway.auth import AuthMisconfigured, SecretUnusable
from gateway.cli import serve
from gateway.cli.errors import CliError
from gateway.config import Settings
from store.embedded import DataDirLocked, DataDirUnusable, SchemaTooNew

SETTINGS = Settings(port=8480)


def failing_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node ends with ``error``, wrapped as its nurseries would."""

    async def run() -> None:
        async with trio.open_nursery():
            raise error

    monkeypatch.setattr(node, "main", lambda *_: trio.run(run))


@pytest.fixture(autouse=True)
def _leave_logging_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.observe.logs.configure", lambda *_, **__: None)


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            os_error(errno.EADDRINUSE),
            69,
            "127.0.0.1:8480: the port is in use; stop what listens there or choose another",
        ),
        (os_error(errno.EADDRNOTAVAIL), 69, "127.0.0.1:8480: this machine has no such address; choose another --host"),
        (os_error(errno.EACCES), 69, "127.0.0.1:8480: not allowed for this user; choose a --port of 1024 or more"),
        (socket.gaierror(-2, "Name or service not known"), 69, "127.0.0.1:8480: the host is not known; choose another"),
        (DataDirLocked("data is in use by process 7"), 69, "data is in use by process 7"),
        (DataDirUnusable("data: no"), 1, "data: no"),
        (SchemaTooNew("too new"), 1, "too new"),
        (AuthMisconfigured("no key"), 2, "no key"),
        (SecretUnusable("chmod it"), 1, "chmod it"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_an_operator_can_put_right(
    error: Exception, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_with(error, monkeypatch)
    with pytest.raises(CliError) as caught:
        serve.serve(SETTINGS)
    assert message in caught.value.message
    assert caught.value.exit_code == code


@pytest.mark.parametrize("error", [ZeroDivisionError(), os_error(errno.EIO), FileNotFoundError(2, "x", "some file")])
def test_a_bug_stays_one(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(error, monkeypatch)
    with pytest.raises(ExceptionGroup):
        serve.serve(SETTINGS)


def test_a_port_in_use_for_real(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CliError, match=f"cannot listen on 127.0.0.1:{port}: the port is in use"):
            serve.serve(Settings(port=port, data_dir=tmp_path))


def test_a_data_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CliError) as caught:
        serve.serve(Settings(port=0, data_dir=tmp_path / "file"))
    assert str(tmp_path / "file") in caught.value.message
    assert caught.value.exit_code == 1


def test_an_unfit_secret(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="auth_secret has 5 bytes; HS256 needs at least 32"):
        serve.serve(Settings(port=0, data_dir=tmp_path, auth_secret="short"))


def test_a_link_to_no_supervisor() -> None:
    with pytest.raises(CliError, match="--link-fd names no supervisor; use --processes N") as caught:
        serve.serve_supervised(10_000)
    assert caught.value.exit_code == 2


def test_several_processes_share_one_announcement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_settings: Settings, announce: Callable[[str], None], _left: object) -> int:
        announce("http://127.0.0.1:5")
        return 70

    monkeypatch.setattr(processes, "main", main)
    assert serve.serve_several(Settings(processes=3, node_name="n")) == 70
    assert "node n-1 to n-3 listening on http://127.0.0.1:5\n" in capsys.readouterr().out


def test_what_is_printed_at_start(capsys: pytest.CaptureFixture[str]) -> None:
    serve.announce("n1", "http://127.0.0.1:8480", Settings())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tidegate 0.1.0: node n1 listening on http://127.0.0.1:8480"
    assert lines[1] == f"Chat, from two more terminals in {Path.cwd()}:"  # where ./data is
    assert lines[2].endswith("tidegate chat --as alice --to bob")
    assert lines[3].endswith("tidegate chat --as bob --to alice")
    assert lines[4] == "API page: http://127.0.0.1:8480/"


def test_chat_commands_name_what_differs_from_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    serve.announce("n1", "http://127.0.0.1:5", Settings(data_dir=Path("my data")))
    assert "chat --as alice --to bob --url http://127.0.0.1:5 --data-dir 'my data'\n" in capsys.readouterr().out


def test_chat_commands_say_where_they_work_if_not_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    beside = tmp_path / "bin" / "tidegate"
    monkeypatch.setattr(serve.sys, "executable", str(beside.with_name("python")))

    def told(data_dir: str, on_path: Path | None) -> list[str]:
        monkeypatch.setattr(serve.shutil, "which", lambda _name: on_path and str(on_path))
        serve.announce("n1", "http://127.0.0.1:5", Settings(data_dir=Path(data_dir)))
        return [line.strip() for line in capsys.readouterr().out.splitlines()[1:3]]

    here, command = f"Chat, from two more terminals in {tmp_path}:", "chat --as alice --to bob --url http://127.0.0.1:5"
    assert told("data", beside) == [here, f"tidegate {command}"]
    assert told("/d", None) == [here, f"bin/tidegate {command} --data-dir /d"]
    assert told("/d", Path("/other/bin/tidegate")) == [here, f"bin/tidegate {command} --data-dir /d"]
    assert told("/d", beside) == ["Chat, from two more terminals:", f"tidegate {command} --data-dir /d"]
    monkeypatch.chdir("/")
    monkeypatch.setattr(serve.sys, "executable", "/opt/x/bin/python")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    everywhere = f"/opt/x/bin/tidegate {command} --data-dir /d"
    assert told("/d", None) == ["Chat, from two more terminals:", everywhere]


@pytest.mark.parametrize(
    "changes", [{"auth_algorithm": "RS256"}, {"auth_secret": "x" * 32}, {"auth_audience": "a"}, {"auth_issuer": "i"}]
)
def test_no_chat_commands_that_would_be_refused(changes: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    serve.announce("n1", "http://127.0.0.1:5", Settings(**changes))
    assert "chat" not in capsys.readouterr().out
