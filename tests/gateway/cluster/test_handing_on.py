"""What the owner hands on to other nodes, and when it says that it did, with a directory that answers when told to."""

from collections.abc import Callable, Collection, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.broker import Delivery, channel_id_of, followers_of
from gateway.cluster.handing_on import HandingOn
from gateway.cluster.parcels import Delivered, Signalled
from gateway.cluster.ports import Found, Taken
from protocol.codec import encode_msgpack
from protocol.frames import ReceiptPush, SendAck, TypingPush
from tests.fakes.edge import FakeOrigin, RecordingEdge

NEWS = channel_id_of("n" * 24)
FOLLOWERS = followers_of(NEWS)


class SlowDirectory:
    """Places of users, some of them cached; what is asked is answered by ``answer``, barriers by ``prove``."""

    def __init__(self) -> None:
        self.on_invalidated: Callable[[Collection[str] | None], None] = lambda _users: None
        self.places: dict[str, tuple[str, ...]] = {}
        self.cache: dict[str, tuple[str, ...]] = {}
        self.asked: list[Callable[[], None]] = []
        self.barriers: list[Taken] = []

    def lookup(self, users: Collection[str], then: Found) -> None:
        cached = {user: self.cache[user] for user in users if user in self.cache}
        missing = [user for user in users if user not in cached]

        def answer() -> None:
            self.cache.update({user: self.places.get(user, ()) for user in missing})
            then(cached | {user: self.cache[user] for user in missing})

        if missing:
            self.asked.append(answer)
        else:
            then(cached)

    def is_void(self, _incarnation: str) -> bool:
        return False

    def barrier(self, done: Taken) -> None:
        self.barriers.append(done)

    def answer(self) -> None:
        """Answer all that was asked."""
        asked, self.asked = self.asked, []
        for each in asked:
            each()

    def prove(self) -> None:
        """Answer the oldest barrier."""
        self.barriers.pop(0)(True)

    def move(self, user: str, *places: str) -> None:
        """A user is elsewhere now, and that is reported."""
        self.places[user] = places
        self.cache.pop(user, None)
        self.on_invalidated([user])


class RecordingLinks:
    """What was sent to whom; ``flush`` ends a pass of the loop."""

    alone = False

    def __init__(self) -> None:
        self.after_flush: Callable[[], None] = lambda: None
        self.sent: list[tuple[str, list[str], list[bytes]]] = []
        self.signals: list[tuple[str, Signalled]] = []

    def send(self, incarnation: str, item: Any) -> None:
        if isinstance(item, Signalled):
            self.signals.append((incarnation, item))
            return
        assert isinstance(item, Delivered)
        self.sent.append((incarnation, list(item.recipients), list(item.entries)))

    def flush_soon(self) -> None:
        """Tests flush when they want to."""

    def flush(self) -> None:
        self.after_flush()


@pytest.fixture
def parts() -> SimpleNamespace:
    directory, links, edge = SlowDirectory(), RecordingLinks(), RecordingEdge()
    watch = SimpleNamespace(live={"a": object(), "b": object(), "c": object()})
    handing_on = HandingOn("a", edge, links, directory, watch)  # type: ignore[arg-type]
    return SimpleNamespace(directory=directory, links=links, edge=edge, handing_on=handing_on)


def deliver(parts: SimpleNamespace, entry: bytes, *recipients: str, conversation_id: str = "g1") -> FakeOrigin:
    """An entry is durable: it is delivered, and its sender is answered behind it."""
    origin = FakeOrigin("ann")
    parts.handing_on.deliver(Delivery(conversation_id, recipients, [entry], [origin]))
    parts.handing_on.reply(origin, SendAck(1, 1, 1), conversation_id)
    return origin


def sent_to(parts: SimpleNamespace) -> Mapping[str, list[bytes]]:
    """The entries that each node got, in order."""
    found: dict[str, list[bytes]] = {}
    for incarnation, _recipients, entries in parts.links.sent:
        found.setdefault(incarnation, []).extend(entries)
    return found


