"""What a router says of a command that it could not send at once, on a virtual clock."""

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from gateway.broker import Origin
from gateway.cluster.parcels import Answered, Forwarded, Item
from gateway.cluster.routing import FRESH_S, Router
from protocol.codec import decode_command, encode_msgpack
from protocol.frames import Command, Ok, Send, Typing
from tests.fakes.edge import FakeOrigin, RecordingEdge


class Place:
    """A router among owners, links and a local owner that only take notes."""

    def __init__(self) -> None:
        self.owner = ""
        self.on_change: list[Callable[[], None]] = []
        self.on_gap: list[Callable[[str], None]] = []
        self.attempts: list[int] = []
        self.forwarded: list[Command] = []
        self.edge = RecordingEdge()
        self.router = Router("a:1", self, self, self, self.edge, 100)  # type: ignore[arg-type]

    def owner_of(self, slot: int) -> str:
        return self.owner

    def wake(self) -> None:
        pass

    def send(self, incarnation: str, item: Item) -> None:
        assert isinstance(item, Forwarded)
        command = decode_command(item.command)
        self.forwarded.append(command)
        if isinstance(command, Send):
            self.attempts.append(command.attempt)

    def submit(self, origin: Origin, command: Command) -> None:
        assert isinstance(command, Send)
        self.attempts.append(command.attempt)

    def found(self, owner: str) -> None:
        """Somebody owns the conversation now."""
        self.owner = owner
        self.router.reroute()


ALICE = FakeOrigin("alice")
SEND = Send(5, "g-conversation", "m1", "hello")


@pytest.mark.parametrize("owner", ["a:1", "b:1"])
@pytest.mark.parametrize(("waited_s", "attempt"), [(0.0, 1), (FRESH_S / 2, 1), (FRESH_S * 2, 2)])
async def test_what_waited_long_for_an_owner_may_have_been_overtaken_by_its_repeat(
    autojump_clock: MockClock, owner: str, waited_s: float, attempt: int
) -> None:
    place = Place()
    place.router.submit(ALICE, SEND)
    await trio.sleep(waited_s)
    place.found(owner)
    assert place.attempts == [attempt]


async def test_so_may_what_comes_from_a_connection_that_is_gone(autojump_clock: MockClock) -> None:
    place = Place()
    place.router.submit(ALICE, SEND)
    place.edge.gone.add(ALICE)
    place.found("b:1")
    assert place.attempts == [2]


async def test_so_may_what_an_owner_gave_back(autojump_clock: MockClock) -> None:
    place = Place()
    place.router.take_back(ALICE, SEND)
    place.found("b:1")
    assert place.attempts == [2]


async def test_the_answer_to_who_types_is_nobody_elses(autojump_clock: MockClock) -> None:
    place, bob = Place(), FakeOrigin("bob")
    place.owner = "b:1"
    place.router.submit(ALICE, SEND)
    place.router.submit(bob, Typing(place.forwarded[0].id, "g-conversation"))
    place.router.submit(bob, Typing(0, "g-conversation"))
    sent, typed, unasked = place.forwarded
    assert unasked.id == 0
    place.router.answered(Answered(encode_msgpack(Ok(typed.id)), "g-conversation"))
    assert place.edge.replies_to(ALICE) == []
    assert place.edge.replies_to(bob) == [Ok(sent.id)]
