"""A whole node that hands over to a program which does as the test says; and goes on when that one fails."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import trio

from gateway.auth import Verifier
from gateway.config import Settings
from gateway.edge.listener import listen
from gateway.node import Node
from gateway.process_link import HandOver, NodeEnd, SupervisorEnd, make_pair
from gateway.upgrade import PREDECESSOR_VARIABLE, control, predecessor, service, settling
from gateway.upgrade.candidates import Sibling
from gateway.upgrade.channel import Channel
from gateway.upgrade.control import UpgradeFailed
from gateway.upgrade.predecessor import Upgrades
from gateway.upgrade.service import Asker, heed_upgrades, obey
from tests.fakes.memory_store import MemoryStore
from tests.gateway.test_node import SECRET, connect

ROOT = Path(__file__).parents[3]
DEADLINE_S = 120
"""Seconds in which a process has started and is done: some hundred times what it takes."""

BEGINNING = f"""
import os, signal, socket, sys, time
sys.path.insert(0, {str(ROOT)!r})
from gateway.upgrade.channel import Channel
from gateway.upgrade.messages import *
channel = Channel(socket.socket(fileno=int(os.environ["TIDEGATE_PREDECESSOR"])))
soon = time.monotonic() + {DEADLINE_S}
offer, _ = channel.receive(Offer, until_s=soon)
def ready(): channel.send(Ready(FORMAT, "9.9"), until_s=soon)
def take():
    begin, _ = channel.receive(Begin, until_s=soon)
    count = 0
    while count < begin.connections:
        count += len(channel.receive(Chunk, until_s=soon)[1])
        channel.send(Ack(), until_s=soon)
