"""What a router says of a command that it could not send at once, on a virtual clock."""

from collections.abc import Callable

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from gateway.broker import Origin
from gateway.cluster.parcels import Answered, Forwarded, GivenBack, Item
from gateway.cluster.routing import ANSWER_MAX_S, DOUBT_S, FRESH_S, Router
from protocol.codec import decode_command, encode_msgpack
from protocol.errors import ErrorCode
from protocol.frames import Command, ErrorReply, History, Ok, Send, Typing
from tests.fakes.edge import FakeOrigin, RecordingEdge


class Place:
    """A router among owners, links and a local owner that only take notes."""

    def __init__(self) -> None:
        self.owner = ""
        self.on_change: list[Callable[[], None]] = []
        self.on_gap: list[Callable[[str], None]] = []
        self.attempts: list[int] = []
        self.forwarded: list[Command] = []
        self.local: list[Command] = []
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
        assert isinstance(command, Send | History)
        self.local.append(command)
        if isinstance(command, Send):
            self.attempts.append(command.attempt)

    def answer(self, copy: int, code: ErrorCode) -> None:
        """Another node refuses what was forwarded to it."""
        self.router.answered(Answered(encode_msgpack(ErrorReply(self.forwarded[copy].id, code, "")), "g-conversation"))

    @property
    def codes(self) -> list[int]:
        """What Alice was refused with."""
        return [reply.code for reply in self.edge.replies_to(ALICE) if isinstance(reply, ErrorReply)]

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


async def test_the_last_attempt_there_can_be_goes_on_as_it_is(autojump_clock: MockClock) -> None:
    place = Place()
    place.router.take_back(ALICE, replace(SEND, attempt=2**53 - 1))
    place.edge.gone.add(ALICE)
    place.found("b:1")
    assert place.attempts == [2**53 - 1], "its owner would understand no greater one"


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


REFUSALS = [ErrorCode.UNAVAILABLE, ErrorCode.RATE_LIMITED, ErrorCode.NOT_FOUND]


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_refusal_is_told_as_it_is_where_no_other_copy_may_have_been_stored(
    autojump_clock: MockClock, code: ErrorCode
) -> None:
    place = Place()
    place.owner = "b:1"
    place.router.submit(ALICE, SEND)
    place.answer(0, code)
    place.router.submit(ALICE, SEND)
    place.router.gave_back(GivenBack(place.forwarded[1].id))
    place.router.reroute()
    place.answer(2, code)
    place.router.submit(ALICE, History(6, "g-conversation"))
    place.router.repeat("b:1")
    place.answer(4, code)
    assert place.codes == [code] * 3


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_refused_repeat_says_nothing_of_what_was_sent_before_it(
    autojump_clock: MockClock, code: ErrorCode
) -> None:
    place = Place()
    place.owner = "b:1"
    place.router.submit(ALICE, SEND)
    place.router.repeat("b:1")
    place.answer(1, code)
    place.router.submit(ALICE, SEND)
    place.found("c:1")
    place.answer(3, code)
    assert place.codes == [ErrorCode.OUTCOME_UNKNOWN] * 2


async def test_nor_does_one_that_the_own_owner_refuses(autojump_clock: MockClock) -> None:
    place = Place()
    place.owner = "b:1"
    place.router.submit(ALICE, SEND)
    place.router.submit(ALICE, History(6, "g-conversation"))
    place.found("a:1")
    assert [command.id for command in place.local] == [5, 6]
    refusals = [ErrorReply(number, ErrorCode.UNAVAILABLE, "") for number in (5, 6, 7)]
    told = [place.router.refusal(ALICE, refusal) for refusal in refusals]
    assert [refusal.code for refusal in told] == [
        ErrorCode.OUTCOME_UNKNOWN, ErrorCode.UNAVAILABLE, ErrorCode.UNAVAILABLE,
    ]  # fmt: skip
    assert [refusal.id for refusal in told] == [5, 6, 7]


async def test_nor_does_one_that_the_own_owner_gave_back(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    place = Place()
    nursery.start_soon(place.router.run)
    place.owner = "b:1"
    place.router.submit(ALICE, SEND)
    place.found("a:1")
    place.router.take_back(ALICE, place.local[0])
    place.found("c:1")
    await trio.sleep(1)
    place.answer(1, ErrorCode.UNAVAILABLE)
    assert place.codes == [ErrorCode.OUTCOME_UNKNOWN]
    await trio.sleep(DOUBT_S + 1)
    refusal = ErrorReply(5, ErrorCode.UNAVAILABLE, "")
    assert place.router.refusal(ALICE, refusal) is refusal, "of something else that has that number by now"


async def test_but_what_was_given_back_by_all_who_had_it_was_carried_out_by_nobody(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    place = Place()
    nursery.start_soon(place.router.run)
    place.owner = "b:1"
    place.router.submit(ALICE, SEND)
    place.owner = ""
    place.router.gave_back(GivenBack(place.forwarded[0].id))
    place.found("c:1")
    assert place.attempts == [1, 1], "it is no repeat, and not looked up"
    place.owner = ""
    place.router.gave_back(GivenBack(place.forwarded[1].id))
    await trio.sleep(ANSWER_MAX_S + 2)
    assert place.codes == [ErrorCode.UNAVAILABLE]


async def test_nor_is_it_known_of_what_no_owner_takes_any_more(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    place = Place()
    nursery.start_soon(place.router.run)
    place.owner = "b:1"
    place.router.submit(ALICE, SEND)
    place.found("a:1")
    place.owner = ""
    place.router.take_back(ALICE, place.local[0])
    await trio.sleep(ANSWER_MAX_S + 2)
    assert place.codes == [ErrorCode.OUTCOME_UNKNOWN]


@pytest.mark.parametrize(("length", "taken"), [(5, 100), (1_024, 25)])
async def test_what_waits_is_bounded_in_number_and_in_bytes(autojump_clock: MockClock, length: int, taken: int) -> None:
    place = Place()
    for n in range(110):
        place.router.submit(ALICE, replace(SEND, id=n + 1, body="x" * length))
    assert (place.router.waiting, place.codes) == (taken, [ErrorCode.OVERLOADED] * (110 - taken))
    place.found("b:1")
    for copy in range(taken):
        place.answer(copy, ErrorCode.FORBIDDEN)
    assert place.router.idle
    place.router.submit(ALICE, replace(SEND, id=200, body="x" * 25_000))
    assert place.router.waiting == 1
    place.router.submit(ALICE, replace(SEND, id=201, body="x" * 1_000))
    assert place.router.waiting == 2
    place.router.submit(ALICE, replace(SEND, id=202))
    assert (place.router.waiting, place.codes[-1]) == (2, ErrorCode.OVERLOADED)
