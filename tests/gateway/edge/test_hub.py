"""Users and their connections; replies, deliveries and signals."""

import json

import pytest
import trio

from gateway.broker import Delivery, channel_id_of, followers_of
from gateway.edge import fanout
from gateway.edge.connection import CLOSED, CLOSING, QUEUED
from gateway.edge.fanout import INLINE_RECIPIENTS_MAX, JOBS_PER_CONVERSATION_MAX, RECIPIENTS_PER_STEP
from gateway.edge.hub import Caller
from protocol.codec import decode_entry, decode_server_frame, encode_entry
from protocol.errors import CloseCode
from protocol.frames import Entry, EntryPush, Ok, Pong, Resync, SendAck, TypingPush
from protocol.websocket import Opcode


def entry(seq: int, body: str = "hi") -> bytes:
    return encode_entry(Entry(seq, 1, seq, "a", f"m{seq}", body))


def delivery(recipients, *seqs, origins=None, conversation="c"):
    return Delivery(conversation, recipients, [entry(seq) for seq in seqs], origins or [None] * len(seqs))


def pushed(peer):
    """(conversation, seq) of each entry push that a peer received."""
    found = []
    for opcode, payload in peer.ws_frames():
        if opcode == Opcode.TEXT:
            _tag, conversation, fields = json.loads(payload)
            found.append((conversation, fields[0]))
            continue
        frame = decode_server_frame(payload)
        if isinstance(frame, EntryPush):
            found.append((frame.conversation_id, decode_entry(bytes(frame.entry)).seq))
    return found


def test_a_delivery_reaches_every_device_of_every_recipient(edge):
    peers = [edge.connect("a", 1), edge.connect("a", 2), edge.connect("b"), edge.connect("c")]
    edge.hub.deliver(delivery(["a", "b", "absent"], 1))
    assert [pushed(peer) for peer in peers] == [[("c", 1)], [("c", 1)], [("c", 1)], []]
    assert edge.hub.fanout.deliveries == 3


def test_the_sending_connection_does_not_get_its_own_entry_but_the_others_in_the_batch(edge):
    first, second, other = edge.connect("a", 1), edge.connect("a", 2), edge.connect("b")
    edge.hub.deliver(delivery(["a", "b"], 1, 2, 3, origins=[first.connection, other.connection, first.connection]))
    assert pushed(first) == [("c", 2)]
    assert pushed(second) == [("c", 1), ("c", 2), ("c", 3)]
    assert pushed(other) == [("c", 1), ("c", 3)]


def test_json_connections_get_the_same_entries_as_json(edge):
    peer = edge.connect("a", json=True)
    edge.hub.deliver(delivery(["a"], 1, 2))
    assert pushed(peer) == [("c", 1), ("c", 2)]
    assert {opcode for opcode, _ in peer.ws_frames()} == {1}


async def test_a_large_audience_is_served_in_slices_and_in_order(edge):
    users = [f"u{n}" for n in range(INLINE_RECIPIENTS_MAX + 200)]
    peers = [edge.connect(user) for user in users]
    edge.hub.deliver(delivery(users, 1))
    edge.hub.deliver(delivery(users[:2], 2))  # small, but behind the large one of its conversation
    edge.hub.deliver(delivery(users[:2], 1, conversation="other"))  # overtakes: it is another conversation
    assert pushed(peers[0]) == [("other", 1)]
    await edge.settle()
    assert pushed(peers[0]) == [("other", 1), ("c", 1), ("c", 2)]
    assert [pushed(peer) for peer in peers[2:]] == [[("c", 1)]] * (len(users) - 2)
    assert not edge.hub.fanout.jobs_waiting


