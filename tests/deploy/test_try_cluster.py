"""What ``make cluster`` prints and writes can be used as it stands."""

import os
import select
import shlex
import signal
import socket
import stat
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from deploy import try_cluster
from deploy.processes import ServerFailed, ServerProcess
from gateway.cli.main import tidegate
from gateway.config_load import load_effective

ENVIRONMENT = {
    "TIDEGATE_STORE": "cassandra",
    "TIDEGATE_CASSANDRA_HOSTS": "127.0.0.1",
    "TIDEGATE_CASSANDRA_PORT": "9043",
    "TIDEGATE_REDIS_URL": "redis://127.0.0.1:6480/0",
    "TIDEGATE_CLUSTER_SECRET": "c" * 43,
    "TIDEGATE_AUTH_SECRET": "a" * 43,
}


def test_the_file_says_what_the_nodes_were_told(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    for _ in range(2):  # the next start writes it anew
        try_cluster.write_settings(path, ENVIRONMENT)
    assert load_effective({}, {}, path).settings == load_effective({}, ENVIRONMENT, None).settings
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_command_that_is_printed_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / try_cluster.DATA).mkdir(parents=True)
    try_cluster.write_settings(try_cluster.SETTINGS_FILE, ENVIRONMENT)
    lines = [shlex.split(line) for line in try_cluster.welcome().splitlines() if line.startswith("  ")]
    assert [line[1] for line in lines] == ["chat", "chat", "cluster", "cluster", "serve"]
    for program, *arguments in lines:
        assert Path(program).name == "tidegate"
        with tidegate.make_context("tidegate", arguments) as context:
            command = tidegate.get_command(context, arguments[0])
            assert command is not None
            command.make_context(arguments[0], arguments[1:], parent=context).close()
        assert load_effective({}, {}, Path(arguments[arguments.index("--config") + 1])).settings.auth_secret


def test_a_port_of_another_program_is_not_taken_for_the_server_s(tmp_path: Path) -> None:
    server = ServerProcess("node-1", ["true"], tmp_path / "node-1.log")
    with socket.create_server(("127.0.0.1", 0)) as other, ExitStack() as stack:
        port = other.getsockname()[1]
        with pytest.raises(ServerFailed, match=f"port {port}, which node-1 needs"):
            try_cluster._run(stack, server, port)
    assert not server.running


def test_who_goes_on_in_a_node_s_place_ends_with_it(tmp_path: Path) -> None:
    """After a live upgrade the process that was started is gone, and nobody here has started the other one."""
    heir = tmp_path / "heir"
    upgraded = f"sleep 1000 & echo $! > {heir}.new; mv {heir}.new {heir}"
    server = ServerProcess("node-1", ["sh", "-c", upgraded], tmp_path / "node-1.log")
    server.launch()
    server._process.wait(30)  # type: ignore[union-attr]
    ended = os.pidfd_open(int(heir.read_text()))
    try:
        server.stop()
        assert select.select([ended], [], [], 0)[0]
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(ended, signal.SIGKILL)
        os.close(ended)
