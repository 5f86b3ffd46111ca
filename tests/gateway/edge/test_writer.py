"""Writing to full sockets, slow consumers, the close handshake."""

import contextlib

import pytest

from gateway.broker import Delivery
from gateway.edge.connection import CLOSED, CLOSING, QUEUED
from gateway.edge.outgoing import PushBatch
from gateway.edge.send_ring import RING_SOCKETS_MIN
from gateway.edge.writer import CHUNK_BYTES, CLOSE_LINGER_S, ENDINGS_PER_SWEEP, SendQueue, Writer
from protocol.errors import CloseCode
from protocol.websocket import encode_frame
from tests.gateway.edge.conftest import QUEUE_AGE_MAX_S, QUEUE_BYTES_MAX

FRAME = encode_frame(2, b"x" * 1000)
TINY = 4608  # what Linux makes of the smallest send buffer


def fill(edge, peer):
    """Write until something has to be queued."""
    while not peer.connection.flags & QUEUED:
        edge.writer.write(peer.connection, FRAME)


def test_a_write_to_an_empty_socket_goes_straight_out(edge):
    peer = edge.connect("a")
    edge.writer.write(peer.connection, FRAME)
    assert peer.read() == FRAME
    assert edge.writer.bytes_queued == 0


async def test_what_does_not_fit_is_queued_and_follows_in_order(edge):
    peer = edge.connect("a", buffer=TINY)
    fill(edge, peer)
    last = encode_frame(2, b"last")
    edge.writer.write(peer.connection, last)
    assert edge.writer.bytes_queued > len(last)
    while peer.connection.flags & QUEUED:
        peer.read()
        await edge.settle()
    frames = peer.ws_frames()
    assert frames[-1] == (2, b"last")
    assert {payload for _, payload in frames[:-1]} == {b"x" * 1000}
    assert edge.writer.bytes_queued == 0


async def test_a_queue_over_its_bytes_is_closed_for_resuming_with_whole_frames_only(edge):
    peer = edge.connect("a", buffer=TINY)
    fill(edge, peer)
    for _ in range(10):
        edge.writer.write(peer.connection, FRAME)
    assert peer.connection.flags & CLOSING
    assert edge.writer.slow_consumers == 1
    assert edge.gone_connections == [peer.connection]
    for _ in range(20):
        peer.read()
        await edge.settle()
    frames = peer.ws_frames()
    assert frames[-1][0] == 8
    assert peer.close_code() == CloseCode.SLOW_CONSUMER
    assert sum(len(payload) for _, payload in frames) + sum(
        len(encode_frame(0, payload)) - len(payload) for _, payload in frames
    ) == len(peer.received), "a frame was cut"
    assert peer.ended


def test_a_queue_over_its_age_is_closed_for_resuming(edge):
    peer = edge.connect("a", buffer=TINY)
    edge.table.now = 100.0
    fill(edge, peer)
    edge.writer.sweep(110.0)
    assert not peer.connection.flags & CLOSING
    edge.writer.sweep(110.1)
    assert peer.connection.flags & CLOSING


def test_neighbours_of_a_slow_consumer_are_unaffected(edge):
    slow, quick = edge.connect("slow", buffer=TINY), edge.connect("quick")
    for _ in range(30):
        for peer in (slow, quick):
            edge.writer.write(peer.connection, FRAME)
    assert slow.connection.flags & CLOSING
    assert quick.read() == FRAME * 30
    assert not quick.connection.flags


async def test_closing_tells_the_code_and_ends_when_the_peer_ends(edge):
    peer = edge.connect("a")
    edge.writer.close(peer.connection, CloseCode.TOKEN_EXPIRED, "ran out")
    edge.writer.write(peer.connection, FRAME)  # too late: nothing follows a close frame
    assert peer.ws_frames() == [(8, (4100).to_bytes(2, "big") + b"ran out")]
    assert peer.ended
    peer.sock.close()
    await edge.settle()
    assert peer.connection.fd == -1


def test_closing_without_an_answer_ends_after_the_linger(edge):
    peer = edge.connect("a")
    edge.table.now = 50.0
    edge.writer.close(peer.connection, CloseCode.NORMAL)
    edge.writer.sweep(50.0 + CLOSE_LINGER_S - 0.1)
    assert peer.connection.fd >= 0
    edge.writer.sweep(50.0 + CLOSE_LINGER_S)
    assert peer.connection.fd == -1


def test_closing_twice_tells_the_first_code_only(edge):
    peer = edge.connect("a")
    edge.writer.close(peer.connection, CloseCode.REPLACED)
    edge.writer.close(peer.connection, CloseCode.INTERNAL_ERROR)
    assert peer.close_code() == CloseCode.REPLACED
    assert edge.gone_connections == [peer.connection]
    assert edge.writer.closed_by_code == {CloseCode.REPLACED: 1}