async def test_a_reply_of_a_conversation_waits_for_its_unfinished_deliveries(edge):
    users = [f"u{n}" for n in range(INLINE_RECIPIENTS_MAX + 1)]
    peers = [edge.connect(user) for user in users]
    edge.hub.deliver(delivery(users, 1))
    edge.hub.reply(peers[-1].connection, SendAck(1, 2, 2), "c")
    edge.hub.reply(peers[-1].connection, Pong(2), "")
    assert peers[-1].frames() == [Pong(2)]
    await edge.settle()
    kinds = [type(frame) for frame in peers[-1].frames()]
    assert kinds == [Pong, EntryPush, SendAck]


async def test_a_user_who_leaves_during_a_fanout_is_passed_over(edge):
    users = [f"u{n}" for n in range(300)]
    peers = [edge.connect(user) for user in users]
    edge.hub.deliver(delivery(users, 1))
    edge.writer.abort(peers[299].connection)
    peers[298].sock.close()
    await edge.settle()
    assert pushed(peers[297]) == [("c", 1)]
    assert peers[298].connection.fd == -1


def test_the_same_device_again_replaces_the_old_connection(edge):
    old, other = edge.connect("a", 7), edge.connect("a", 8)
    new = edge.connect("a", 7)
    assert old.close_code() == CloseCode.REPLACED
    assert old.connection.flags & CLOSING
    assert set(edge.hub.connections_of("a")) == {other.connection, new.connection}


def test_who_has_left_already_replaces_nobody(edge):
    """A client gave an attempt up and connected anew, and the attempt comes to the node behind that."""
    peers = [edge.connect("a", device) for device in range(32)]
    for device in (7, 99):  # one of them, and one too many
        late = edge.connect("a", device, leaves=True)
        assert late.connection.flags & CLOSED
        assert late.ended
    assert [peer.close_code() for peer in peers] == [None] * 32
    assert edge.hub.connections_of("a") == tuple(peer.connection for peer in peers)
    alone = edge.connect("b", leaves=True)
    assert edge.hub.connections_of("b") == (alone.connection,), "whoever is in nobody's way is read to the end"


def test_a_user_with_too_many_connections_loses_the_oldest(edge):
    peers = [edge.connect("a", device) for device in range(33)]
    assert peers[0].close_code() == CloseCode.REPLACED
    assert [peer.close_code() for peer in peers[1:]] == [None] * 32
    assert len(edge.hub.connections_of("a")) == 32


async def test_a_conversation_with_too_much_waiting_is_congested_until_it_is_written(edge):
    users = [f"u{n}" for n in range(INLINE_RECIPIENTS_MAX + 1)]
    for _ in range(JOBS_PER_CONVERSATION_MAX):
        assert not edge.hub.fanout.congested("c")
        edge.hub.deliver(delivery(users, 1))
    assert edge.hub.fanout.congested("c")
    assert not edge.hub.fanout.congested("other")
    await edge.settle()
    assert not edge.hub.fanout.congested("c")


async def test_a_node_with_too_much_waiting_is_congested_wherever_something_waits(edge, monkeypatch):
    monkeypatch.setattr(fanout, "JOBS_MAX", 6)
    users = [f"u{n}" for n in range(INLINE_RECIPIENTS_MAX + 1)]
    for _ in range(2):  # what was written counts no more
        for n in range(6):
            assert not edge.hub.fanout.congested("c0")
            edge.hub.deliver(delivery(users, 1, conversation=f"c{n}"))
        assert edge.hub.fanout.congested("c0")
        assert not edge.hub.fanout.congested("other"), "nothing of it waits"
        await edge.settle()


