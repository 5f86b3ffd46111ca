"""Several real nodes behind one port: shared, one of them killed, drained, and left alone by their supervisor."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio

from bench.load.connect import wait_until
from bench.processes import SharedPort
from protocol.errors import CloseCode
from protocol.frames import GoAway, Welcome
from tests.process.wire import Wire, upgraded

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
COUNT = 2
WITHIN_S = 240.0
"""Seconds in which whatever a test waits for has to happen: far more than it takes on a busy machine."""
CONNECTIONS_MAX = 64
"""Connections among which there are some to each node: the kernel spreads them evenly, by chance."""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[SharedPort]:
    with SharedPort(COUNT, tmp_path / "data", "log_format=json", "node_name=n") as nodes:
        yield nodes


@asynccontextmanager
async def welcomed(nodes: SharedPort, user: str) -> AsyncIterator[tuple[Wire, str]]:
    """A connection, and the name of the node that it is to."""
    async with upgraded(nodes, headers={"Authorization": f"Bearer {nodes.token(user)}"}) as wire:
        welcome = await wire.receive()
        assert isinstance(welcome, Welcome)
        yield wire, welcome.node


async def met(nodes: SharedPort, names: set[str]) -> None:
    """Connect until all these nodes were met."""
    for number in range(CONNECTIONS_MAX):
        async with welcomed(nodes, f"u{number}") as (_, name):
            names = names - {name}
        if not names:
            return
    raise AssertionError(f"not met: {names}\n{nodes.stderr_tail()}")


async def sent_away(wire: Wire) -> None:
    """The node says goodbye as it should."""
    assert isinstance(await wire.receive(), GoAway)
    assert (await wire.closed()).code == CloseCode.SERVICE_RESTART


def all_gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) for pid in pids)


async def test_all_nodes_take_connections_and_one_that_is_killed_comes_back(nodes: SharedPort) -> None:
    await met(nodes, {"n-1", "n-2"})
    pids = nodes.node_pids()
    assert len(pids) == COUNT
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: all_gone(pids[:1]), timeout_s=WITHIN_S, what="the killed node is gone")
    async with welcomed(nodes, "alice"):  # by the other one, which the kernel asks alone from now on
        pass
    wait_until(
        lambda: nodes.stderr_path.read_text().count("node process ready") > COUNT, timeout_s=WITHIN_S, what="it is back"
    )
    assert '"code": 137' in nodes.stderr_path.read_text()
    await met(nodes, {"n-1", "n-2"})
    assert nodes.terminate() == 0


@pytest.mark.parametrize("whole_group", [False, True], ids=["SIGTERM", "Ctrl-C"])
async def test_one_signal_drains_all_even_when_a_terminal_sends_it_to_each(
    nodes: SharedPort, whole_group: bool
) -> None:
    pids = nodes.node_pids()
    async with welcomed(nodes, "alice") as (alice, _), welcomed(nodes, "bob") as (bob, _):
        if whole_group:
            os.killpg(nodes.pid, signal.SIGINT)
        else:
            nodes.signal(signal.SIGTERM)
        await sent_away(alice)
        await sent_away(bob)
    assert await trio.to_thread.run_sync(nodes.wait) == 0
    assert all_gone(pids)
    assert "Traceback" not in nodes.stderr_path.read_text()


async def test_a_supervisor_that_is_killed_leaves_no_orphans(nodes: SharedPort) -> None:
    pids = nodes.node_pids()
    async with welcomed(nodes, "alice") as (alice, _):
        nodes.signal(signal.SIGKILL)
        await sent_away(alice)
    wait_until(lambda: all_gone(pids), timeout_s=WITHIN_S, what="its nodes are gone")


def test_a_service_manager_is_told_once_that_all_are_ready(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with SharedPort(COUNT, tmp_path / "data", environment=environment) as nodes:
            assert nodes.terminate() == 0
        manager.setblocking(False)
        assert manager.recv(100) == b"READY=1"
        with pytest.raises(BlockingIOError):
            manager.recv(100)


def test_what_is_wrong_with_the_first_start_is_said_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.several_nodes", "2", str(tmp_path / "data"), "port=0"]
    ended = subprocess.run(
        [*command, "auth_algorithm=RS256"], cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\ntidegate: ") == 1, ended.stderr
    assert ended.stdout == ""


def test_the_embedded_store_has_one_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway.cli.main", "serve", "--processes", "2", "--data-dir", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "tidegate: processes is 2 (from --processes), but the data directory of the embedded"
    )
    assert "store = cassandra" in ended.stderr
