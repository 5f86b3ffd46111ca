"""Live upgrades of real nodes: under load, in a row, and with new programs that fail at every stage."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from bench.processes import NodeProcess
from gateway.check.recorder import Recorder
from gateway.upgrade import PREDECESSOR_VARIABLE
from gateway.upgrade.channel import Channel
from gateway.upgrade.messages import FORMAT, Offer, Ready
from protocol import codec
from protocol.errors import CloseCode
from protocol.frames import (
    Ping,
    Pong,
    PresenceReply,
    Send,
    SendAck,
    WatchPresence,
)
from protocol.websocket import encode_masked_frame
from store.embedded_directory import holder_pid
from tests.process.test_crash import Rounds, checked
from tests.process.wire import ask, connect_tcp, connected, read_http

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
DEADLINE_S = 240
HEALTH = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def upgrade(data_dir: Path) -> "subprocess.CompletedProcess[bytes]":
    """``tidegate upgrade``, whatever becomes of it."""
    command = [sys.executable, "-m", "gateway.cli.main", "upgrade", "--data-dir", str(data_dir)]
    return await trio.run_process(command, cwd=ROOT, check=False, capture_stdout=True, capture_stderr=True)


async def upgraded(data_dir: Path) -> int:
    """Upgrade, which has to succeed; the new process's id."""
    before = holder_pid(data_dir)
    done = await upgrade(data_dir)
    assert done.returncode == 0, done.stderr.decode()
    after = holder_pid(data_dir)
    assert after is not None
    assert after != before
    assert f"process {after} has taken over".encode() in done.stdout
    return after


async def test_three_upgrades_under_load_lose_nothing_and_nobody(tmp_path: Path) -> None:
    seed = int(os.environ.get("UPGRADE_SEED", random.randrange(2**32)))
    print(f"UPGRADE_SEED={seed}")
    history = tmp_path / "history.jsonl"
    node = NodeProcess(tmp_path / "data", "--commands-per-s-max", "0")
    with node, Recorder(history) as recorder, trio.fail_after(DEADLINE_S):
        rounds = Rounds(node, recorder, random.Random(seed), cuts=False)
        await rounds.create_conversations()
        rounds.up.set()
        async with trio.open_nursery() as nursery:
            for device in rounds.devices:
                nursery.start_soon(device.run, lambda: rounds.up, lambda: rounds.sending)
            await rounds.load(50)
            for _ in range(3):
                await upgraded(node.data_dir)
                await rounds.load(100)
            await rounds.settle()
            nursery.cancel_scope.cancel()
        for device in rounds.devices:
            await device.read_everything()
    connects = [line for line in history.read_text().splitlines() if '"op":"connect"' in line.replace(" ", "")]
    assert len(connects) == len(rounds.devices), "somebody had to connect again"
    report = checked(history, ("concurrent-sends",))
    judged = {invariant["breach"]: invariant["judged"] for invariant in report["invariants"]}
    for breach in ("lost-write", "duplicate", "nonmonotonic-send", "poll-skip", "late-arrival"):
        assert judged[breach] > 0


async def test_what_a_connection_has_goes_with_it(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "data") as node, trio.fail_after(DEADLINE_S):
        async with (
            connected(node, "alice", device="a") as alice,
            connected(node, "bob", device="b") as bob,
            connected(node, "carol", device="c", json=True) as carol,
        ):
            where = await alice.create_direct("bob")
            await alice.create_direct("carol")
            assert (await alice.ask(WatchPresence(0, ["bob"]), PresenceReply)).users[0].online
            half = encode_masked_frame(2, codec.encode_msgpack(Send(77, where, "split", "in two")), b"abcd")
            await alice.send_bytes(half[:20])
            await carol.ask(Ping(), Pong)
            await upgraded(node.data_dir)
            await alice.send_bytes(half[20:])
            assert isinstance(await alice.reply(77, SendAck), SendAck)
            await bob.pushed(b"in two")
            await carol.ask(Ping(), Pong)
            # Whose device connects again takes the place of the connection that was handed over.
            async with connected(node, "bob", device="b") as again:
                assert (await bob.closed()).code == CloseCode.REPLACED
                await again.ask(Ping(), Pong)
        assert (await ask(node, HEALTH)).status == 200


async def test_who_asks_over_http_meanwhile_is_answered(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "data") as node, trio.fail_after(DEADLINE_S):
        async with await connect_tcp(node) as idle:  # a kept connection ends, as any may at any time
            await idle.send_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await read_http(idle)).status == 200
            statuses: list[int] = []

            async def ask_on() -> None:
                while True:
                    statuses.append((await ask(node, HEALTH)).status)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_on)
                await upgraded(node.data_dir)
                nursery.cancel_scope.cancel()
        statuses.append((await ask(node, HEALTH)).status)
        assert set(statuses) == {200}


async def test_the_successor_drains_as_any_node_and_says_nothing_bad(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "data", "--log-format", "json") as node, trio.fail_after(DEADLINE_S):
        async with connected(node, "alice", device="a") as alice:
            new = await upgraded(node.data_dir)
            assert await trio.to_thread.run_sync(node.wait_for_exit) == 0, "the predecessor ends well"
            os.kill(new, signal.SIGTERM)
            assert (await alice.closed()).code == 1012
        log = node.stderr_path.read_text()
        assert "Traceback" not in log
        assert '"level": "error"' not in log
        assert '"level": "warning"' not in log