async def test_who_would_wait_too_long_for_what_other_nodes_deliver_is_told_to_sync_instead(edge, monkeypatch):
    monkeypatch.setattr(fanout, "JOBS_HELD_MAX", 4)
    users = [f"u{n}" for n in range(INLINE_RECIPIENTS_MAX + 1)]
    peers = [edge.connect(user, json=user == "u1") for user in users]
    late = edge.connect("late")
    edge.hub.deliver(delivery(users, 1))
    edge.hub.deliver(delivery(["late", *users], 2, 3))
    edge.hub.reply(peers[0].connection, SendAck(1, 3, 3), "c")
    edge.hub.deliver(delivery(users, 1, conversation="other"))
    for seq in range(4, 8):
        edge.hub.deliver(delivery(users, seq))
    assert len(edge.hub.fanout.jobs_waiting["c"]) == 5, (
        "the first, one word instead of three, the answer, and the last two"
    )
    await edge.settle()
    of_c = [frame for frame in peers[0].frames() if getattr(frame, "conversation_id", "c") == "c"]
    assert [type(frame) for frame in of_c] == [EntryPush, Resync, SendAck, EntryPush, EntryPush]
    assert Resync(["c"]) in of_c
    assert Resync(["c"]) in peers[1].frames()
    assert [each for each in pushed(peers[0]) if each[0] == "c"] == [("c", 1), ("c", 6), ("c", 7)]
    assert pushed(peers[2])[-1:] == [("c", 7)]
    assert late.frames() == [Resync(["c"])]
    assert ("other", 1) in pushed(peers[0])
    assert not edge.hub.fanout.jobs_waiting
    assert not edge.hub.fanout.congested("c")
    assert edge.hub.fanout.given_up == 3


async def test_deliveries_of_a_busy_conversation_are_given_up_where_too_many_of_all_wait(edge, monkeypatch):
    monkeypatch.setattr(fanout, "JOBS_HELD_ALL_MAX", 20)
    monkeypatch.setattr(fanout, "JOBS_PER_CONVERSATION_MAX", 4)
    users = [f"u{n}" for n in range(INLINE_RECIPIENTS_MAX + 1)]
    peers = [edge.connect(user) for user in users]
    for n in range(15):
        edge.hub.deliver(delivery(users, 1, conversation=f"c{n}"))
    for seq in range(1, 8):
        edge.hub.deliver(delivery(users, seq))
    assert sum(map(len, edge.hub.fanout.jobs_waiting.values())) == 15 + 4
    await edge.settle()
    assert [frame for frame in peers[0].frames() if isinstance(frame, Resync)] == [Resync(["c"])]
    assert [seq for conversation, seq in pushed(peers[0]) if conversation == "c"] == [1, 6, 7]


def test_room_is_awaited_for_connections_and_there_at_once_for_callers(edge):
    told = []
    slow, quick = edge.connect("slow", buffer=4608), edge.connect("quick")
    while not slow.connection.flags & QUEUED:
        edge.writer.write(slow.connection, b"\x82\x7e\x03\xe8" + b"x" * 1000)
    for origin in (slow.connection, quick.connection, Caller("caller", told.append)):
        edge.hub.when_room(origin, lambda user=origin.user: told.append(user))
    assert told == ["quick", "caller"]


def test_who_is_closing_or_closed_is_gone(edge):
    here, closing, closed = (edge.connect(user) for user in ("here", "closing", "closed"))
    edge.writer.close(closing.connection, CloseCode.NORMAL)
    edge.writer.abort(closed.connection)
    asked = (here.connection, closing.connection, closed.connection, Caller("caller", lambda _reply: None))
    assert [edge.hub.is_gone(origin) for origin in asked] == [False, True, True, False]


def test_arrivals_and_departures_are_told_for_first_and_last_connections(edge):
    told = []
    edge.hub.on_arrival = lambda user: told.append(("+", user))
    edge.hub.on_departure = lambda user: told.append(("-", user))
    first, second = edge.connect("a", 1), edge.connect("a", 2)
    edge.writer.abort(first.connection)
    assert told == [("+", "a")]
    edge.writer.abort(second.connection)
    assert told == [("+", "a"), ("-", "a")]
    assert edge.hub.by_user == {}


