"""The generators' bytes are those of the protocol: read by the node's own reader, and counted without an error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from bench.errors import BenchError
from bench.load.accounts import CLOSE_FRAME, PING, PONG_BYTES, Door, user_names
from bench.load.messages import SEQ_FIRST, SEQ_LAST, SendTemplate, count_acks, stamps_in
from bench.load.wire import client_frame, payload_of, server_frame_bytes, server_frames, unread_from
from protocol.codec import decode_command, encode_entry, encode_msgpack
from protocol.frames import SUBPROTOCOL, Entry, EntryKind, EntryPush, ErrorReply, Ping, Pong, Send, SendAck
from protocol.handshake import accept_upgrade, parse_request_head
from protocol.websocket import FrameReader, Opcode, encode_frame


@given(st.binary(max_size=70_000))
def test_client_frames_are_read_by_the_node(payload: bytes) -> None:
    [message] = FrameReader(100_000, 10).feed(client_frame(payload))
    assert (message.opcode, bytes(message.payload)) == (Opcode.BINARY, payload)


@given(st.lists(st.binary(max_size=70_000), max_size=5), st.data())
def test_server_frames_are_found_complete_and_in_order(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(Opcode.BINARY, payload) for payload in payloads)
    assert [stream[start:end] for _opcode, start, end in server_frames(stream)] == payloads
    cut = data.draw(st.integers(0, len(stream)))
    assert unread_from(stream[:cut]) <= cut
    whole = [stream[start:end] for _opcode, start, end in server_frames(stream[:cut])]
    assert whole == payloads[: len(whole)]


@pytest.mark.parametrize("payload_bytes", [0, 1, 125, 126, 65_535, 65_536])
def test_frame_sizes_are_known_beforehand(payload_bytes: int) -> None:
    frame_bytes = len(encode_frame(Opcode.BINARY, bytes(payload_bytes)))
    assert server_frame_bytes(payload_bytes) == frame_bytes
    assert payload_of(frame_bytes) == payload_bytes


def test_a_size_that_no_frame_has_is_refused() -> None:
    with pytest.raises(ValueError, match="no server frame has 128 bytes"):
        payload_of(128)


def test_handshakes_are_accepted_by_the_node() -> None:
    [user] = user_names(1, "wave")
    door = Door("127.0.0.1", 8480, 1, secret="x" * 32)
    data = door.request(user)
    head = parse_request_head(data, 16_384)
    assert head is not None
    assert head.length == len(data)
    assert accept_upgrade(head, (SUBPROTOCOL,)).subprotocol == SUBPROTOCOL
    assert head.target.startswith("/v1/connect?device=")
    assert head.headers["authorization"] == f"Bearer {door.token(user)}"


def test_users_and_devices_are_distinct_and_the_same_in_every_run() -> None:
    users = user_names(1_000, "wave")
    assert users == user_names(1_000, "wave")
    assert len({*users, *user_names(1_000, "other")}) == 2_000


def test_ping_close_and_pong_are_what_they_are_called() -> None:
    [ping, close] = FrameReader(100, 1).feed(PING + CLOSE_FRAME)
    assert decode_command(bytes(ping.payload)) == Ping(id=1)
    assert close.opcode == Opcode.CLOSE
    assert len(encode_frame(Opcode.BINARY, encode_msgpack(Pong(id=1)))) == PONG_BYTES


def test_a_template_makes_sends_with_their_number_and_time() -> None:
    template = SendTemplate("d" + "x" * 24, "user")
    for number, stamp_ns in ((1, 5), (2**32 - 1, 12_345_678_901_234_567)):
        [message] = FrameReader(10_000, 1).feed(template.make(number, stamp_ns))
        send = decode_command(bytes(message.payload))
        assert isinstance(send, Send)
        assert (send.id, send.client_msg_id, send.conversation_id) == (number, f"m{number:011}", "d" + "x" * 24)
        assert len(send.body) == 100
        assert stamps_in(bytes(message.payload)) == [stamp_ns]


@pytest.mark.parametrize("seq", [SEQ_FIRST, 1_000, SEQ_LAST])
def test_the_size_of_a_push_is_known_for_every_seq_in_range(seq: int) -> None:
    template = SendTemplate("g" + "x" * 24, "user")
    [message] = FrameReader(10_000, 1).feed(template.make(7, 9))
    send = decode_command(bytes(message.payload))
    assert isinstance(send, Send)
    entry = Entry(seq, EntryKind.MESSAGE, 1_700_000_000_000_000, "user", send.client_msg_id, send.body)
    push = encode_msgpack(EntryPush("g" + "x" * 24, Raw(encode_entry(entry))))
    assert len(encode_frame(Opcode.BINARY, push)) == template.push_bytes
    assert len(encode_entry(entry)) == template.entry_bytes
    assert stamps_in(push + push) == [9, 9]


def test_acknowledgements_are_counted_and_partial_ones_left() -> None:
    acks = b"".join(encode_frame(Opcode.BINARY, encode_msgpack(SendAck(n, n, 1 << 50))) for n in (1, 300, 70_000))
    assert count_acks(acks) == (3, len(acks))
    assert count_acks(acks[:-1])[0] == 2


def test_an_error_among_acknowledgements_is_not_counted_as_one() -> None:
    error = encode_frame(Opcode.BINARY, encode_msgpack(ErrorReply(1, 13, "no room")))
    with pytest.raises(BenchError, match="instead of an acknowledgement"):
        count_acks(error)
