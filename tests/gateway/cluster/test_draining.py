"""Draining a node from outside, on a virtual clock that jumps when the loopback has nothing to say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from gateway.cluster.draining import NotDrained, drain_node
from gateway.cluster.peer_handshake import key_of
from gateway.cluster.peers import Peers, listen_for_peers
from gateway.cluster.questions import AskDrain, Declined, Drains, NodeStatus, decode_question, encode
from store.coordination import SLOTS, LeaseRecord, Slot, SlotTable
from tests.fakes.coordination import MemoryCoordination

KEY = key_of("a secret that all nodes of this cluster have")
A, B = "first:x", "second:y"


@pytest.fixture
def jumping_clock() -> MockClock:
    return MockClock(autojump_threshold=0.002)


class Draining:
    """A node that drains within ``takes_s``, and what is seen of it in the store."""

    def __init__(self, takes_s: float = 7.0) -> None:
        self.listening = listen_for_peers("127.0.0.1", 0)
        self.peers = Peers(A, KEY, self.listening, dict)
        self.peers.answer = self.answer
        self.takes_s = takes_s
        self.begun_s: float | None = None
        self.refusal = ""
        self.keeps = 0
        self.coordination = MemoryCoordination()
        address = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.coordination.rows = {
            A: LeaseRecord(A, "first", 5, True, address, True, False, 1),
            B: LeaseRecord(B, "second", 5, True, "second:1", True, False, 1),
            "third:z": LeaseRecord("third:z", "third", 5, False, "third:1", True, False, 1),
        }
        self.coordination.table = SlotTable(3, (Slot(A, 1),) * 512 + (Slot(B, 1),) * 512)
        self.scope = trio.CancelScope()
        self.told = trio.Event()

    def answer(self, encoded: bytes) -> bytes:
        if isinstance(decode_question(encoded), AskDrain):
            if self.refusal:
                return encode(Declined(self.refusal))
            self.begun_s = trio.current_time()
            self.told.set()
            return encode(Drains(60.0))
        assert self.begun_s is not None
        left = max(0.0, 1 - (trio.current_time() - self.begun_s) / self.takes_s)
        return encode(NodeStatus("0.1.0", "http://x:1", int(90 * left), 90, 7, int(512 * left), 7.5, True, "", 0))

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.peers.run)
                task_status.started()
                await self.told.wait()
                await trio.sleep(self.takes_s)
                slots = (Slot(A, 1),) * self.keeps + (Slot(B, 2),) * (SLOTS - self.keeps)
                self.coordination.table = SlotTable(9, slots)
                nursery.cancel_scope.cancel()
        await trio.sleep(1)
        self.coordination.rows[A] = replace(self.coordination.rows[A], alive=False)


@asynccontextmanager
async def running(node: Draining) -> AsyncIterator[MemoryCoordination]:
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield node.coordination
        nursery.cancel_scope.cancel()


async def test_it_tells_how_far_it_is_and_returns_when_the_node_has_left(jumping_clock: MockClock) -> None:
    said: list[str] = []
    async with running(Draining()) as coordination:
        began_s = trio.current_time()
        await drain_node(coordination, KEY, "first", "tidegate", said.append)
        assert 8 <= trio.current_time() - began_s < 10
    assert said[0].startswith("first drains: it hands its slots over")
    assert said[0].endswith("within 60 s")
    assert said[1] == "first: 512 slots and 90 connections are left"
    assert 4 <= len(said) <= 6, said
    assert said[-1] == "first has left; all slots are owned by second"


async def test_slots_that_it_could_not_hand_over_are_said(jumping_clock: MockClock) -> None:
    said: list[str] = []
    node = Draining()
    node.keeps = 3
    async with running(node) as coordination:
        await drain_node(coordination, KEY, A, "tidegate", said.append)
    assert said[-1].startswith("first has left; 3 slots that it could not hand over")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nobody", "there is no node nobody in the cluster in keyspace tidegate; alive: first, second"),
        ("third", "third is dead already"),
    ],
)
async def test_a_node_that_is_not_there(name: str, says: str, jumping_clock: MockClock) -> None:
    node = Draining()
    async with running(node) as coordination:
        with pytest.raises(NotDrained, match=says):
            await drain_node(coordination, KEY, name, "tidegate", print)
    assert node.begun_s is None


async def test_a_name_that_lives_twice_has_to_be_said_more_exactly(jumping_clock: MockClock) -> None:
    node = Draining()
    node.coordination.rows["first:w"] = replace(node.coordination.rows[A], incarnation="first:w")
    async with running(node) as coordination:
        with pytest.raises(NotDrained, match="first lives more than once: first:w, first:x"):
            await drain_node(coordination, KEY, "first", "tidegate", print)


async def test_why_it_declines_is_said(jumping_clock: MockClock) -> None:
    node = Draining()
    node.refusal = "it is the only node that can own slots"
    async with running(node) as coordination:
        with pytest.raises(NotDrained, match="first does not drain: it is the only node"):
            await drain_node(coordination, KEY, "first", "tidegate", print)


async def test_a_node_that_is_not_reached_or_has_another_secret(jumping_clock: MockClock) -> None:
    node = Draining()
    async with running(node) as coordination:
        with pytest.raises(NotDrained, match=r"cannot be asked.*cluster_secret; or send it SIGTERM"):
            await drain_node(coordination, key_of("x" * 32), "first", "tidegate", print)
    assert node.begun_s is None


async def test_a_node_that_does_not_end_is_not_waited_for_for_ever(jumping_clock: MockClock) -> None:
    async with running(Draining(takes_s=1_000)) as coordination:
        began_s = trio.current_time()
        with pytest.raises(NotDrained, match="first has not ended 15 s after its grace period of 60 s"):
            await drain_node(coordination, KEY, "first", "tidegate", lambda _line: None)
        assert trio.current_time() - began_s == pytest.approx(75, abs=2)