def test_a_broken_socket_is_noticed_by_the_write(edge):
    peer = edge.connect("a")
    peer.sock.close()
    edge.writer.write(peer.connection, FRAME)
    assert peer.connection.fd == -1
    assert edge.gone_connections == [peer.connection]
    edge.writer.write(peer.connection, FRAME)  # whoever still holds the object does no harm
    edge.writer.close(peer.connection, CloseCode.NORMAL)
    edge.writer.abort(peer.connection)


def test_a_send_queue_consumes_across_chunks_and_keeps_the_begun_one():
    queue = SendQueue(1.0)
    for data in (b"aaaa", b"bbbb", b"cccc"):
        queue.append(data)
    queue.consume(6, 2.0)
    assert (queue.size, queue.begun, list(queue.chunks)) == (6 + 2 * CHUNK_BYTES, True, [b"bb", b"cccc"])
    queue.drop_unbegun()
    assert (queue.size, list(queue.chunks)) == (2 + CHUNK_BYTES, [b"bb"])
    queue.consume(2, 3.0)
    assert (queue.size, queue.begun, queue.since) == (0, False, 3.0)


def test_tiny_chunks_count_for_what_they_take(edge):
    peer = edge.connect("a", buffer=TINY)
    fill(edge, peer)
    writes = 0
    while not peer.connection.flags & CLOSING:
        edge.writer.write(peer.connection, b"\x8a\x00")
        writes += 1
    assert writes <= QUEUE_BYTES_MAX / CHUNK_BYTES


def test_a_client_that_reads_steadily_is_not_slow_however_long_it_takes(edge):
    peer = edge.connect("a", buffer=TINY)
    edge.table.now = 100.0
    fill(edge, peer)
    for _ in range(3):
        edge.table.now += 9.0
        peer.read()
        edge.writer.flush(peer.connection)
        fill(edge, peer)
        edge.writer.sweep(edge.table.now)
    assert not peer.connection.flags & CLOSING


async def test_room_is_told_when_the_queue_is_empty_and_never_to_who_is_gone(edge):
    told = []
    quick, slow, gone = edge.connect("a"), edge.connect("b", buffer=TINY), edge.connect("c", buffer=TINY)
    for peer in (slow, gone):
        fill(edge, peer)
    for peer in (quick, slow, gone):
        edge.writer.when_room(peer.connection, lambda user=peer.connection.user: told.append(user))
    assert told == ["a"]
    edge.writer.abort(gone.connection)
    while slow.connection.flags & QUEUED:
        slow.read()
        await edge.settle()
    assert told == ["a", "b"]
    edge.writer.when_room(gone.connection, lambda: told.append("c"))
    assert told == ["a", "b"]


def test_room_is_not_told_to_who_is_closing(edge):
    told = []
    peer = edge.connect("a", buffer=TINY)
    fill(edge, peer)
    edge.writer.when_room(peer.connection, lambda: told.append("a"))
    edge.writer.close(peer.connection, CloseCode.NORMAL)
    while peer.connection.flags & QUEUED:
        peer.read()
        edge.writer.flush(peer.connection)
    assert peer.close_code() == CloseCode.NORMAL
    assert told == []


def test_a_crowd_that_ends_together_is_ended_in_parts(edge):
    edge.table.now = 50.0
    peers = [edge.connect(f"u{n}") for n in range(ENDINGS_PER_SWEEP + 5)]
    for peer in peers:
        edge.writer.close(peer.connection, CloseCode.NORMAL)
    assert edge.writer.sweep(50.0 + CLOSE_LINGER_S)
    assert edge.table.count == 5
    assert not edge.writer.sweep(50.0 + CLOSE_LINGER_S)
    assert edge.table.count == 0


def test_a_crowd_of_slow_consumers_is_closed_in_parts(edge):
    edge.table.now = 50.0
    peers = [edge.connect(f"u{n}", buffer=TINY) for n in range(ENDINGS_PER_SWEEP + 5)]
    for peer in peers:
        fill(edge, peer)
    edge.table.now = later = 50.0 + QUEUE_AGE_MAX_S + 1
    assert edge.writer.sweep(later)
    assert edge.writer.slow_consumers == ENDINGS_PER_SWEEP
    assert not edge.writer.sweep(later)
    assert edge.writer.slow_consumers == len(peers)


def test_codes_that_peers_choose_count_as_one(edge):
    for code in range(4900, 4950):
        edge.writer.close(edge.connect("a", code).connection, code)
    assert edge.writer.closed_by_code == {0: 50}


def sends(monkeypatch) -> list[bytes]:
    """What is sent from now on, a system call each."""
    sent: list[bytes] = []
    send = Writer._write_now

    def noted(self, connection, data):
        sent.append(data)
        send(self, connection, data)

    monkeypatch.setattr(Writer, "_write_now", noted)
    return sent


