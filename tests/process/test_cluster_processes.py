"""Several processes behind one port as nodes of a cluster, and nodes of different roles, on real servers."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio

from bench.load.connect import wait_until
from protocol.frames import GoAway, Send, SendAck, Welcome
from tests.process.cluster_nodes import DEADLINE_S, ClusterNode, ClusterNodes
from tests.process.wire import Closed, Wire, connected, upgraded

pytestmark = pytest.mark.process

COUNT = 2
CONNECTIONS_MAX = 64
"""Connections among which there are some to each node: the kernel spreads them evenly, by chance."""
WITHIN_S = 240.0


@asynccontextmanager
async def welcomed_by(several: ClusterNode, name: str, user: str) -> AsyncIterator[Wire]:
    """A connection of a user to the node of that name."""
    headers = {"Authorization": f"Bearer {several.token(user)}"}
    for _ in range(CONNECTIONS_MAX):
        async with upgraded(several, headers=headers, target="/v1/connect?device=phone") as wire:
            welcome = await wire.receive()
            assert isinstance(welcome, Welcome)
            if welcome.node == name:
                yield wire
                return
    raise AssertionError(f"{name} was not met\n{several.stderr_tail()}")


async def sent_away(*wires: Wire) -> None:
    """The nodes say goodbye to all of them as they should."""
    for wire in wires:
        while not isinstance(await wire.receive(), GoAway):
            pass
        assert (await wire.closed()).code == 1012


def pids(several: ClusterNode) -> list[int]:
    """The node processes that run now."""
    return [child.pid for child in psutil.Process(several.pid).children()]


async def test_processes_behind_one_port_are_a_cluster_that_survives_one_of_them(nodes: ClusterNodes) -> None:
    several = nodes.start("n", "--processes", str(COUNT))
    with trio.fail_after(DEADLINE_S):
        async with welcomed_by(several, "n-1", "alice") as alice, welcomed_by(several, "n-2", "bob") as bob:
            where = await alice.create_direct("bob")
            await alice.ask(Send(0, where, "one", "across processes"), SendAck)
            await bob.pushed(b"across processes")
            killed = next(pid for pid in pids(several) if "n-1" in psutil.Process(pid).cmdline())
            os.kill(killed, signal.SIGKILL)
            with pytest.raises(Closed):
                await alice.push()
            wait_until(
                lambda: several.stderr_path.read_text().count("node process ready") > COUNT,
                timeout_s=WITHIN_S, what="it is back",
            )  # fmt: skip
            async with welcomed_by(several, "n-1", "alice") as again:
                await bob.ask(Send(0, where, "two", "is she back"), SendAck)
                await again.pushed(b"is she back")
                several.signal(signal.SIGTERM)
                await sent_away(again, bob)
        assert await trio.to_thread.run_sync(several.wait) == 0
    log = several.stderr_path.read_text()
    assert "Traceback" not in log
    assert log.count('"event": "drained"') == COUNT


async def test_nodes_that_hold_connections_and_nodes_that_order_conversations(nodes: ClusterNodes) -> None:
    owner = nodes.start("owner", "--roles", "owner")
    edge = nodes.start("edge", "--roles", "edge")
    with trio.fail_after(DEADLINE_S):
        async with connected(edge, "alice", device="a") as alice, connected(edge, "bob", device="b") as bob:
            where = await alice.create_direct("bob")
            for number in range(10):
                await alice.ask(Send(0, where, f"{number}", f"message {number}"), SendAck)
                await bob.pushed(f"message {number}".encode())
            # Owners' code can be replaced without a connection being dropped.
            other = nodes.start("other", "--roles", "owner")
            assert await trio.to_thread.run_sync(owner.terminate) == 0
            await alice.ask(Send(0, where, "last", "by another owner"), SendAck)
            await bob.pushed(b"by another owner")
            assert other.running
    assert "slots handed over" in owner.stderr_path.read_text()
    assert "slots handed over" not in edge.stderr_path.read_text()


async def test_processes_behind_one_port_are_upgraded_together_and_those_that_cannot_be_go_on(
    nodes: ClusterNodes, tmp_path: Path
) -> None:
    config = tmp_path / "n.toml"
    config.write_text("lease_s = 60\n")
    several = nodes.start("n", "--processes", str(COUNT), "--config", str(config))

    async def upgraded_with(text: str) -> tuple[int, str]:
        config.write_text(text)
        done = await trio.to_thread.run_sync(nodes.tidegate, "upgrade", "--pid", str(several.pid))
        return done.returncode, done.stdout + done.stderr

    with trio.fail_after(DEADLINE_S):
        async with welcomed_by(several, "n-1", "alice") as alice, welcomed_by(several, "n-2", "bob") as bob:
            where = await alice.create_direct("bob")
            before = set(pids(several))
            code, said = await upgraded_with("process_port = 9100\n")  # the supervisor itself cannot go on with that
            assert code == 1
            assert "process_port is 0 there and 9100 here" in said
            code, said = await upgraded_with("lease_s = 61\n")  # its nodes cannot
            assert code == 1
            assert said.count("lease_s is 60 there and 61 here") == COUNT, said
            assert set(pids(several)) == before
            await alice.ask(Send(0, where, "one", "as before"), SendAck)
            await bob.pushed(b"as before")
            code, said = await upgraded_with("lease_s = 60\n")
            assert code == 0, said + several.stderr_tail()
            assert said.count("has taken over 1 connections") == COUNT, said
            assert not set(pids(several)) & before
            await alice.ask(Send(0, where, "two", "in new processes"), SendAck)
            await bob.pushed(b"in new processes")
            several.signal(signal.SIGTERM)
            await sent_away(alice, bob)
        assert await trio.to_thread.run_sync(several.wait) == 0
    log = several.stderr_path.read_text()
    assert "Traceback" not in log
    assert "node marked dead" not in log