FAILURES = {
    "import os; os._exit(3)": "ended with code 3 before it was ready",
    "import os, gateway.upgrade.restore as r; r.Restorer.take = lambda *_: os._exit(9)": "has ended",
    "import gateway.upgrade.restore as r\ndef f(*_): raise OSError(7, 'planted')\nr.Restorer.take = f": "planted",
    "import gateway.node as n\nasync def run(self, **_): raise RuntimeError('planted')\nn.Node.run = run": "planted",
}
"""What the new program does differently, and what its predecessor says of that. ``sitecustomize`` runs first of all."""


@pytest.mark.parametrize("program", FAILURES)
async def test_a_new_program_that_fails_changes_nothing(tmp_path: Path, program: str) -> None:
    site = tmp_path / "site"
    site.mkdir()
    with NodeProcess(tmp_path / "data", environment={"PYTHONPATH": str(site)}) as node, trio.fail_after(DEADLINE_S):
        async with connected(node, "alice", device="a") as alice, connected(node, "bob", device="b") as bob:
            where = await alice.create_direct("bob")
            (site / "sitecustomize.py").write_text(program)
            done = await upgrade(node.data_dir)
            assert done.returncode == 1
            assert f"process {node.pid} goes on as before" in done.stderr.decode()
            assert FAILURES[program] in done.stderr.decode()
            assert holder_pid(node.data_dir) == node.pid
            await alice.ask(Send(0, where, "one", "still here"), SendAck)
            await bob.pushed(b"still here")
            assert (await ask(node, HEALTH)).status == 200
            # And when it is put right, it can be upgraded after all.
            (site / "sitecustomize.py").unlink()
            await upgraded(node.data_dir)
            await alice.ask(Send(0, where, "two", "and there"), SendAck)
            await bob.pushed(b"and there")


SIGNALLED = {
    "before": "import gateway.upgrade.restore as r\n"
    "finish = r.Restorer.finish\n"
    "def f(self): os.kill(os.getppid(), signal.SIGTERM); finish(self)\n"
    "r.Restorer.finish = f",
    "behind": "import gateway.upgrade.heirs as h\n"
    "h.EmbeddedHeir.taken = lambda _: os.kill(os.getpid(), signal.SIGTERM)",
}
"""What the new program does: has its predecessor, which stands still, told to drain, or itself behind taking over."""


@pytest.mark.parametrize("moment", SIGNALLED)
async def test_an_order_to_drain_that_comes_in_the_middle_is_obeyed(tmp_path: Path, moment: str) -> None:
    site = tmp_path / "site"
    site.mkdir()
    with NodeProcess(tmp_path / "data", environment={"PYTHONPATH": str(site)}) as node, trio.fail_after(DEADLINE_S):
        async with connected(node, "alice", device="a") as alice:
            (site / "sitecustomize.py").write_text(f"import os, signal\n{SIGNALLED[moment]}")
            done = await upgrade(node.data_dir)
            assert done.returncode == 0, done.stderr.decode()
            assert (await alice.closed()).code == CloseCode.SERVICE_RESTART
        assert "Traceback" not in node.stderr_path.read_text()


async def test_a_bad_configuration_is_named(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text("idle_timeout_s = 90\n")
    with NodeProcess(tmp_path / "data", "--config", str(config)) as node, trio.fail_after(DEADLINE_S):
        config.write_text("idle_timout_s = 90\n")
        done = await upgrade(node.data_dir)
        assert done.returncode == 1
        assert "did you mean idle_timeout_s" in done.stderr.decode()
        assert node.running


async def test_a_new_program_whose_node_ends_before_it_gave_anything_says_so_and_ends(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "data") as node:
        assert await trio.to_thread.run_sync(node.terminate) == 0
    ours, theirs = socket.socketpair()
    with ours, theirs, trio.fail_after(DEADLINE_S):
        command = [sys.executable, "-m", "gateway.cli.main", "serve", "--data-dir", str(tmp_path / "data")]
        environment = {**os.environ, PREDECESSOR_VARIABLE: str(theirs.fileno())}
        process = await trio.lowlevel.open_process(
            command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE
        )
        theirs.close()
        until_s = time.monotonic() + DEADLINE_S
        channel = Channel(ours)
        channel.send(
            Offer(FORMAT, "0.1.0", os.getpid(), "embedded", str((tmp_path / "data").absolute())), until_s=until_s
        )
        await trio.to_thread.run_sync(lambda: channel.receive(Ready, until_s=until_s))
        channel.close()
        assert process.stderr is not None
        said = b""
        async for chunk in process.stderr:
            said += chunk
        assert await process.wait() == 1
    assert b"tidegate: upgrade: the other process has ended" in said
    assert b"Traceback" not in said


async def test_without_a_node_the_command_says_what_to_give(tmp_path: Path) -> None:
    done = await upgrade(tmp_path)
    assert done.returncode == 69
    assert str(tmp_path) in done.stderr.decode()
    assert "--pid" in done.stderr.decode()


async def test_the_signal_upgrades_too(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "data") as node, trio.fail_after(DEADLINE_S):
        async with connected(node, "alice", device="a") as alice:
            node.signal(signal.SIGUSR2)
            assert await trio.to_thread.run_sync(node.wait_for_exit) == 0
            await alice.ask(Ping(), Pong)
            pid = holder_pid(node.data_dir)
            assert pid is not None
            os.kill(pid, signal.SIGTERM)
            assert (await alice.closed()).code == 1012
