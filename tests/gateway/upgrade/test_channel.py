"""Messages with descriptors between two ends of a real socket pair."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from gateway.upgrade.channel import Channel, Gone, HandOverFailed
from gateway.upgrade.messages import Ack, Begin, Chunk, Extra, Failed, Ready, Taken
from protocol.websocket import ReaderState

LONG_S = 20.0


def soon() -> float:
    return time.monotonic() + LONG_S


def at_once() -> float:
    return time.monotonic()


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    ends = [Channel(sock) for sock in socket.socketpair()]
    yield ends[0], ends[1]
    for end in ends:
        end.close()


def test_a_message_comes_with_copies_of_its_descriptors_which_no_program_inherits(pair):
    one, other = pair
    reading, writing = os.pipe()
    one.send(Begin(0, 1, 2.0, 3.0, {"bob": 4.0}, b"state"), [reading, writing], until_s=soon())
    begin, descriptors = other.receive(Begin, until_s=soon())
    assert begin == Begin(0, 1, 2.0, 3.0, {"bob": 4.0}, b"state")
    os.write(descriptors[1], b"x")
    assert os.read(reading, 1) == b"x"
    assert not any(os.get_inheritable(fd) for fd in descriptors)
    for fd in (reading, writing, *descriptors):
        os.close(fd)


def test_a_chunk_larger_than_the_sockets_buffer_arrives_whole(pair):
    one, other = pair
    state = ReaderState(b"", b"x" * 60_000, 2, 1, b"abcd", 5, True, b"")
    extra = Extra(state, [b"y" * 100_000] * 20, True, 1.5, 2.5, True, ("bob",))
    chunk = Chunk(["alice"], b"\x02", b"\x00", b"1234", b"1234", b"12345678", b"12345678", {0: extra})
    sender = threading.Thread(target=lambda: one.send(chunk, [one.sock.fileno()], until_s=soon()))
    sender.start()
    received, descriptors = other.receive(Chunk, until_s=soon())
    sender.join()
    assert received.extras[0].queue == extra.queue
    assert received.extras[0].reader == state
    assert received.extras[0].watches == ("bob",)
    os.close(descriptors[0])


def test_several_messages_do_not_mix_their_descriptors(pair):
    one, other = pair
    null = os.open(os.devnull, os.O_RDONLY)
    for count in (1, 250, 0, 3):
        one.send(Ack(), [null] * count, until_s=soon())
    for count in (1, 250, 0, 3):
        _, descriptors = other.receive(Ack, until_s=soon())
        assert len(descriptors) == count
        for fd in descriptors:
            os.close(fd)
    os.close(null)


def test_a_failure_is_told_with_its_reason(pair):
    one, other = pair
    one.send(Failed("no room"), until_s=soon())
    with pytest.raises(HandOverFailed, match="no room"):
        other.receive(Ready, until_s=soon())


def test_another_message_than_expected_is_named_and_its_descriptors_are_closed(pair):
    one, other = pair
    before = len(os.listdir("/proc/self/fd"))
    one.send(Ack(), [one.sock.fileno()], until_s=soon())
    with pytest.raises(HandOverFailed, match="Ack instead of Taken"):
        other.receive(Taken, until_s=soon())
    assert len(os.listdir("/proc/self/fd")) == before


def test_garbage_is_refused(pair):
    one, other = pair
    one.sock.send(b"\x00\x00\x00\x02\x00\x00\xc1\xc1")
    with pytest.raises(HandOverFailed, match="cannot be read"):
        other.receive(Ready, until_s=soon())


def test_the_end_of_the_other_process_is_noticed_by_reader_and_writer(pair):
    one, other = pair
    one.close()
    assert one.closed
    with pytest.raises(Gone):
        other.receive(Ready, until_s=soon())
    with pytest.raises(Gone):
        other.send(Ack(), until_s=soon())


def test_what_was_sent_before_the_end_is_still_read(pair):
    one, other = pair
    one.send(Taken(), until_s=soon())
    one.close()
    other.receive(Taken, until_s=at_once())
    with pytest.raises(Gone):
        other.receive(Taken, until_s=at_once())


def test_silence_has_an_end_and_so_has_a_full_socket(pair):
    one, other = pair
    with pytest.raises(HandOverFailed, match="silent"):
        other.receive(Ready, until_s=at_once())
    with pytest.raises(HandOverFailed, match="too long to read"):
        one.send(Failed("x" * 10_000_000), until_s=at_once())