def test_an_acknowledgement_waits_until_its_delivery_is_handed_on(parts: SimpleNamespace) -> None:
    parts.directory.places = {"ann": (), "bob": ("b",)}
    origin = deliver(parts, b"1", "ann", "bob")
    parts.directory.answer()
    parts.links.flush()
    assert parts.links.sent == [("b", ["bob"], [b"1"])]
    assert parts.edge.replies_to(origin) == []
    parts.directory.prove()
    assert parts.edge.replies_to(origin) == [SendAck(1, 1, 1)]
    assert parts.handing_on.held == 0


def test_all_that_one_barrier_lets_go_is_written_together(parts: SimpleNamespace) -> None:
    parts.directory.cache = {"ann": (), "bob": ("b",)}
    origins = [deliver(parts, b"1", "ann", "bob"), deliver(parts, b"2", "ann", "bob")]
    parts.links.flush()
    parts.directory.prove()
    (together,) = parts.edge.turns
    assert [each.origin for each in together] == origins


def test_who_moves_before_the_barrier_is_through_gets_the_delivery_too(parts: SimpleNamespace) -> None:
    parts.directory.cache = {"ann": (), "bob": ()}
    origin = deliver(parts, b"1", "ann", "bob")
    parts.links.flush()
    parts.directory.move("bob", "b")
    parts.directory.prove()
    parts.directory.answer()
    parts.links.flush()
    assert parts.links.sent == [("b", ["bob"], [b"1"])]
    assert parts.edge.replies_to(origin) == []
    parts.directory.prove()
    assert parts.edge.replies_to(origin) == [SendAck(1, 1, 1)]


def test_who_moves_while_another_recipient_is_looked_up_gets_the_delivery_too(parts: SimpleNamespace) -> None:
    parts.directory.cache = {"bob": ()}
    origin = deliver(parts, b"1", "ann", "bob")
    parts.directory.move("bob", "b")
    parts.directory.answer()
    parts.links.flush()
    parts.directory.prove()
    assert parts.edge.replies_to(origin) == []
    parts.directory.answer()
    parts.links.flush()
    parts.directory.prove()
    assert sent_to(parts) == {"b": [b"1"]}
    assert parts.edge.replies_to(origin) == [SendAck(1, 1, 1)]


def test_who_moves_while_a_delivery_waits_for_an_earlier_one_gets_both_in_order(parts: SimpleNamespace) -> None:
    parts.directory.cache = {"bob": ()}
    deliver(parts, b"1", "ann", "bob")
    parts.directory.cache["ann"] = ()
    deliver(parts, b"2", "ann", "bob")
    parts.directory.move("bob", "b")
    parts.directory.answer()
    while parts.handing_on.held:
        parts.links.flush()
        parts.directory.answer()
        while parts.directory.barriers:
            parts.directory.prove()
        parts.directory.answer()
    assert sent_to(parts) == {"b": [b"1", b"2"]}


def test_a_report_that_everybody_may_have_moved_has_all_looked_up_again(parts: SimpleNamespace) -> None:
    parts.directory.cache = {"bob": ()}
    deliver(parts, b"1", "ann", "bob")
    parts.directory.places = {"bob": ("b",), "ann": ("c",)}
    parts.directory.cache.clear()
    parts.directory.on_invalidated(None)
    parts.directory.answer()
    parts.links.flush()
    parts.directory.prove()
    parts.directory.answer()
    parts.links.flush()
    parts.directory.prove()
    assert sent_to(parts) == {"b": [b"1"], "c": [b"1"]}
    assert parts.handing_on.held == 0


