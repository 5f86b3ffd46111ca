"""What a node tells its operators, and when it declines to drain."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gateway.answers import answer
from gateway.cluster.questions import Answer, AskDrain, AskStatus, Declined, Drains, NodeStatus, encode
from gateway.config import Settings

decode: Any = msgspec.msgpack.Decoder(Answer).decode


class FakeNode:
    """What answers look at, of a node."""

    def __init__(self) -> None:
        self.settings = Settings(drain_grace_s=42)
        self.own_address = "http://127.0.0.1:8480"
        self.table = SimpleNamespace(count=9)
        self.hub = SimpleNamespace(by_user={"a": 1, "b": 2})
        self.owner = SimpleNamespace(conversations_loaded=7, backlog=SimpleNamespace(waiting=1))
        self.heirs = True
        self.cluster = SimpleNamespace(
            ownership=SimpleNamespace(owned=512, named=True),
            lease=SimpleNamespace(remaining_s=7.25),
            transport=SimpleNamespace(away=False),
            router=SimpleNamespace(waiting=2),
            watch=SimpleNamespace(unrenewed_s=lambda: {"other:x": 3.14159}),
            has_heirs=lambda: self.heirs,
        )
        self.backend = SimpleNamespace(away_reason=lambda: "Connection refused")
        self.draining = False

    def drain(self) -> None:
        self.draining = True


@pytest.fixture
def node() -> Any:
    return FakeNode()


def ask(node: Any, question: object) -> Answer:
    found: Answer = decode(answer(node, encode(question)))
    return found


def test_status(node: Any) -> None:
    told = ask(node, AskStatus())
    assert told == NodeStatus("0.1.0", "http://127.0.0.1:8480", 9, 2, 7, 512, 7.2, False, "", 3, {"other:x": 3.1})
    node.cluster.transport.away = True
    told = ask(node, AskStatus())
    assert isinstance(told, NodeStatus)
    assert told.redis == "Connection refused"


def test_drain_once(node: Any) -> None:
    assert ask(node, AskDrain()) == Drains(42.0)
    assert node.draining
    told = ask(node, AskDrain())
    assert isinstance(told, Declined)
    assert "drains already: 512 slots and 9 connections are left" in told.reason


def test_the_only_owner_does_not_drain_and_one_without_slots_does(node: Any) -> None:
    node.heirs = False
    told = ask(node, AskDrain())
    assert isinstance(told, Declined)
    assert "the only node that can own slots" in told.reason
    assert not node.draining
    node.cluster.ownership.named = False
    assert ask(node, AskDrain()) == Drains(42.0)


def test_a_question_of_another_version(node: Any) -> None:
    told = decode(answer(node, b"\x91\x09"))
    assert "another version of tidegate" in told.reason
