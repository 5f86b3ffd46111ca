"""Several nodes without their sockets, in one process on a virtual clock: commands find owners, deliveries readers."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from unittest.mock import patch

import pytest
import structlog.testing
import trio
from trio.testing import MockClock

from gateway.broker import Origin
from gateway.check.checker import check
from gateway.check.history import parse
from gateway.cluster.links import REACH_MAX_S
from gateway.cluster.parcels import Answered, Delivered, Forwarded, Item, Signalled
from gateway.config import Settings
from protocol.codec import encode_msgpack
from protocol.errors import ErrorCode
from protocol.frames import (
    Command,
    ErrorReply,
    GetConversation,
    GoAway,
    ListConversations,
    MarkReceipt,
    Ok,
    Ping,
    ReceiptPush,
    Send,
)
from store.interface import Unavailable
from tests.fakes.edge import FakeOrigin
from tests.gateway.cluster.cluster_world import NodePart, World, create, world


@asynccontextmanager
async def talk(
    *, owner: str, readers: str = ""
) -> AsyncIterator[tuple[World[NodePart], NodePart, NodePart, FakeOrigin, str, str]]:
    """Alice at node a has begun a conversation that one of the nodes a and b owns; its other member is at ``readers``.

    The world, both nodes, Alice, the conversation and the other member.
    """
    async with world("a", "b") as each:
        alice = FakeOrigin("alice")
        conversation_id, peer = each.conversation_owned_by(each.parts[owner], "alice")
        each.network.place(peer, *(each.parts[name].lease.incarnation for name in readers))
        await create(each, each.parts["a"], alice, peer)
        yield each, each.parts["a"], each.parts["b"], alice, conversation_id, peer


async def test_a_command_reaches_the_owner_elsewhere_and_the_ack_comes_back(autojump_clock: MockClock) -> None:
    async with talk(owner="b", readers="ab") as (each, a, b, alice, conversation_id, peer):
        each.network.place("alice", a.lease.incarnation)
        for number in range(20):
            a.submit(alice, Send(100 + number, conversation_id, f"m{number}", f"m{number}"))
        await trio.sleep(1)
        expected = [f"m{number}" for number in range(20)]
        assert a.acks(alice) == list(range(100, 120))
        assert a.bodies(peer) == expected
        assert b.bodies(peer) == expected
        assert a.cluster.router.waiting == 0
        assert b.cluster.handing_on.held == 0


async def test_a_reply_keeps_the_id_that_the_client_chose(autojump_clock: MockClock) -> None:
    async with talk(owner="b") as (_each, a, _b, alice, conversation_id, _peer):
        a.submit(alice, GetConversation(77, conversation_id))
        await trio.sleep(1)
        assert a.edge.replies_to(alice)[-1].id == 77  # type: ignore[union-attr]


async def test_an_acknowledgement_waits_until_the_deliveries_were_taken(autojump_clock: MockClock) -> None:
    async with talk(owner="a", readers="b") as (each, a, b, alice, conversation_id, peer):
        each.network.delay_s = 2.0
        a.submit(alice, Send(5, conversation_id, "m1", "m1"))
        await trio.sleep(3.9)
        assert len(each.store.logs[conversation_id].entries) == 2, "durable long ago"
        assert a.acks(alice) == []
        await trio.sleep(0.2)
        assert b.bodies(peer) == ["m1"]
        assert a.acks(alice) == [5]


async def test_who_registers_while_a_delivery_is_under_way_gets_it(autojump_clock: MockClock) -> None:
    async with talk(owner="a") as (each, a, b, alice, conversation_id, peer):
        a.submit(alice, Send(4, conversation_id, "m0", "m0"))
        await trio.sleep(1)
        each.network.delay_s = 1.0
        a.submit(alice, Send(5, conversation_id, "m1", "m1"))
        await trio.sleep(0.5)
        each.network.place(peer, b.lease.incarnation)  # while the barrier behind m1 is on its way
        await trio.sleep(0.1)
        a.submit(alice, Send(6, conversation_id, "m2", "m2"))
        await trio.sleep(20)
        assert a.acks(alice) == [4, 5, 6]
        assert b.bodies(peer) == ["m1", "m2"]
        assert a.cluster.handing_on.looked_again >= 1


async def test_the_owner_dies_and_what_it_did_not_answer_is_answered_by_the_next(autojump_clock: MockClock) -> None:
    async with talk(owner="b") as (each, a, b, alice, conversation_id, _peer):
        each.kill(b)
        await trio.sleep(8)
        a.submit(alice, Send(9, conversation_id, "m1", "m1"))
        await trio.sleep(9)
        assert a.acks(alice) == [9]
        assert each.owner_of(conversation_id) is a


async def test_what_the_dead_stored_is_not_told_to_be_refused_by_the_next_owner(autojump_clock: MockClock) -> None:
    async with talk(owner="b") as (each, a, b, alice, conversation_id, _peer):
        each.network.drop = lambda receiver, _parcel: receiver == a.lease.incarnation
        a.submit(alice, Send(5, conversation_id, "m1", "m1"))
        await trio.sleep(1)
        each.kill(b)
        await trio.sleep(1)
        assert len(each.store.logs[conversation_id].entries) == 2, "the answer was lost"
        await b.lease.release()
        each.store.failing = Unavailable("no quorum")
        await trio.sleep(5)
        (error,) = [reply for reply in a.edge.replies_to(alice) if isinstance(reply, ErrorReply)]
        assert (error.id, error.code) == (5, ErrorCode.OUTCOME_UNKNOWN)


async def test_what_the_dead_delivered_comes_before_what_the_next_owner_does_however_late(
    autojump_clock: MockClock,
) -> None:
    async with talk(owner="a", readers="b") as (each, a, b, alice, conversation_id, peer):
        b.connection.late_s = REACH_MAX_S * 0.9
        a.submit(alice, Send(5, conversation_id, "m1", "m1"))
        await trio.sleep(0.1)
        assert a.acks(alice) == [5]
        each.kill(a)
        await a.lease.release()
        b.cluster.watch.wake()
        bob = FakeOrigin(peer)
        b.submit(bob, Send(6, conversation_id, "m2", "m2"))
        await trio.sleep(5)
        assert b.acks(bob) == [6]
        assert b.bodies(peer) == ["m1", "m2"]


@pytest.mark.parametrize("trouble", ["the inbox is not read", "Redis is away"])
async def test_what_the_dead_may_have_delivered_counts_as_lost_before_the_next_owner_delivers(
    autojump_clock: MockClock, trouble: str
) -> None:
    async with talk(owner="a", readers="b") as (each, a, b, alice, conversation_id, peer):
        told: list[list[str]] = []
        b.cluster.on_gap = lambda: told.append(b.bodies(peer))
        b.connection.late_s = 60.0
        a.submit(alice, Send(5, conversation_id, "m1", "m1"))
        await trio.sleep(0.1)
        assert a.acks(alice) == [5]
        each.kill(a)
        if trouble == "Redis is away":
            each.network.away = True
        bob = FakeOrigin(peer)
        await trio.sleep(8)
        assert told == []
        b.submit(bob, Send(6, conversation_id, "m2", "m2"))
        await trio.sleep(10)
        assert b.acks(bob) == [6]
        assert b.bodies(peer) == ["m2"]
        assert told == [[]]


async def test_a_frame_of_a_newer_program_ends_no_node(autojump_clock: MockClock) -> None:
    async with talk(owner="b", readers="b") as (_each, a, b, alice, conversation_id, _peer):
        gaps: list[str] = []
        a.cluster.on_gap = lambda: gaps.append("")
        newer = encode_msgpack([127, 1, "news"])
        b.cluster.links.send(a.lease.incarnation, Signalled(conversation_id, ["alice"], newer, 0))
        b.cluster.links.send(a.lease.incarnation, Answered(newer, conversation_id))
        b.cluster.links.send(a.lease.incarnation, Signalled(conversation_id, ["alice"], b"\xc1", 0))
        a.submit(alice, Send(5, conversation_id, "m1", "m1"))
        await trio.sleep(1)
        assert a.acks(alice) == [5]
        assert len(gaps) == 3


RECEIPT = ReceiptPush("g-conversation", "bob", 3, 2)


@pytest.mark.parametrize(
    "item",
    [
        Answered(encode_msgpack(RECEIPT), "g-conversation"),
        Answered(encode_msgpack(GoAway(5)), "g-conversation"),
        Answered(encode_msgpack(Ping(5)), "g-conversation"),
        Answered(b"\x91\xff", "g-conversation"),
        Signalled("g-conversation", ["alice"], encode_msgpack(Ok(5)), 0),
        Signalled("g-conversation", ["alice"], encode_msgpack(GoAway(5)), 0),
        Forwarded(1, "alice", 0, 1, encode_msgpack(Ping(5))),
        Forwarded(1, "alice", 0, 1, encode_msgpack(ListConversations(5))),
        Forwarded(1, "alice", 0, 1, encode_msgpack(Ok(5))),
        Delivered("g-conversation", ["alice"], [], []),
        Delivered("g-conversation", ["alice"], [b"one"], [1, 2]),
    ],
    ids=lambda item: type(item).__name__,
)
async def test_an_item_with_another_frame_than_belongs_there_is_dropped_alone(
    autojump_clock: MockClock, item: Item
) -> None:
    async with talk(owner="b") as (_each, a, b, alice, conversation_id, _peer):
        to_a = a.lease.incarnation
        gaps: list[str] = []
        a.cluster.on_gap = lambda: gaps.append("")
        a.submit(alice, Send(5, conversation_id, "m1", "m1"))
        b.cluster.links.send(to_a, Signalled("g-conversation", ["alice"], encode_msgpack(RECEIPT), 0))
        b.cluster.links.send(to_a, item)
        b.cluster.links.send(to_a, Signalled("g-conversation", ["alice"], encode_msgpack(RECEIPT), 0))
        with structlog.testing.capture_logs() as logs:
            await trio.sleep(1)
        assert [signal.push for signal in a.edge.signals] == [RECEIPT, RECEIPT]
        assert a.cluster.items_dropped == 1
        assert len(gaps) == (0 if isinstance(item, Forwarded) else 1), "a command is none that anybody here misses"
        (line,) = [each for each in logs if each["event"] == "item of a parcel not understood"]
        assert (line["sender"], line["item"]) == (b.lease.incarnation, type(item).__name__)
        assert a.acks(alice) == [5]
        assert not [each for each in a.edge.deliveries if each.conversation_id == "g-conversation"]


async def test_a_fault_in_a_command_of_another_node_ends_neither_and_is_told(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with talk(owner="b", readers="a") as (_each, a, b, alice, conversation_id, peer):
        submit = b.cluster.handing_on.owner.submit

        def stumble(origin: Origin, command: Command) -> None:
            if getattr(command, "client_msg_id", "") == "mad":
                raise ZeroDivisionError("planted")
            submit(origin, command)

        monkeypatch.setattr(b.cluster.handing_on.owner, "submit", stumble)
        with structlog.testing.capture_logs() as logs:
            for number, name in enumerate(("m1", "mad", "m2"), start=5):
                a.submit(alice, Send(number, conversation_id, name, name))
            await trio.sleep(1)
        assert a.acks(alice) == [5, 7]
        assert a.bodies(peer) == ["m1", "m2"]
        (error,) = [reply for reply in a.edge.replies_to(alice) if isinstance(reply, ErrorReply)]
        assert (error.id, error.code) == (6, ErrorCode.INTERNAL)
        assert [line["exc_info"] for line in logs if line["event"] == "forwarded command failed"] == [True]


async def test_a_handover_under_load_loses_nothing_and_keeps_the_order(autojump_clock: MockClock) -> None:
    async with talk(owner="b", readers="a") as (each, a, b, alice, conversation_id, peer):
        each.nursery.start_soon(b.cluster.leave)
        for number in range(400):
            a.submit(alice, Send(100 + number, conversation_id, f"m{number}", f"m{number}"))
            await trio.sleep(0.005)
        await trio.sleep(5)
        assert each.owner_of(conversation_id) is a
        assert a.acks(alice) == list(range(100, 500))
        assert list(dict.fromkeys(a.bodies(peer))) == [f"m{number}" for number in range(400)]
        assert b.cluster.ownership.owned == 0


async def test_a_slot_is_handed_over_when_all_that_its_owner_said_is_handed_on(autojump_clock: MockClock) -> None:
    async with talk(owner="a", readers="b") as (each, a, b, alice, conversation_id, _peer):
        each.network.delay_s = 0.4
        a.submit(alice, Send(100, conversation_id, "m", "m"))
        each.nursery.start_soon(a.cluster.leave)
        await trio.sleep(0.7)
        assert not a.acks(alice), "the barrier takes 0.8 seconds"
        assert each.owner_of(conversation_id) is a
        await trio.sleep(5)
        assert a.acks(alice) == [100]
        assert each.owner_of(conversation_id) is b


async def test_lost_parcels_are_noticed_and_commands_sent_again(autojump_clock: MockClock) -> None:
    async with talk(owner="b") as (each, a, b, alice, conversation_id, _peer):
        whims = Random(1)
        gaps = 0

        def note() -> None:
            nonlocal gaps
            gaps += 1

        a.cluster.on_gap = b.cluster.on_gap = note

        # Not every third one: commands and answers alternate, so that all answers to one might be hit.
        each.network.drop = lambda _receiver, _parcel: whims.random() < 1 / 3
        for number in range(40):
            a.submit(alice, Send(100 + number, conversation_id, f"m{number}", f"m{number}"))
            await trio.sleep(0.05)
        each.network.drop = lambda _receiver, _parcel: False  # the last ones have to arrive some time
        await trio.sleep(8)
        assert sorted(a.acks(alice)) == list(range(100, 140))
        assert gaps
        assert len(each.store.logs[conversation_id].entries) == 41, "each message once"


async def test_a_living_node_that_is_not_heard_of_counts_as_a_gap(autojump_clock: MockClock) -> None:
    async with world("a", "b") as each:
        a, _ = each.parts.values()
        told = 0

        def note() -> None:
            nonlocal told
            told += 1

        a.cluster.on_gap = note
        await trio.sleep(30)
        assert told == a.cluster.links.gaps == 0, "empty parcels come"
        each.network.drop = lambda receiver, _parcel: receiver == a.lease.incarnation  # as two primaries of a Redis do
        await trio.sleep(10)
        assert told == a.cluster.links.gaps == 1
        each.network.drop = lambda _receiver, _parcel: False
        await trio.sleep(30)
        assert told == 2, "the numbers show it once more, and that is all"


async def test_the_inbox_of_a_dead_node_is_forgotten_with_its_lease(autojump_clock: MockClock) -> None:
    async with world("a", "b") as each:
        a, b = each.parts.values()
        forgotten: list[str] = []
        a.cluster.ownership.on_removed.append(forgotten.append)
        b.scope.cancel()
        assert b.lease.incarnation in each.network.inboxes
        await trio.sleep(20)
        assert forgotten == [b.lease.incarnation]
        assert list(each.network.inboxes) == [a.lease.incarnation]


async def test_without_redis_acknowledgements_go_out_at_once(autojump_clock: MockClock) -> None:
    async with talk(owner="a") as (each, a, _b, alice, conversation_id, _peer):
        each.network.away = True
        a.submit(alice, Send(9, conversation_id, "m1", "m1"))
        await trio.sleep(1)
        assert a.acks(alice) == [9]


async def test_what_no_owner_answers_is_told_so(autojump_clock: MockClock) -> None:
    async with talk(owner="b") as (each, a, _b, alice, conversation_id, _peer):
        each.network.away = True
        a.submit(alice, Send(9, conversation_id, "m1", "m1"))
        await trio.sleep(11)
        (error,) = [reply for reply in a.edge.replies_to(alice) if isinstance(reply, ErrorReply)]
        assert (error.id, error.code) == (9, ErrorCode.OUTCOME_UNKNOWN)


async def test_a_node_that_is_alone_asks_nobody(autojump_clock: MockClock) -> None:
    async with world("a") as each:
        (a,) = each.parts.values()
        alice = FakeOrigin("alice")
        conversation_id = await create(each, a, alice, "bob")
        a.submit(alice, Send(9, conversation_id, "m1", "m1"))
        await trio.sleep(1)
        assert a.acks(alice) == [9]
        assert each.network.barriers == 0
        assert a.cluster.links.parcels == 0


async def test_who_is_not_alone_any_more_knows_before_the_newcomer_serves(autojump_clock: MockClock) -> None:
    async with world("a") as each:
        (a,) = each.parts.values()
        assert a.cluster.links.alone
        await each.start("b")
        assert not a.cluster.links.alone


async def test_nodes_record_that_one_owner_speaks_at_a_time_across_a_kill(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "history.jsonl"
    async with world() as each:
        each.settings = Settings(store="cassandra", history_file=str(path))
        a, b = await each.start("a"), await each.start("b")
        await trio.sleep(10)
        alice = FakeOrigin("alice")
        conversation_id, peer = each.conversation_owned_by(b, "alice")
        await create(each, a, alice, peer)
        a.submit(alice, Send(100, conversation_id, "m0", "m0"))
        await trio.sleep(1)
        each.kill(b)
        await trio.sleep(20)
        a.submit(alice, Send(101, conversation_id, "m1", "m1"))
        await trio.sleep(1)
        assert a.acks(alice) == [100, 101]
    with path.open("rb") as file:
        records = parse(file)
    spoke = dict.fromkeys((record.process, record.conversation) for record in records)
    assert list(spoke) == [(part.lease.incarnation, conversation_id) for part in (b, a)]
    report = check(records)
    assert report.ok, report.as_text()
    assert report.sometimes["takeover"] == 1


async def test_a_node_whose_lease_is_in_doubt_answers_reads_after_a_while(autojump_clock: MockClock) -> None:
    async with world("a") as each:
        (a,) = each.parts.values()
        alice = FakeOrigin("alice")
        conversation_id = await create(each, a, alice, "bob")
        each.coordination.away = True
        await trio.sleep(11)
        for number in (71, 72, 73):
            a.submit(alice, GetConversation(number, conversation_id))
        await trio.sleep(11)
        errors = [reply for reply in a.edge.replies_to(alice) if isinstance(reply, ErrorReply)]
        assert [(error.id, error.code) for error in errors] == [
            (number, ErrorCode.UNAVAILABLE) for number in (71, 72, 73)
        ]
        assert a.cluster.router.waiting == 0


async def test_reads_that_the_own_owner_gives_back_at_once_wait_for_the_next_look(autojump_clock: MockClock) -> None:
    async with world("a") as each:
        (a,) = each.parts.values()
        alice = FakeOrigin("alice")
        conversation_id = await create(each, a, alice, "bob")
        with patch.object(a.cluster.ownership, "may_speak", lambda *_asked: False):
            for number in (71, 72, 73):
                a.submit(alice, GetConversation(number, conversation_id))
            await trio.sleep(2)
        await trio.sleep(2)
        assert [reply.id for reply in a.edge.replies_to(alice)[1:]] == [71, 72, 73]  # type: ignore[union-attr]


async def test_an_outage_of_the_store_is_a_few_lines_of_log_and_not_some_each_second(
    autojump_clock: MockClock,
) -> None:
    async with world("a", "b") as each:
        with structlog.testing.capture_logs() as lines:
            each.coordination.away = True
            await trio.sleep(100)
            each.coordination.away = False
            await trio.sleep(10)
    said = Counter(line["event"] for line in lines if line["log_level"] == "warning")
    nodes = len(each.parts)
    assert said == {
        "lease not renewed": 2 * nodes,  # when it begins, and once more in these 100 s
        "leases not read": 2 * nodes,
        "slot table not read or changed": 2 * nodes,
        "lease in doubt: nothing is acknowledged until the store answers in time": nodes,
        "lease renewed again": nodes,
        "leases read again": nodes,
        "slot table read again": nodes,
        "lease sure again": nodes,
    }


async def test_a_receipt_that_got_lost_with_redis_is_told_when_it_is_back(autojump_clock: MockClock) -> None:
    async with talk(owner="a", readers="b") as (each, a, b, alice, conversation_id, peer):
        a.submit(FakeOrigin(peer), Send(2, conversation_id, "m1", "m1"))
        await trio.sleep(1)
        each.network.away = True
        a.submit(alice, MarkReceipt(0, conversation_id, 2, 2))
        await trio.sleep(30)
        receipt = ReceiptPush(conversation_id, "alice", 2, 2)
        assert receipt not in [signal.push for signal in b.edge.signals]
        each.network.away = False
        await trio.sleep(10)
        assert receipt in [signal.push for signal in b.edge.signals]