def test_what_moved_between_deliveries_is_not_kept(parts: SimpleNamespace) -> None:
    parts.directory.cache = {"bob": ("b",)}
    deliver(parts, b"1", "bob")
    parts.links.flush()
    parts.directory.prove()
    for number in range(10):
        parts.directory.move(f"user{number}", "b")
    parts.directory.cache = {"bob": ("b",)}
    parts.directory.move("bob", "c")
    deliver(parts, b"2", "bob")
    parts.directory.answer()
    parts.links.flush()
    parts.directory.prove()
    assert parts.handing_on.looked_again == 0
    assert parts.handing_on.held == 0


def test_a_delivery_that_went_to_a_node_goes_there_again_for_newcomers_alone(parts: SimpleNamespace) -> None:
    parts.directory.cache = {"ann": (), "bob": ("b",), "carl": ()}
    deliver(parts, b"1", "ann", "bob", "carl")
    parts.links.flush()
    for moved, sent in (("carl", ["bob", "carl"]), ("ann", ["bob", "carl", "ann"])):
        parts.directory.move(moved, "b")
        parts.directory.move("bob", "b")
        parts.directory.prove()
        parts.directory.answer()
        parts.links.flush()
        assert [user for _, recipients, _ in parts.links.sent for user in recipients] == sent
    parts.directory.prove()
    assert parts.handing_on.held == 0


def test_wherever_a_channel_is_followed_it_is_told_who_joined_or_left(parts: SimpleNamespace) -> None:
    """The directory may not know where they are: their node registers nothing while it is cut off from Redis."""
    parts.directory.cache = {FOLLOWERS: ("b",), "bob": ("c",), "carl": ()}
    deliver(parts, b"1", FOLLOWERS, "bob", "carl", conversation_id=NEWS)
    assert parts.links.sent == [("b", [FOLLOWERS, "bob", "carl"], [b"1"]), ("c", ["bob", "carl"], [b"1"])]
    deliver(parts, b"2", FOLLOWERS, conversation_id=NEWS)
    assert parts.links.sent[2:] == [("b", [FOLLOWERS], [b"2"])]


def test_a_change_that_is_told_again_reaches_those_it_is_about_wherever_the_channel_is_followed(
    parts: SimpleNamespace,
) -> None:
    parts.directory.cache = {FOLLOWERS: (), "bob": ("c",)}
    deliver(parts, b"1", "bob", conversation_id=NEWS)
    parts.links.flush()
    assert parts.links.sent == [("c", ["bob"], [b"1"])]
    parts.directory.move(FOLLOWERS, "b", "c")
    parts.directory.prove()
    parts.directory.answer()
    parts.links.flush()
    assert parts.links.sent[1:] == [("b", ["bob"], [b"1"])]
    parts.directory.prove()
    assert parts.handing_on.held == 0


def test_receipts_go_to_all_nodes_where_the_directory_may_not_know_better_and_are_noted(parts: SimpleNamespace) -> None:
    noted: list[tuple[str, str]] = []
    parts.handing_on.on_receipt = lambda conversation_id, user: noted.append((conversation_id, user))
    parts.directory.cache = {"ann": ("a",), "bob": ("b",)}
    push = ReceiptPush("d1", "ann", 3, 2)
    typing = TypingPush("d1", "ann", True)
    parts.handing_on.signal(("ann", "bob"), push, "d1")
    assert parts.links.signals == [("b", Signalled("d1", ["bob"], encode_msgpack(push), 0))]
    parts.links.signals.clear()
    parts.handing_on.receipts_everywhere = lambda: True
    parts.handing_on.signal(("ann", "bob"), push, "d1")
    parts.handing_on.signal(("ann", "bob"), typing, "d1")
    everybody = Signalled("d1", ["ann", "bob"], encode_msgpack(push), 0)
    assert parts.links.signals == [
        ("b", everybody),
        ("c", everybody),
        ("b", Signalled("d1", ["bob"], encode_msgpack(typing), 0)),
    ]
    assert noted == [("d1", "ann"), ("d1", "ann")]
