"""What a supervisor leaves to the program after it: tried out in real processes, but never executed here."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from gateway.config import Settings
from gateway.process_launch import HeldPort, InheritedProcess
from gateway.process_link import make_pair
from gateway.process_succession import FORMAT, HELD_BACK, Left, LeftNode, Renewal, same
from gateway.processes import settings_of_each
from gateway.upgrade import LEFT_VARIABLE
from gateway.upgrade.control import Progress, Refused, Several, Succeeded, UpgradeFailed, decode_line
from gateway.upgrade.service import Asker
from tests.fakes.node_processes import World

SETTINGS = Settings(store="cassandra", processes=2, node_name="n", port=8_480)
NODES = settings_of_each(SETTINGS, 8_480)


def left_by(**changes: object) -> Left:
    fields = {
        "format": FORMAT,
        "version": "0.1.0",
        "trial": True,
        "same": same(SETTINGS, NODES),
        "address": "127.0.0.1",
        "port": 8_480,
        "held": [],
        "nodes": [],
        "asker": -1,
    }
    return Left(**{**fields, **changes})


@pytest.fixture
def held() -> Iterator[HeldPort]:
    with socket.socket() as sock:
        yield HeldPort("127.0.0.1", 5, [sock])


class Renewing:
    """A supervisor of one started node that goes on in what ``program`` does.

    Attributes:
        said: what was told to who asked.
    """

    def __init__(self, held: HeldPort, program: str) -> None:
        self.world = World(1)
        command = [sys.executable, "-c", program]
        supervisor = self.world.supervisor
        self.renewal = Renewal(supervisor.keepers, lambda: supervisor.draining, same(SETTINGS, NODES), held, command)
        self.said: list[object] = []
        self.asker = Asker(send=lambda text: self.said.append(decode_line(text)))

    async def refused(self) -> str:
        """Why it does not go on."""
        with pytest.raises(UpgradeFailed) as failed, trio.fail_after(120):
            await self.renewal.go_on(self.asker)
        return str(failed.value)


def spawn(program: str) -> int:
    """A child of this process that nothing in it knows; its id."""
    return os.posix_spawn(sys.executable, [sys.executable, "-c", program], os.environ)


def test_what_is_left_is_found_once(monkeypatch):
    assert Left.found() is None
    left = left_by(nodes=[LeftNode("n-1", 5, 7, "http://a:1")])
    monkeypatch.setenv(LEFT_VARIABLE, msgspec.json.encode(left).decode())
    assert Left.found() == left
    assert LEFT_VARIABLE not in os.environ
    assert Left.found() is None


def test_descriptors_that_were_left_are_not_left_to_the_nodes(monkeypatch, held):
    (sock,) = held.sockets
    sock.set_inheritable(True)
    monkeypatch.setenv(LEFT_VARIABLE, msgspec.json.encode(left_by(trial=False, held=[sock.fileno()])).decode())
    Left.found()
    assert not sock.get_inheritable()


def test_what_another_version_or_nobody_left_is_refused(monkeypatch):
    for text, reason in (
        (msgspec.json.encode(left_by(format=FORMAT + 1, version="9.9")).decode(), "tidegate 9.9 leaves it in"),
        ("yes", "remove it"),
    ):
        monkeypatch.setenv(LEFT_VARIABLE, text)
        with pytest.raises(UpgradeFailed, match=reason):
            Left.found()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"processes": 3}, "the list of nodes is n-1 n-2 there and n-1 n-2 n-3 here: restart instead"),
        ({"node_name": "m"}, "the list of nodes is n-1 n-2 there and m-1 m-2 here"),
        ({"port": 8_481}, "port is 8480 there and 8481 here"),
        ({"host": "0.0.0.0"}, "host is 127.0.0.1 there and 0.0.0.0 here"),
        ({"process_port": 9_000}, "process_port is 0 there and 9000 here"),
    ],
)
def test_a_program_with_other_nodes_or_another_port_is_not_fit(changes, reason, capfd):
    settings = msgspec.structs.replace(SETTINGS, **changes)
    with pytest.raises(UpgradeFailed, match=reason):
        left_by().try_out(settings, settings_of_each(settings, 8_480))
    assert capfd.readouterr().out == ""


def test_a_program_with_other_settings_of_its_nodes_is_fit(capfd):
    left_by().try_out(msgspec.structs.replace(SETTINGS, idle_timeout_s=99), NODES)
    assert capfd.readouterr().out == "fit to go on\n"


async def test_nodes_are_adopted_unless_they_are_gone_or_not_wanted():
    pairs = [make_pair() for _ in range(3)]
    running = spawn("import time; time.sleep(600)")
    ended = await trio.run_process([sys.executable, "-c", "import os; print(os.getpid())"], capture_stdout=True)
    pids = [running, int(ended.stdout), running]
    nodes = [
        LeftNode(f"n-{number + 1}", pid, ours.detach(), "http://a:1" if number == 0 else "")
        for number, (pid, (ours, _)) in enumerate(zip(pids, pairs, strict=True))
    ]
    children = left_by(nodes=nodes).adopted(["n-1", "n-2"])
    assert list(children) == ["n-1"]
    child = children["n-1"]
    assert (child.pid, child.ready.is_set(), child.address) == (running, True, "http://a:1")
    for _, theirs in pairs[1:]:
        assert theirs.recv(1) == b""  # they notice that nobody wants them
        theirs.close()
    child.kill()
    pairs[0][1].close()
    with trio.fail_after(120):
        assert await child.run() == 128 + signal.SIGKILL


async def test_a_process_that_was_not_started_here_has_its_exit_code():
    pid = spawn("raise SystemExit(75)")
    with trio.fail_after(120):
        process = InheritedProcess(pid)
        assert await process.wait() == 75
        assert await process.wait() == 75
    process.kill()  # there is nobody any more


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit('tidegate: no such key')", "ended with code 1: no such key"),
        ("import sys; sys.exit(2)", "ended with code 2: it said nothing"),
        ("print('listening on http://127.0.0.1:1')", "is not fit, and ended with code 0"),
    ],
)
async def test_a_program_that_is_not_fit_changes_nothing(program, reason, nursery, held):
    renewing = Renewing(held, program)
    await renewing.world.start(nursery)
    assert reason in await renewing.refused()
    assert renewing.said == [Progress("supervisor: starting")]
    assert reason in await renewing.refused()  # it may be tried again
    renewing.world.supervisor.drain()


async def test_a_program_that_cannot_be_started_or_never_answers(nursery, held, monkeypatch):
    monkeypatch.setattr("gateway.process_succession.TRY_TIMEOUT_S", 0.2)
    renewing = Renewing(held, "import time; time.sleep(600)")
    await renewing.world.start(nursery)
    assert "did not say within 0.2 s that it is fit" in await renewing.refused()
    renewing.renewal._command = ["/no/such/program"]
    assert "/no/such/program cannot be started" in await renewing.refused()
    renewing.world.supervisor.drain()


async def test_a_program_that_is_gone_after_its_trial_leaves_all_as_it_was(nursery, held, monkeypatch):
    renewing = Renewing(held, "print('fit to go on')")
    await renewing.world.start(nursery)
    monkeypatch.setattr(os, "execve", gone)
    assert "cannot be executed: No such file" in await renewing.refused()
    assert not held.sockets[0].get_inheritable()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & HELD_BACK
    renewing.world.supervisor.drain()


async def test_a_signal_that_comes_at_the_last_moment_waits_whichever_thread_would_take_it(nursery, held, monkeypatch):
    """There is another one: that which started the trial waits for more to do."""
    renewing = Renewing(held, "print('fit to go on')")
    await renewing.world.start(nursery)
    waits: list[bool] = []

    def execve(*_arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        waits.append(any(signal.SIGTERM in pending_here() for _ in range(10_000)))
        gone()

    monkeypatch.setattr(os, "execve", execve)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        assert "cannot be executed" in await renewing.refused()
        with trio.fail_after(120):
            assert await anext(signals) == signal.SIGTERM, "heeded here, as it did not come to that"
        assert waits == [True]
    renewing.world.supervisor.drain()


def pending_here() -> set[int]:
    """The signals that wait for this thread, and for no other."""
    status = Path("/proc/thread-self/status").read_text()
    (mask,) = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigPnd:")]
    return {number for number in HELD_BACK if mask >> number - 1 & 1}


def gone(*_arguments: object) -> None:
    raise FileNotFoundError(2, "No such file")


async def test_what_is_no_moment_to_go_on(nursery, held):
    renewing = Renewing(held, "import time; time.sleep(600)")
    nursery.start_soon(renewing.world.run)
    await trio.testing.wait_all_tasks_blocked()
    assert await renewing.refused() == "n1 is being started: try again when it is ready"
    renewing.world.children[0].ready.set()
    await trio.testing.wait_all_tasks_blocked()
    async with trio.open_nursery() as first:
        first.start_soon(renewing.renewal.go_on, renewing.asker)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert "under way already" in await renewing.refused()
        first.cancel_scope.cancel()
    renewing.world.supervisor.drain()
    await trio.testing.wait_all_tasks_blocked()
    assert await renewing.refused() == "the processes drain"


async def test_nodes_are_upgraded_one_after_the_other_and_all_is_told(nursery, held):
    renewing = Renewing(held, "")
    world = renewing.world = World(2)
    await world.start(nursery)
    renewal = Renewal(world.supervisor.keepers, lambda: False, {}, held)
    nursery.start_soon(renewal.upgrade_nodes, renewing.asker)
    await trio.testing.wait_all_tasks_blocked()
    assert [child.name for child in world.children] == ["n1", "n2", "n1"]
    with pytest.raises(UpgradeFailed, match="under way already"):
        await renewal.go_on(Asker())
    done = Succeeded(102, 3, 5.0, 1.0)
    world.of("n1")[0].on_line(done)
    world.of("n1")[0].exit(0)
    await trio.testing.wait_all_tasks_blocked()
    world.of("n2")[0].on_line(Progress("starting"))
    world.of("n2")[0].on_line(Refused("lease_s is 10 there and 12 here"))
    await trio.testing.wait_all_tasks_blocked()
    refused = Refused("lease_s is 10 there and 12 here")
    assert renewing.said == [Progress("n2: starting"), Several({"n1": done, "n2": refused})]
    world.supervisor.drain()
