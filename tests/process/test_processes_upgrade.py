"""An upgrade of several real nodes behind one port: their connections stay, and who cannot be upgraded goes on."""

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from bench.load.connect import wait_until
from bench.processes import SharedPort
from protocol.errors import CloseCode
from protocol.frames import GoAway, Send, SendAck, Welcome
from tests.process.wire import Wire, upgraded

pytestmark = pytest.mark.process

COUNT = 2
WITHIN_S = 240.0
"""Seconds in which whatever a test waits for has to happen: far more than it takes on a busy machine."""
CONNECTIONS = 16


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[SharedPort]:
    with SharedPort(COUNT, tmp_path / "data", "log_format=json", "node_name=n") as nodes:
        yield nodes


@asynccontextmanager
async def crowd(nodes: SharedPort) -> AsyncIterator[dict[str, tuple[Wire, str]]]:
    """Connections by user, each with the name of the node that it is to; some to each node."""
    async with AsyncExitStack() as stack:
        found: dict[str, tuple[Wire, str]] = {}
        for number in range(CONNECTIONS):
            user = f"u{number}"
            headers = {"Authorization": f"Bearer {nodes.token(user)}"}
            wire = await stack.enter_async_context(upgraded(nodes, headers=headers))
            welcome = await wire.receive()
            assert isinstance(welcome, Welcome)
            found[user] = wire, welcome.node
        assert {name for _, name in found.values()} == {"n-1", "n-2"}
        yield found


async def told_apart(wire: Wire, user: str, text: str) -> None:
    """The node takes a note to self."""
    where = await wire.create_direct(user)
    await wire.ask(Send(0, where, text, text), SendAck)


def upgrade(pid: int) -> "subprocess.CompletedProcess[str]":
    """``tidegate upgrade``. Blocks."""
    command = [sys.executable, "-m", "gateway.cli.main", "upgrade", "--pid", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)


def upgraded_by_command(nodes: SharedPort, counts: Mapping[str, int]) -> None:
    """Upgrade all, and be told how many connections each took over. Blocks."""
    done = upgrade(nodes.pid)
    assert done.returncode == 0, done.stdout + done.stderr + nodes.stderr_tail()
    for name, count in counts.items():
        told = next(line for line in done.stdout.splitlines() if line.startswith(f"{name}: "))
        assert f"has taken over {count} connections" in told


def upgraded_by_signal(nodes: SharedPort, _counts: Mapping[str, int]) -> None:
    """Upgrade all, of which only the log tells. Blocks."""
    before = nodes.stderr_path.read_text().count('"failed": []')
    nodes.signal(signal.SIGUSR2)
    wait_until(
        lambda: nodes.stderr_path.read_text().count('"failed": []') > before,
        timeout_s=WITHIN_S,
        what="all are upgraded",
    )


async def test_all_go_on_in_new_processes_with_their_connections_under_the_same_supervisor(nodes: SharedPort) -> None:
    before = set(nodes.node_pids())
    with trio.fail_after(WITHIN_S):
        async with crowd(nodes) as connections:
            for user, (wire, _) in connections.items():
                await told_apart(wire, user, "before")
            counts = Counter(name for _, name in connections.values())
            for upgraded_all in (upgraded_by_command, upgraded_by_signal):  # what an upgrade has made can be upgraded
                await trio.to_thread.run_sync(upgraded_all, nodes, counts)
                after = set(nodes.node_pids())
                assert len(after) == COUNT
                assert not after & before
                before = after
                for user, (wire, _) in connections.items():
                    await told_apart(wire, user, "after")
            async with crowd(nodes):  # both listen
                pass
            nodes.signal(signal.SIGTERM)
            for wire, _ in connections.values():
                assert isinstance(await wire.receive(), GoAway)
                assert (await wire.closed()).code == CloseCode.SERVICE_RESTART
        assert await trio.to_thread.run_sync(nodes.wait) == 0
    assert "Traceback" not in nodes.stderr_path.read_text()


async def test_one_of_them_names_its_supervisor_when_it_is_asked_by_itself(nodes: SharedPort) -> None:
    one = nodes.node_pids()[0]
    done = await trio.to_thread.run_sync(upgrade, one)
    assert done.returncode == 1
    assert f"not upgraded, process {one} goes on as before" in done.stderr
    assert f"upgrade their supervisor, process {nodes.pid}" in done.stderr
    assert nodes.terminate() == 0