def test_what_is_written_together_leaves_at_the_end_in_one_write_for_each_connection(edge, monkeypatch):
    a, b = edge.connect("a"), edge.connect("b")
    sent = sends(monkeypatch)
    with edge.writer.together:
        edge.writer.write(a.connection, b"1")
        edge.writer.write(b.connection, b"2")
        with edge.writer.together:
            edge.writer.write(a.connection, b"3")
        assert a.read() == b.read() == b""
    assert sent == [b"13", b"2"]
    assert (a.read(), b.read()) == (b"13", b"2")
    edge.writer.write(a.connection, b"4")
    assert a.read() == b"134"


def test_a_connection_closed_meanwhile_gets_what_was_written_before_and_then_the_close_frame(edge):
    peer = edge.connect("a")
    with edge.writer.together:
        edge.writer.write(peer.connection, FRAME)
        edge.writer.close(peer.connection, CloseCode.NORMAL, "bye")
        edge.writer.write(peer.connection, FRAME)
    assert peer.ws_frames() == [(2, b"x" * 1000), (8, CloseCode.NORMAL.to_bytes(2, "big") + b"bye")]


def test_a_connection_cut_off_meanwhile_is_written_nothing(edge, monkeypatch):
    peer = edge.connect("a")
    sent = sends(monkeypatch)
    with edge.writer.together:
        edge.writer.write(peer.connection, FRAME)
        edge.writer.abort(peer.connection)
    assert sent == []


def test_what_was_written_together_before_a_delivery_to_many_comes_before_it(edge):
    peers = [edge.connect(f"u{number}") for number in range(RING_SOCKETS_MIN)]
    delivery = Delivery("d1", [f"u{number}" for number in range(RING_SOCKETS_MIN)], [b"\x01"], [None])
    with edge.writer.together:
        edge.writer.write(peers[0].connection, FRAME)
        edge.hub.deliver(delivery)
    assert peers[0].read() == FRAME + PushBatch(delivery).joined


async def test_what_is_written_together_and_does_not_fit_is_queued_and_follows_in_order(edge):
    peer = edge.connect("a", buffer=TINY)
    bodies = [bytes([65 + number]) * 1000 for number in range(10)]
    for turn in (bodies[:7], bodies[7:]):
        with edge.writer.together:
            for body in turn:
                edge.writer.write(peer.connection, encode_frame(2, body))
    assert peer.connection.flags & QUEUED
    while peer.connection.flags & QUEUED:
        peer.read()
        await edge.settle()
    assert [payload for _, payload in peer.ws_frames()] == bodies


def test_what_is_written_together_counts_as_queued_as_soon_as_it_does_not_fit(edge):
    slow, quick = edge.connect("slow", buffer=TINY), edge.connect("quick")
    with edge.writer.together:
        for _ in range(30):
            for peer in (slow, quick):
                edge.writer.write(peer.connection, FRAME)
        assert edge.writer.bytes_queued <= QUEUE_BYTES_MAX
    assert slow.connection.flags & CLOSING
    assert edge.writer.slow_consumers == 1
    assert quick.read() == FRAME * 30


def test_an_error_on_the_way_keeps_nothing_back(edge):
    peer = edge.connect("a")

    def fail():
        with edge.writer.together, edge.writer.together:
            edge.writer.write(peer.connection, b"1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert peer.read() == b"1"
    edge.writer.write(peer.connection, b"2")
    assert peer.read() == b"12"


def stuff(peer):
    """Leave no room in a socket behind the writer's back."""
    with contextlib.suppress(BlockingIOError):
        while True:
            peer.connection.sock.send(FRAME)


@pytest.mark.parametrize("fault", [OSError, ZeroDivisionError])
def test_what_goes_wrong_with_one_connection_ends_that_one_alone(edge, monkeypatch, fault):
    first, broken, last = edge.connect("first"), edge.connect("broken", buffer=TINY), edge.connect("last")
    stuff(broken)
    if fault is OSError:
        edge.epoll.unregister(broken.connection.fd)  # it has to be watched for room, and cannot be
    else:
        monkeypatch.setattr(SendQueue, "append", lambda *_: 1 / 0)
    with edge.writer.together:
        for peer in (first, broken, last):
            edge.writer.write(peer.connection, FRAME)
    assert first.read() == last.read() == FRAME
    assert broken.connection.flags & CLOSED
    assert edge.gone_connections == [broken.connection]
    assert edge.writer.bytes_queued == 0
    broken.read()
    assert broken.ended


async def test_who_cannot_be_watched_any_more_is_ended_instead_of_kept_waiting(edge):
    peer = edge.connect("a", buffer=TINY)
    fill(edge, peer)
    edge.writer.when_room(peer.connection, lambda: pytest.fail("it has ended"))
    edge.epoll.unregister(peer.connection.fd)
    for _ in range(20):
        peer.read()
        edge.writer.flush(peer.connection)
    assert peer.connection.flags & CLOSED
    assert edge.writer.bytes_queued == 0