def taken(): channel.send(Taken(), until_s=soon)
"""


class FakeEstate:
    kind = "embedded"
    stand_still_max_s = 10.0
    busy = ""
    wrong = ""
    resumed = 0

    def same(self) -> dict[str, str]:
        return {}

    def offer(self) -> tuple[bytes, list[int]]:
        return b"", []

    def rest(self) -> None:
        pass

    def resume(self) -> None:
        self.resumed += 1

    def objection(self) -> str:
        return self.wrong

    def descriptors(self) -> list[int]:
        return []

    def state(self) -> bytes:
        return b""


class Left(Exception):
    """Instead of the end of the process."""


def leave(outcome):
    raise Left(outcome)


@pytest.fixture
async def node(nursery):
    chosen = Settings(auth_secret=SECRET, port=0)
    sockets = listen("127.0.0.1", 0)
    made = Node(chosen, MemoryStore(), Verifier.from_settings(chosen), sockets)
    await nursery.start(made.run)
    return made


@pytest.fixture
async def dial():
    """As ``connect``; all streams are closed at the end."""
    opened = []

    async def dialled(node, user):
        opened.append(await connect(node, user))
        return opened[-1]

    yield dialled
    for stream in opened:
        await trio.aclose_forcefully(stream)


def upgrades_to(node: Node, program: str) -> Upgrades:
    return Upgrades(node, FakeEstate(), [sys.executable, "-c", BEGINNING + program])


async def serves(node: Node, user: str) -> None:
    """A new connection is accepted and answered."""
    stream = await connect(node, user)
    await stream.send_all(b"\x89\x80\x00\x00\x00\x00")  # a ping
    assert await stream.receive_some() == b"\x8a\x00"
    await stream.aclose()


# Where a process ends for good, it leaves its child alone; here its object is collected.
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
async def test_the_successor_gets_everything_and_is_told_apart(node, dial):
    streams = [await dial(node, f"u{number}") for number in range(3)]
    states: list[str] = []
    with pytest.raises(Left) as left, trio.fail_after(DEADLINE_S):
        await upgrades_to(node, "ready(); take(); taken()").upgrade(states.append, leave)
    (outcome,) = left.value.args
    await trio.to_thread.run_sync(os.waitpid, outcome.pid, 0)
    assert outcome.connections == len(streams)
    assert outcome.paused_ms >= outcome.stood_still_ms > 0
    assert states == ["starting", "settling", "quieting", "handing over"]
    del left, outcome
    gc.collect()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("sys.exit(5)", "starting: the new program ended with code 5 before it was ready"),
        ("channel.send(Failed('no licence'), until_s=soon)", "starting: no licence"),
        ("ready(); sys.exit(5)", "has ended"),
        ("ready(); take(); sys.exit(5)", "handing over: the other process has ended"),
        ("ready(); take(); channel.send(Failed('no store'), until_s=soon); time.sleep(600)", "handing over: no store"),
    ],
)
async def test_after_a_failure_everybody_is_served_as_before(node, dial, program, reason):
    stream = await dial(node, "alice")
    upgrades = upgrades_to(node, program)
    with pytest.raises(UpgradeFailed, match=reason), trio.fail_after(DEADLINE_S):
        await upgrades.upgrade(lambda _state: None, leave)
    assert upgrades.state == "idle"
    await stream.send_all(b"\x89\x80\x00\x00\x00\x00")
    assert await stream.receive_some() == b"\x8a\x00"
    await serves(node, "bob")


async def test_a_process_whose_successor_took_over_and_died_ends(node, dial, monkeypatch):
    """The message was sent, but the predecessor had given up before it came: it must not go on."""
    await dial(node, "alice")
    program = "ready(); channel.receive(Begin, until_s=soon); taken(); time.sleep(600)"
    monkeypatch.setattr(predecessor.Upgrades, "_hand_over", _give_up_late)
    with pytest.raises(SystemExit), trio.fail_after(DEADLINE_S):
        await upgrades_to(node, program).upgrade(lambda _state: None, leave)


def _give_up_late(upgrades, channel, estate):
    begin = predecessor.Begin(0, 0, 0.0, 0.0, {}, b"")
    channel.send(begin, until_s=time.monotonic() + DEADLINE_S)
    channel.sock.settimeout(DEADLINE_S)
    channel.sock.recv(1, socket.MSG_PEEK)  # it is there
    raise predecessor.HandOverFailed("too slow")


async def test_one_that_hangs_is_ended(node, dial, monkeypatch):
    monkeypatch.setattr(FakeEstate, "stand_still_max_s", 0.2)
    await dial(node, "alice")
    with pytest.raises(UpgradeFailed, match="silent"), trio.fail_after(DEADLINE_S):
        await upgrades_to(node, "ready(); time.sleep(600)").upgrade(lambda _state: None, leave)
    await serves(node, "bob")


async def test_one_that_never_gets_ready_is_ended(node, monkeypatch):
    monkeypatch.setattr(predecessor, "START_TIMEOUT_S", 0.2)
    with pytest.raises(UpgradeFailed, match="not ready within"), trio.fail_after(DEADLINE_S):
        await upgrades_to(node, "time.sleep(600)").upgrade(lambda _state: None, leave)
    await serves(node, "bob")


async def test_a_store_that_stands_still_is_waited_for_and_then_left_alone(node, monkeypatch):
    monkeypatch.setattr(settling, "QUIET_TIMEOUT_S", 0.1)
    node.owner.backlog.waiting = 1  # an append that the disk does not answer
    with (
        pytest.raises(UpgradeFailed, match="commands that wait for the store took longer"),
        trio.fail_after(DEADLINE_S),
    ):
        await upgrades_to(node, "ready(); take()").upgrade(lambda _state: None, leave)
    node.owner.backlog.waiting = 0
    await serves(node, "bob")


async def test_a_fault_of_our_own_does_not_end_the_node(node, monkeypatch):
    monkeypatch.setattr(predecessor, "movable_connections", lambda _node: 1 / 0)
    with pytest.raises(UpgradeFailed, match="a fault of the node"), trio.fail_after(DEADLINE_S):
        await upgrades_to(node, "ready(); take()").upgrade(lambda _state: None, leave)
    await serves(node, "bob")


async def test_what_cannot_be_upgraded_says_why(node, monkeypatch, tmp_path):
    async def reason(upgrades: Upgrades) -> str:
        with pytest.raises(UpgradeFailed) as failed:
            await upgrades.upgrade(lambda _state: None, leave)
        return str(failed.value)

    assert "upgrade their supervisor" in await reason(Upgrades(node, FakeEstate(), supervised=True))
    estate = FakeEstate()
    estate.wrong = "the disk is full"
    assert await reason(Upgrades(node, estate)) == "the disk is full"
    assert "cannot be started" in await reason(Upgrades(node, FakeEstate(), ["/no/such/program"]))
    with monkeypatch.context() as first:
        first.setattr(predecessor.os, "getpid", lambda: 1)
        assert "the container of this node ends with this process" in await reason(Upgrades(node, FakeEstate()))
    with monkeypatch.context() as child_of_the_first:
        child_of_the_first.setattr(predecessor.os, "getppid", lambda: 1)
        child_of_the_first.setattr(predecessor, "FIRST_NAME", tmp_path / "comm")
        (tmp_path / "comm").write_text("docker-init\n")
        assert "the container of this node ends with this process" in await reason(Upgrades(node, FakeEstate()))
        (tmp_path / "comm").write_text("systemd\n")
        assert "cannot be started" in await reason(Upgrades(node, FakeEstate(), ["/no/such/program"]))
    node.drain()
    assert await reason(Upgrades(node, FakeEstate())) == "the node drains"


async def test_a_second_request_meanwhile_is_refused_by_the_control_socket(node, nursery):
    upgrades = upgrades_to(node, "time.sleep(600)")
    await nursery.start(heed_upgrades, lambda asker: upgrades.upgrade(asker.reached, asker.leave))
    reached = trio.Event()

    async def first() -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            await upgrades.upgrade(lambda _state: reached.set(), leave)

    scopes: list[trio.CancelScope] = []
    nursery.start_soon(first)
    await reached.wait()
    with pytest.raises(control.UpgradeRefused, match=r"under way already \(starting\)"), trio.fail_after(DEADLINE_S):
        await trio.to_thread.run_sync(control.ask, os.getpid(), lambda _state: None, DEADLINE_S)
    scopes[0].cancel()
    with pytest.raises(OSError):  # noqa: PT011 - whichever the kernel chooses
        control.ask(2**22 + 5, lambda _state: None, 1.0)


async def started_by_a_supervisor(program: str) -> tuple[trio.Process, Sibling]:
    """A process that another one than the node has started, and what the node knows of it."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", BEGINNING + program],
            pass_fds=[theirs.fileno()],
            env={**os.environ, PREDECESSOR_VARIABLE: str(theirs.fileno())},
        )
    return process, Sibling(process.pid, os.pidfd_open(process.pid), Channel(ours))


