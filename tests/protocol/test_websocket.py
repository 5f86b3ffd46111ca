"""WebSocket framing: every message whole, byte by byte, in any split and with trailing bytes; every error by name."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import CloseCode
from protocol.websocket import (
    NO_STATUS,
    FrameError,
    FrameReader,
    Message,
    Opcode,
    encode_close,
    encode_frame,
    encode_masked_frame,
    parse_close,
    read_header,
    read_small_frame,
    read_whole_frames,
    unmask,
)

MASK = b"\x37\xfa\x21\x3d"  # of the examples in RFC 6455 section 5.7
BYTES_MAX = 1000
FRAGMENTS_MAX = 4

masks = st.binary(min_size=4, max_size=4)


def reader() -> FrameReader:
    return FrameReader(BYTES_MAX, FRAGMENTS_MAX)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    return encode_masked_frame(opcode, payload, MASK, fin=fin, rsv=rsv)


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def read_all(pieces: list[bytes]) -> tuple[list[Message], FrameError | None]:
    """Messages and the error, if any, that a reader finds; every piece is fed, also those after an error."""
    target, messages, error = reader(), [], None
    for piece in pieces:
        try:
            messages += target.feed(piece)
        except FrameError as caught:
            assert error is None, "a reader raises at most once"
            messages += caught.messages
            error = caught
    return messages, error


# --- Writing --------------------------------------------------------------------------------------------------------


def test_examples_of_the_rfc() -> None:
    assert encode_frame(Opcode.TEXT, b"Hello").hex(" ") == "81 05 48 65 6c 6c 6f"
    assert encode_masked_frame(Opcode.TEXT, b"Hello", MASK).hex(" ") == "81 85 37 fa 21 3d 7f 9f 4d 51 58"
    assert encode_frame(Opcode.BINARY, bytes(256))[:4].hex(" ") == "82 7e 01 00"
    assert encode_frame(Opcode.BINARY, bytes(65536))[:10].hex(" ") == "82 7f 00 00 00 00 00 01 00 00"
    assert encode_masked_frame(Opcode.TEXT, b"Hel", bytes(4), fin=False).hex(" ") == "01 83 00 00 00 00 48 65 6c"


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_lengths_are_written_in_their_shortest_form(size: int) -> None:
    header = read_header(encode_frame(Opcode.BINARY, bytes(size))[:14])
    assert header is not None
    assert header.payload_bytes == size
    assert header.header_bytes == (2 if size < 126 else 4 if size < 65536 else 10)
    masked = read_header(encode_masked_frame(Opcode.BINARY, bytes(size), MASK)[:14])
    assert masked is not None
    assert (masked.payload_bytes, masked.header_bytes, masked.masked) == (size, header.header_bytes + 4, True)


@pytest.mark.parametrize(
    ("code", "reason", "payload"),
    [
        (1000, "", b"\x03\xe8"),
        (4000, "too slow", b"\x0f\xa0too slow"),
        (1002, "é" * 62, b"\x03\xea" + "é".encode() * 61),  # 124 bytes: the half character goes too
        (1002, "x" * 200, b"\x03\xea" + b"x" * 123),
        (NO_STATUS, "", b""),
    ],
)
def test_close(code: int, reason: str, payload: bytes) -> None:
    assert encode_close(code, reason) == bytes((0x88, len(payload))) + payload
    assert parse_close(payload)[0] == code


@given(st.binary(max_size=300), masks)
def test_unmask_is_a_byte_wise_xor_and_its_own_inverse(payload: bytes, mask: bytes) -> None:
    masked = unmask(payload, mask)
    assert masked == bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    assert unmask(masked, mask) == payload


# --- The fast paths -------------------------------------------------------------------------------------------------


@given(st.binary(max_size=125), masks)
def test_small_frame(payload: bytes, mask: bytes) -> None:
    assert read_small_frame(encode_masked_frame(Opcode.BINARY, payload, mask)) == payload


@given(st.lists(st.tuples(st.binary(max_size=300), masks), max_size=5))
def test_whole_frames(messages: list[tuple[bytes, bytes]]) -> None:
    data = b"".join(encode_masked_frame(Opcode.BINARY, payload, mask) for payload, mask in messages)
    assert read_whole_frames(data) == [payload for payload, _ in messages]


@pytest.mark.parametrize("size", [126, 65_535, 65_536])
def test_large_frames_are_left_to_the_reader(size: int) -> None:
    payload, mask = bytes(range(256)) * (size // 256 + 1), b"mask"
    payload = payload[:size]
    data = encode_masked_frame(Opcode.BINARY, payload, mask)
    assert read_small_frame(data) is None
    assert read_whole_frames(data) == ([payload] if len(payload) < 65_536 else None)


@pytest.mark.parametrize("size", [0, 1, 5, 125, 126, 127, 200])
def test_fast_paths_leave_everything_else_to_the_reader(size: int) -> None:
    payload = bytes(range(256))[:size]
    good = frame(Opcode.BINARY, payload)
    others = [good[:cut] for cut in range(len(good))]
    others += [good + b"\x00", encode_frame(Opcode.BINARY, payload), frame(Opcode.BINARY, payload, rsv=4)]
    others += [frame(opcode, payload) for opcode in (Opcode.TEXT, Opcode.CONTINUATION, Opcode.PING, Opcode.CLOSE)]
    others += [frame(Opcode.BINARY, payload, fin=False)]
    for data in others:
        assert read_small_frame(data) is None
        assert not read_whole_frames(data)
        assert read_whole_frames(good + data) is None or not data
    assert read_small_frame(good + good) is None


@given(st.binary(max_size=140))
def test_fast_paths_agree_with_the_reader(data: bytes) -> None:
    for start in (b"", b"\x82", b"\x82\xfe", bytes((0x82, 0x80 | max(0, min(len(data) - 4, 125))))):
        payload, payloads = read_small_frame(start + data), read_whole_frames(start + data)
        if payload is not None:
            assert payloads == [payload]
        if payloads is not None:
            assert read_all([start + data]) == ([Message(Opcode.BINARY, each) for each in payloads], None)


# --- The reader -----------------------------------------------------------------------------------------------------

text = st.text(max_size=40).map(str.encode)
controls = st.tuples(st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125))


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[Message]]:
    """Valid client bytes and the messages in them: fragmented, with control frames between the fragments."""
    data, messages = b"", []
    for _ in range(draw(st.integers(0, 4))):
        opcode, payload = draw(
            st.tuples(st.just(Opcode.TEXT), text)
            | st.tuples(st.just(Opcode.BINARY), st.binary(max_size=300))
            | controls
        )
        if opcode >= Opcode.CLOSE:
            data += encode_masked_frame(opcode, payload, draw(masks))
            messages.append(Message(opcode, payload))
            continue
        pieces = in_pieces(payload, draw(st.lists(st.integers(0, 400), max_size=FRAGMENTS_MAX - 1)))
        for place, piece in enumerate(pieces):
            last = place == len(pieces) - 1
            data += encode_masked_frame(Opcode.CONTINUATION if place else opcode, piece, draw(masks), fin=last)
            if not last and draw(st.booleans()):
                control, body = draw(controls)
                data += encode_masked_frame(control, body, draw(masks))
                messages.append(Message(control, body))
        messages.append(Message(opcode, payload))
    return data, messages


@given(streams(), st.lists(st.integers(0, 2000), max_size=12))
def test_any_split_gives_the_same_messages(stream: tuple[bytes, list[Message]], cuts: list[int]) -> None:
    data, messages = stream
    whole = reader()
    assert whole.feed(data) == messages
    assert not whole.pending
    assert read_all(in_pieces(data, cuts)) == (messages, None)
    assert read_all([data[place : place + 1] for place in range(len(data))]) == (messages, None)


@given(streams(), st.data())
def test_pending_tells_whether_a_new_reader_would_do(stream: tuple[bytes, list[Message]], data: st.DataObject) -> None:
    octets, messages = stream
    cut = data.draw(st.integers(0, len(octets)))
    first = reader()
    found = first.feed(octets[:cut])
    second = first if first.pending else reader()
    assert found + second.feed(octets[cut:]) == messages


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=8))
def test_garbage_raises_only_frame_errors_however_it_is_split(data: bytes, cuts: list[int]) -> None:
    messages, error = read_all([data])
    found, later = read_all(in_pieces(data, cuts))
    assert found == messages
    # A text's bad byte may be found before the end of a frame header that another split shows first; codes agree.
    assert (error is None) == (later is None)
    if error is not None and later is not None:
        assert (error.close_code, str(error)) == (later.close_code, str(later))


def test_close_ends_the_reading() -> None:
    target = reader()
    close = frame(Opcode.CLOSE, b"\x03\xe8bye")
    assert target.feed(frame(Opcode.PING) + close + frame(Opcode.BINARY, b"late")) == [
        Message(Opcode.PING, b""),
        Message(Opcode.CLOSE, b"\x03\xe8bye"),
    ]
    assert target.feed(b"\xff\xff\xff") == []
    assert not target.pending


def test_message_of_exactly_the_limits_is_read() -> None:
    size = BYTES_MAX // FRAGMENTS_MAX
    data = frame(Opcode.BINARY, b"a" * size, fin=False)
    data += frame(Opcode.CONTINUATION, b"b" * size, fin=False) * (FRAGMENTS_MAX - 2)
    data += frame(Opcode.CONTINUATION, b"c" * size)
    messages, error = read_all([data])
    assert error is None
    assert [len(message.payload) for message in messages] == [BYTES_MAX]


PROTOCOL, TOO_BIG, UTF8 = CloseCode.PROTOCOL_ERROR, CloseCode.TOO_BIG, CloseCode.INVALID_UTF8


@pytest.mark.parametrize(
    ("data", "code", "part"),
    [
        (encode_frame(Opcode.BINARY, b"x"), PROTOCOL, "frame is not masked: a client masks every frame"),
        (frame(Opcode.BINARY, b"x", rsv=4), PROTOCOL, "reserved bits 100 are set"),
        (frame(Opcode.BINARY, b"x", rsv=1), PROTOCOL, "reserved bits 001 are set"),
        *((frame(opcode), PROTOCOL, f"opcode {opcode} is reserved") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
        (frame(Opcode.PING, fin=False), PROTOCOL, "control frame is fragmented"),
        (frame(Opcode.PING, b"x" * 126), PROTOCOL, "control frame of 126 bytes: at most 125 are allowed"),
        (frame(Opcode.CONTINUATION, b"x"), PROTOCOL, "without a message to continue"),
        (frame(Opcode.TEXT, b"x", fin=False) + frame(Opcode.TEXT, b"y"), PROTOCOL, "opcode 1 within a fragmented"),
        (b"\x82\xfe\x00\x7d" + MASK, PROTOCOL, "frame length 125 in 2 bytes: write the shortest form"),
        (b"\x82\xff" + struct.pack("!Q", 65_535) + MASK, PROTOCOL, "frame length 65535 in 8 bytes"),
        (b"\x82\xff" + struct.pack("!Q", 1 << 63) + MASK, PROTOCOL, "of at most 63 bits"),
        (frame(Opcode.BINARY, b"x" * 1001)[:8], TOO_BIG, "message of 1001 bytes or more: at most 1000 are allowed"),
        (b"\x82\xff" + struct.pack("!Q", (1 << 63) - 1) + MASK, TOO_BIG, "at most 1000 are allowed"),
        (
            frame(Opcode.BINARY, b"x" * 999, fin=False) + frame(Opcode.CONTINUATION, b"xx")[:6],
            TOO_BIG,
            "message of 1001 bytes or more",
        ),
        (
            frame(Opcode.BINARY, fin=False) + frame(Opcode.CONTINUATION, fin=False) * FRAGMENTS_MAX,
            TOO_BIG,
            "more than 4 fragments",
        ),
        (frame(Opcode.TEXT, b"\xc3\x28"), UTF8, "text message is not UTF-8"),
        (frame(Opcode.TEXT, b"\xe2\x82"), UTF8, "text message is not UTF-8"),
        (frame(Opcode.TEXT, "\ud800".encode("utf-8", "surrogatepass")), UTF8, "text message is not UTF-8"),
        (frame(Opcode.CLOSE, b"\x03"), PROTOCOL, "close payload of 1 byte"),
        (frame(Opcode.CLOSE, b"\x03\xe8\xff"), UTF8, "close reason is not UTF-8"),
    ],
)
def test_each_breach_has_its_close_code(data: bytes, code: CloseCode, part: str) -> None:
    before = frame(Opcode.BINARY, b"before")
    for pieces in ([before + data], [bytes((byte,)) for byte in before + data]):
        messages, error = read_all(pieces)
        assert error is not None
        assert error.close_code is code
        assert part in str(error)
        assert messages == [Message(Opcode.BINARY, b"before")]


@pytest.mark.parametrize(
    "bad", [b"\xf4\x90\x80\x80", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf8\x88\x80\x80\x80", b"\xce\xba\xff", b"\x80"]
)
def test_bad_text_is_refused_before_its_frame_ends(bad: bytes) -> None:
    target = reader()
    whole = frame(Opcode.TEXT, b"ok " + bad + b" and much more")
    with pytest.raises(FrameError) as caught:
        target.feed(whole[: 6 + 3 + len(bad)])
    assert caught.value.close_code is UTF8


def test_character_may_be_split_between_fragments() -> None:
    euro = "€".encode()
    messages, error = read_all([frame(Opcode.TEXT, euro[:1], fin=False) + frame(Opcode.CONTINUATION, euro[1:])])
    assert (messages, error) == ([Message(Opcode.TEXT, euro)], None)


def test_nothing_is_read_after_an_error() -> None:
    target = reader()
    with pytest.raises(FrameError):
        target.feed(encode_frame(Opcode.BINARY, b"x"))
    assert target.feed(frame(Opcode.BINARY, b"x")) == []
    assert not target.pending


VALID_CLOSE_CODES = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


@pytest.mark.parametrize("code", [0, 999, *range(1000, 1018), 1100, 2000, 2999, 3000, 3999, 4000, 4999, 5000, 65535])
def test_close_codes(code: int) -> None:
    payload = code.to_bytes(2, "big")
    if code in VALID_CLOSE_CODES:
        assert parse_close(payload + b"why") == (code, "why")
        return
    with pytest.raises(FrameError) as caught:
        parse_close(payload)
    assert caught.value.close_code is PROTOCOL
    assert f"close code {code} must not be sent" in str(caught.value)


def test_close_without_code() -> None:
    assert parse_close(b"") == (NO_STATUS, "")


def test_reading_a_large_message_in_small_pieces_is_linear() -> None:
    """A quarter of a million one-byte reads: with quadratic copying this would take hours, not seconds."""
    payload = bytes(250_000)
    data = encode_masked_frame(Opcode.BINARY, payload, MASK)
    target = FrameReader(len(payload), 1)
    messages = [message for place in range(len(data)) for message in target.feed(data[place : place + 1])]
    assert messages == [Message(Opcode.BINARY, payload)]


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
def test_another_reader_goes_on_wherever_the_first_one_stopped(opcode: Opcode) -> None:
    text = "grüße €".encode()
    data = (
        encode_masked_frame(opcode, text[:4], MASK, fin=False)
        + encode_masked_frame(Opcode.PING, b"between", MASK)
        + encode_masked_frame(Opcode.CONTINUATION, text[4:], b"\x09\x08\x07\x06")
    )
    for place in range(len(data) + 1):
        first, second = reader(), reader()
        messages = first.feed(data[:place])
        second.resume(first.state())
        assert second.pending == first.pending
        messages += second.feed(data[place:])
        assert messages == [Message(Opcode.PING, b"between"), Message(opcode, text)], place
        assert not second.pending
