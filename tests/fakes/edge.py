"""An edge that writes down what an owner asks of it, and origins to ask with."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from gateway.broker import Delivery, Origin
from protocol.codec import decode_entry
from protocol.frames import Command, Entry, ErrorReply, Push, Reply


class FakeOrigin:
    """A connection of a user, as an owner sees it."""

    def __init__(self, user: str) -> None:
        self.user = user

    def __repr__(self) -> str:
        return f"FakeOrigin({self.user!r})"


class Replied(NamedTuple):
    origin: Origin
    reply: Reply
    conversation_id: str


class GivenBack(NamedTuple):
    origin: Origin
    command: Command


class Signalled(NamedTuple):
    recipients: Collection[str]
    push: Push
    conversation_id: str
    skip: Origin | None


class RecordingEdge:
    """Implements EdgePort.

    Attributes:
        log: everything, in the order in which it was asked: Replied, Delivery or Signalled.
        turns: what of it was asked for together, in order.
        gone: origins that nobody listens at any more.
        full: while true, nobody takes anything: what waits for room is in ``waiting``.
    """

    def __init__(self) -> None:
        self.log: list[Replied | Delivery | Signalled | GivenBack] = []
        self.turns: list[list[Replied | Delivery | Signalled | GivenBack]] = []
        self.gone: set[Origin] = set()
        self.full = False
        self.waiting: list[Callable[[], None]] = []

    def reply(self, origin: Origin, reply: Reply, conversation_id: str = "") -> None:
        self.log.append(Replied(origin, reply, conversation_id))

    def not_owner(self, origin: Origin, command: Command) -> None:
        self.log.append(GivenBack(origin, command))

    def is_gone(self, origin: Origin) -> bool:
        return origin in self.gone

    def when_room(self, origin: Origin, then: Callable[[], None]) -> None:
        if self.full:
            self.waiting.append(then)
        else:
            then()

    @contextmanager
    def together(self) -> Iterator[None]:
        start = len(self.log)
        yield
        self.turns.append(self.log[start:])

    def deliver(self, delivery: Delivery) -> None:
        assert len(delivery.entries) == len(delivery.origins)
        self.log.append(delivery)

    def signal(self, recipients: Collection[str], push: Push, conversation_id: str, skip: Origin | None = None) -> None:
        self.log.append(Signalled(recipients, push, conversation_id, skip))

    @property
    def replies(self) -> list[Reply]:
        return [each.reply for each in self.log if isinstance(each, Replied)]

    @property
    def errors(self) -> list[ErrorReply]:
        return [reply for reply in self.replies if isinstance(reply, ErrorReply)]

    @property
    def deliveries(self) -> list[Delivery]:
        return [each for each in self.log if isinstance(each, Delivery)]

    @property
    def signals(self) -> list[Signalled]:
        return [each for each in self.log if isinstance(each, Signalled)]

    @property
    def entries(self) -> list[Entry]:
        """Every delivered entry, once for each delivery."""
        return [decode_entry(encoded) for delivery in self.deliveries for encoded in delivery.entries]

    def replies_to(self, origin: Origin) -> list[Reply]:
        return [each.reply for each in self.log if isinstance(each, Replied) and each.origin is origin]

    def received(self, user: str) -> list[Entry]:
        """What a second device of the user gets."""
        return [
            decode_entry(encoded)
            for delivery in self.deliveries
            if user in delivery.recipients
            for encoded in delivery.entries
        ]

    def forget(self) -> None:
        self.log.clear()