def test_signals_are_shed_where_a_send_queue_has_begun(edge):
    slow, quick = edge.connect("slow", buffer=4608), edge.connect("quick")
    while not slow.connection.flags:
        edge.writer.write(slow.connection, b"\x82\x7e\x03\xe8" + b"x" * 1000)
    edge.hub.signal(["slow", "quick"], TypingPush("c", "b", True), "c", skip=None)
    edge.hub.signal(["quick"], TypingPush("c", "b", False), "c", skip=quick.connection)
    assert edge.hub.signals_shed == 1
    assert quick.frames() == [TypingPush("c", "b", True)]


def test_replies_reach_connections_callers_and_nobody_who_left(edge):
    peer, got = edge.connect("a"), []
    edge.hub.reply(peer.connection, Ok(1))
    edge.hub.reply(Caller("a", got.append), Ok(2))
    assert peer.frames() == [Ok(1)]
    assert got == [Ok(2)]
    edge.writer.abort(peer.connection)
    edge.hub.reply(peer.connection, Ok(3))


def test_entry_pushes_carry_the_encoded_entry_unchanged(edge):
    peer = edge.connect("a")
    edge.hub.deliver(delivery(["a"], 5))
    (frame,) = peer.frames()
    assert bytes(frame.entry) == entry(5)


async def test_a_channels_entries_go_to_those_who_follow_it_and_no_further(edge):
    channel = channel_id_of("n" * 24)
    peers = {user: edge.connect(user) for user in ("a", "b", followers_of(channel))}
    with edge.hub.followers.comparing("a") as comparison:
        await comparison.take({channel: 1}, whole=True)
    edge.hub.deliver(delivery((followers_of(channel),), 1, conversation=channel))
    assert {user: pushed(peer) for user, peer in peers.items()} == {
        "a": [(channel, 1)],
        "b": [],
        followers_of(channel): [],  # a user of that name is nobody special
    }
    edge.hub.remove(peers["a"].connection)
    edge.hub.deliver(delivery((followers_of(channel),), 2, conversation=channel))
    assert len(edge.hub.followers) == 0
    edge.hub.deliver(delivery((followers_of(channel),), 3, conversation="g" + "n" * 24))  # of a group: a user like any
    assert pushed(peers[followers_of(channel)]) == [("g" + "n" * 24, 3)]


async def test_a_neighbour_of_a_huge_fan_out_waits_for_slices_of_it_and_not_for_all(edge, monkeypatch):
    users = [f"u{n}" for n in range(10_000)]
    peers = [edge.connect(users[0]), edge.connect(users[-1])]
    neighbour = edge.connect("neighbour")
    written = []
    for entry_seq in (1, 2, 3):
        edge.hub.deliver(delivery(users, entry_seq, conversation="huge"))
    steps = 0
    fanout = edge.hub.fanout
    step = fanout._step

    def counted(job):
        nonlocal steps
        steps += 1
        return step(job)

    monkeypatch.setattr(fanout, "_step", counted)
    monkeypatch.setattr("gateway.edge.fanout.SLICE_S", 0.0)  # a look at the loop after each step
    done = trio.Event()

    async def speak():
        for entry_seq in range(1, 6):
            edge.hub.deliver(delivery(["neighbour"], entry_seq, conversation="calm"))
            edge.hub.reply(neighbour.connection, SendAck(entry_seq, entry_seq, 1), "calm")
            written.append((entry_seq, steps))
            await trio.lowlevel.checkpoint()
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fanout.run)
        nursery.start_soon(speak)
        await done.wait()
        # Each of the neighbour's messages was written at once, a step or so of the huge one apart.
        assert [steps for _seq, steps in written] == pytest.approx(list(range(5)), abs=5)
        assert len(pushed(neighbour)) == 5
        assert fanout.jobs_waiting
        while fanout.jobs_waiting:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert steps >= 3 * 10_000 / RECIPIENTS_PER_STEP
    assert [pushed(peer) for peer in peers] == [[("huge", 1), ("huge", 2), ("huge", 3)]] * 2