async def test_a_supervised_node_hands_over_to_the_process_that_it_is_given(node, dial):
    await dial(node, "alice")
    process, sibling = await started_by_a_supervisor("ready(); take(); taken()")
    with pytest.raises(Left) as left, trio.fail_after(DEADLINE_S):
        await Upgrades(node, FakeEstate(), supervised=True).upgrade(lambda _state: None, leave, sibling)
    assert left.value.args[0].pid == process.pid
    assert left.value.args[0].connections == 1
    with trio.fail_after(DEADLINE_S):
        assert await process.wait() == 0


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("sys.exit(5)", "starting: the new program ended before it was ready"),
        ("ready(); take(); channel.send(Failed('no store'), until_s=soon); time.sleep(600)", "handing over: no store"),
    ],
)
async def test_a_supervised_node_goes_on_when_that_process_fails_and_ends_it(node, dial, program, reason):
    await dial(node, "alice")
    process, sibling = await started_by_a_supervisor(program)
    with pytest.raises(UpgradeFailed, match=reason), trio.fail_after(DEADLINE_S):
        await Upgrades(node, FakeEstate(), supervised=True).upgrade(lambda _state: None, leave, sibling)
    with trio.fail_after(DEADLINE_S):
        await process.wait()
    await serves(node, "bob")


def test_who_has_given_everything_away_ends_even_if_that_cannot_be_logged(monkeypatch):
    """Nothing of the end of a node may run: it would close what the successor serves."""

    def full(*_words: object, **_fields: object) -> None:
        raise OSError(28, "No space left on device")

    def end(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(service.log, "info", full, raising=False)
    monkeypatch.setattr(service.os, "_exit", end)
    with pytest.raises(Left):
        Asker().leave(control.Succeeded(1, 2, 3.0, 4.0))


class Told:
    """A supervisor's end of the link to a node, and what it hears."""

    def __init__(self) -> None:
        self.heard: list[control.Line] = []
        self._ours, self._theirs = make_pair()
        self._end, self.link = SupervisorEnd(self._ours), NodeEnd(self._theirs)
        self._end.on_line = self.heard.append

    async def carry_out(self, node: Node, process: trio.Process, sibling: Sibling) -> None:
        """Have the node carry out the order to hand over to the process."""
        order = HandOver(process.pid, os.dup(sibling.channel.sock.fileno()), os.pidfd_open(process.pid))
        sibling.close()
        await obey(Upgrades(node, FakeEstate(), supervised=True), self.link, order)

    async def everything(self) -> list[control.Line]:
        """What it heard until the node ended."""
        self._theirs.close()
        with trio.fail_after(DEADLINE_S):
            await self._end.listen()
        self._ours.close()
        return self.heard


async def test_a_supervisor_hears_over_its_link_what_became_of_its_order(node):
    node.drain()
    told = Told()
    process, sibling = await started_by_a_supervisor("time.sleep(600)")
    with trio.fail_after(DEADLINE_S):
        await told.carry_out(node, process, sibling)
    assert await told.everything() == [control.Refused("the node drains", process.pid)]
    process.kill()
    await process.wait()


async def test_a_supervisor_hears_that_a_node_ended_before_anything_came_of_its_order(node):
    """Else it would take the other process, which the node has ended, for the node's next life that crashed."""
    told = Told()
    process, sibling = await started_by_a_supervisor("time.sleep(600)")
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as serving:
            serving.start_soon(told.carry_out, node, process, sibling)
            await trio.testing.wait_all_tasks_blocked(0.01)
            serving.cancel_scope.cancel()
        assert await process.wait() == -signal.SIGKILL
    assert await told.everything() == [control.Progress("starting"), control.Refused("the node ends", process.pid)]
