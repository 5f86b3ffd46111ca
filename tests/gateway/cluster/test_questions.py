"""Operators ask nodes over real sockets of the loopback: with the secret they are answered, without it never."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from gateway.cluster import questions
from gateway.cluster.peer_handshake import key_of
from gateway.cluster.peers import Peers, listen_for_peers
from gateway.cluster.questions import AskDrain, Asking, AskStatus, Declined, Drains, NotAnswered, decode_question

KEY = key_of("a secret that all nodes of this cluster have")
OTHER_KEY = key_of("a secret that no node of this cluster has")


@pytest.fixture
def jumping_clock() -> MockClock:
    return MockClock(autojump_threshold=0.002)


class Node:
    """The direct connections of a node, and what it was asked."""

    def __init__(self) -> None:
        listening = listen_for_peers("127.0.0.1", 0)
        self.address = f"127.0.0.1:{listening.getsockname()[1]}"
        self.peers = Peers("n1:x", KEY, listening, dict)
        self.peers.answer = self.answer
        self.asked: list[object] = []
        self.answers: list[object] = []

    def answer(self, encoded: bytes) -> bytes:
        self.asked.append(decode_question(encoded))
        return questions.encode(self.answers.pop(0))


@asynccontextmanager
async def running() -> AsyncIterator[Node]:
    node = Node()
    async with trio.open_nursery() as nursery:
        await nursery.start(node.peers.run)
        yield node
        nursery.cancel_scope.cancel()


async def test_several_questions_on_one_connection() -> None:
    async with running() as node, Asking(node.address, KEY, "n1:x") as asking:
        node.answers += [Declined("not now"), Drains(60.0)]
        assert await asking.ask(AskStatus()) == Declined("not now")
        assert await asking.ask(AskDrain()) == Drains(60.0)
        assert node.asked == [AskStatus(), AskDrain()]
        assert node.peers.arrived == 0, "a question is no parcel"


@pytest.mark.parametrize(
    ("key", "incarnation", "reason"),
    [
        (OTHER_KEY, "n1:x", "its cluster_secret is not the same"),
        (KEY, "n1:earlier", "closed the connection"),
    ],
)
async def test_without_the_secret_or_for_another_life_nothing_is_asked(
    key: bytes, incarnation: str, reason: str
) -> None:
    async with running() as node:
        with pytest.raises(NotAnswered, match=reason) as refused:
            async with Asking(node.address, key, incarnation):
                raise AssertionError("connected")
        assert refused.value.refused
        assert node.asked == []


async def test_nobody_there() -> None:
    listening = listen_for_peers("127.0.0.1", 0)
    address = f"127.0.0.1:{listening.getsockname()[1]}"
    listening.close()
    with pytest.raises(NotAnswered, match=r"^Connection refused$") as nobody:
        async with Asking(address, KEY, "n1:x"):
            raise AssertionError("connected")
    assert not nobody.value.refused


async def test_a_node_that_is_stopped_is_not_waited_for(jumping_clock: MockClock) -> None:
    listening = listen_for_peers("127.0.0.1", 0)
    with listening, pytest.raises(NotAnswered, match="nothing answers"):
        async with Asking(f"127.0.0.1:{listening.getsockname()[1]}", KEY, "n1:x"):
            raise AssertionError("connected")


async def test_a_node_that_ends_before_it_answers() -> None:
    async with running() as node, Asking(node.address, KEY, "n1:x") as asking:
        node.answers.append(Drains(1.0))
        await asking.ask(AskDrain())
        node.peers.answer = lambda _question: b"\xff"
        with pytest.raises(NotAnswered, match="another version"):
            await asking.ask(AskStatus())
