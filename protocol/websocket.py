"""WebSocket framing (RFC 6455 section 5) for the side that is connected to, without I/O.

``read_small_frame`` is for the one frame that nearly all reads consist of, ``read_whole_frames`` for a burst of them;
whatever they do not take goes to a ``FrameReader``, which exists only as long as it holds a part of a message.
"""

import codecs
from enum import IntEnum, unique
from typing import Final, NamedTuple

from msgspec import Struct

from protocol.errors import CloseCode
from protocol.limits import CONTROL_PAYLOAD_BYTES_MAX

NO_STATUS: Final = 1005
"""What a close frame without a code is read as (RFC 6455 section 7.1.5). Never on the wire."""

CLOSE_REASON_BYTES_MAX: Final = CONTROL_PAYLOAD_BYTES_MAX - 2
"""Bytes of a close frame's reason: what its code of two bytes leaves."""

HEADER_BYTES_MAX: Final = 14
"""Bytes of the longest header: two, eight of length, four of mask."""


@unique
class Opcode(IntEnum):
    """What a WebSocket frame carries (RFC 6455 section 5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


_FIRST_CONTROL: Final = 8
_OPCODES: Final = frozenset(int(opcode) for opcode in Opcode)


class Message(Struct, frozen=True, gc=False):
    """A complete message: TEXT (valid UTF-8) or BINARY with its fragments joined, or a PING, PONG or CLOSE."""

    opcode: Opcode
    payload: bytes


class FrameError(Exception):
    """The peer broke RFC 6455 or a limit: send a close frame with ``close_code`` and end the connection.

    Attributes:
        close_code: what to close with.
        messages: the messages that were complete before; they are still to be handled.
    """

    def __init__(self, close_code: CloseCode, message: str) -> None:
        super().__init__(message)
        self.close_code = close_code
        self.messages: list[Message] = []


# --- Writing --------------------------------------------------------------------------------------------------------


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """One unmasked frame with a whole message in it."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    return _long_header(0x80 | opcode, size, 0) + payload


def encode_masked_frame(
    opcode: int, payload: bytes, mask: bytes = b"\x00\x00\x00\x00", *, fin: bool = True, rsv: int = 0
) -> bytes:
    """One frame as a client writes it; also the pieces of a fragmented message and, by ``rsv`` (0-7), broken ones.

    Args:
        opcode: 0-15.
        payload: the bytes before masking.
        mask: 4 bytes. The default leaves the payload readable, which RFC 6455 allows nobody but tests and tools.
        fin: whether the message ends here.
        rsv: the three reserved bits.
    """
    size = len(payload)
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    header = bytes((first, 0x80 | size)) if size < 126 else _long_header(first, size, 0x80)
    return header + mask + unmask(payload, mask)


def encode_close(code: int, reason: str = "") -> bytes:
    """An unmasked close frame; ``NO_STATUS`` makes one without code and reason.

    A reason that does not fit a control frame (123 bytes of UTF-8) is cut at a character.
    """
    if code == NO_STATUS:
        return encode_frame(Opcode.CLOSE, b"")
    text = reason.encode()
    if len(text) > CLOSE_REASON_BYTES_MAX:
        text = text[:CLOSE_REASON_BYTES_MAX].decode("utf-8", "ignore").encode()
    return encode_frame(Opcode.CLOSE, code.to_bytes(2, "big") + text)


def _long_header(first: int, size: int, mask_bit: int) -> bytes:
    if size < 65_536:
        return bytes((first, mask_bit | 126)) + size.to_bytes(2, "big")
    return bytes((first, mask_bit | 127)) + size.to_bytes(8, "big")


# --- Reading --------------------------------------------------------------------------------------------------------

_int_from: Final = int.from_bytes


def unmask(payload: bytes, mask: bytes) -> bytes:
    """``payload`` with the 4 bytes of ``mask`` taken off (or put on: it is the same, RFC 6455 section 5.3)."""
    size = len(payload)
    return (_int_from(payload) ^ _int_from((mask * (size // 4 + 1))[:size])).to_bytes(size)


def read_small_frame(data: bytes) -> bytes | None:
    """The fast path: the payload if ``data`` is exactly one complete binary message of at most 125 bytes, else None.

    None says nothing about what ``data`` is instead: give it to a FrameReader.
    """
    size = len(data) - 6
    if size < 0 or size > 125 or data[0] != 0x82 or data[1] != size | 0x80:
        return None
    return (_int_from(data[6:]) ^ _int_from((data[2:6] * 32)[:size])).to_bytes(size)


def read_whole_frames(data: bytes) -> list[bytes] | None:
    """The payloads if ``data`` is nothing but complete binary messages of at most 65,535 bytes each, else None."""
    payloads = []
    place, end = 0, len(data)
    while place < end:
        if data[place] != 0x82 or end - place < 6:
            return None
        size, start = data[place + 1] - 0x80, place + 6
        if size == 126:
            size, start = _int_from(data[place + 2 : place + 4]), place + 8
            if size < 126:
                return None
        elif not 0 <= size < 126:
            return None
        place = start + size
        if place > end:
            return None
        payloads.append(unmask(data[start:place], data[start - 4 : start]))
    return payloads


class FrameHeader(NamedTuple):
    """The header of a frame.

    Attributes:
        fin: whether a message ends with this frame.
        rsv: the three reserved bits, 0-7.
        opcode: 0-15, not necessarily an Opcode.
        masked: whether a mask follows; it is the last 4 bytes of the header.
        payload_bytes: length of the payload.
        header_bytes: length of the header, its mask included.
    """

    fin: bool
    rsv: int
    opcode: int
    masked: bool
    payload_bytes: int
    header_bytes: int


def read_header(data: bytes | bytearray) -> FrameHeader | None:
    """The header that ``data`` begins with; None when it is not complete, its mask included.

    Raises:
        FrameError: a length that is negative or not in its shortest form.
    """
    if len(data) < 2:
        return None
    first, second = data[0], data[1]
    size, end = second & 0x7F, 2
    if size >= 126:
        end = 4 if size == 126 else 10
        if len(data) < end:
            return None
        least = 126 if size == 126 else 65_536
        size = _int_from(data[2:end])
        if not least <= size < 1 << 63:
            raise FrameError(
                CloseCode.PROTOCOL_ERROR,
                f"frame length {size} in {end - 2} bytes: write the shortest form, of at most 63 bits",
            )
    masked = second >= 0x80
    if masked:
        end += 4
        if len(data) < end:
            return None
    return FrameHeader(first >= 0x80, first >> 4 & 7, first & 0x0F, masked, size, end)


def parse_close(payload: bytes) -> tuple[int, str]:
    """Code and reason of a close frame; ``(NO_STATUS, "")`` when it has neither.

    Raises:
        FrameError: a payload of one byte, a code that must not be sent, or a reason that is not UTF-8.
    """
    if not payload:
        return NO_STATUS, ""
    if len(payload) == 1:
        raise FrameError(CloseCode.PROTOCOL_ERROR, "close payload of 1 byte: send 0, or 2 and more")
    code = _int_from(payload[:2])
    # RFC 6455 section 7.4; 1012 to 1014 are registered since.
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise FrameError(
            CloseCode.PROTOCOL_ERROR,
            f"close code {code} must not be sent: use 1000-1003, 1007-1014 or 3000-4999",
        )
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError as error:
        raise FrameError(CloseCode.INVALID_UTF8, f"close reason is not UTF-8: {error.reason}") from None


class ReaderState(Struct, array_like=True, frozen=True, gc=False):
    """What a FrameReader holds between two reads, as plain values: another process goes on from it.

    Attributes:
        buffer: a part of a header, or of a control frame.
        message: unmasked payload of the message in progress.
        opcode: of that message; 0: none.
        fragments: frames of it that have begun.
        mask: of the data frame in progress, turned to its next byte; empty: between frames.
        missing: payload bytes of that frame yet to come.
        fin: whether the message ends with it.
        character: the bytes of a text message's last character, as far as it has come.
    """

    buffer: bytes
    message: bytes
    opcode: int
    fragments: int
    mask: bytes
    missing: int
    fin: bool
    character: bytes


class FrameReader:
    """Reads the frames that a client sends, however the bytes are split.

    Payloads are unmasked and, of text messages, checked as they arrive: an error is found at its first byte, and the
    work is linear in the bytes, into however many pieces they are cut.
    """

    __slots__ = (
        *("_buffer", "_done", "_fin", "_fragments", "_fragments_max", "_mask", "_message", "_message_bytes_max"),
        *("_missing", "_opcode", "_utf8"),
    )

    def __init__(self, message_bytes_max: int, fragments_max: int) -> None:
        """Begin between two messages.

        Args:
            message_bytes_max: payload bytes of one message, over all its fragments.
            fragments_max: frames of one message.
        """
        self._message_bytes_max = message_bytes_max
        self._fragments_max = fragments_max
        self._buffer = bytearray()  # a part of a header, or of a control frame
        self._message = bytearray()  # unmasked payload of the message in progress
        self._opcode = 0  # of the message in progress; 0: none
        self._fragments = 0
        self._mask = b""  # of the data frame in progress, turned to its next byte; empty: between frames
        self._missing = 0  # payload bytes of that frame yet to come
        self._fin = False
        self._utf8: codecs.IncrementalDecoder | None = None
        self._done = False

    @property
    def pending(self) -> bool:
        """Whether part of a frame or message is held: if not, a new reader would go on just as well."""
        return bool(self._buffer or self._opcode or self._mask)

    def state(self) -> ReaderState:
        """All that ``resume`` needs to go on here. Of a reader that takes bytes: not after a CLOSE or an error."""
        assert not self._done, "a reader at its end has nothing to go on with"
        return ReaderState(
            bytes(self._buffer),
            bytes(self._message),
            self._opcode,
            self._fragments,
            self._mask,
            self._missing,
            self._fin,
            self._utf8.getstate()[0] if self._utf8 is not None else b"",
        )

    def resume(self, state: ReaderState) -> None:
        """Go on, as a new reader of the same limits, where another one was when it gave its ``state``."""
        self._buffer += state.buffer
        self._message += state.message
        self._opcode = state.opcode
        self._fragments = state.fragments
        self._mask = state.mask
        self._missing = state.missing
        self._fin = state.fin
        if state.opcode == Opcode.TEXT:
            self._utf8 = codecs.getincrementaldecoder("utf-8")()
            self._utf8.setstate((state.character, 0))

    def feed(self, data: bytes) -> list[Message]:
        """Take the next bytes; return the messages they complete, in order.

        After a CLOSE message, or an error, all further bytes are ignored (RFC 6455 section 1.4).

        Raises:
            FrameError: the bytes break RFC 6455 or a limit. Its ``messages`` are those complete before.
        """
        messages: list[Message] = []
        if self._done:
            return messages
        try:
            self._read(data, messages)
        except FrameError as error:
            self._finish()
            error.messages = messages
            raise
        return messages

    def _read(self, data: bytes, messages: list[Message]) -> None:
        if self._buffer:
            data = bytes(self._buffer) + data
            self._buffer.clear()
        place = 0
        if self._mask:
            place = self._take_payload(data, 0, messages)
        while place < len(data):
            header = read_header(data[place : place + HEADER_BYTES_MAX])
            if header is not None:
                self._check(header)
            start = place + header.header_bytes if header is not None else 0
            if header is None or (header.opcode >= _FIRST_CONTROL and len(data) < start + header.payload_bytes):
                self._buffer += data[place:]
                return
            mask = data[start - 4 : start]
            if header.opcode < _FIRST_CONTROL:
                self._begin_frame(header, mask)
                place = self._take_payload(data, start, messages)
                continue
            place = start + header.payload_bytes
            message = Message(Opcode(header.opcode), unmask(data[start:place], mask))
            if header.opcode == Opcode.CLOSE:
                parse_close(message.payload)
                self._finish()
                messages.append(message)
                return
            messages.append(message)

    def _check(self, header: FrameHeader) -> None:
        """Refuse a header that must not come here."""
        if header.rsv:
            raise _broken(f"reserved bits {header.rsv:03b} are set: no extension was negotiated, leave them 0")
        if header.opcode not in _OPCODES:
            raise _broken(f"opcode {header.opcode} is reserved: use 0, 1, 2, 8, 9 or 10")
        if not header.masked:
            raise _broken("frame is not masked: a client masks every frame")
        if header.opcode >= _FIRST_CONTROL:
            if not header.fin:
                raise _broken("control frame is fragmented: send it in one frame")
            if header.payload_bytes > CONTROL_PAYLOAD_BYTES_MAX:
                raise _broken(
                    f"control frame of {header.payload_bytes} bytes: at most {CONTROL_PAYLOAD_BYTES_MAX} are allowed"
                )
            return
        if header.opcode == Opcode.CONTINUATION and not self._opcode:
            raise _broken("continuation frame without a message to continue: begin with opcode 1 or 2")
        if header.opcode != Opcode.CONTINUATION and self._opcode:
            raise _broken(f"opcode {header.opcode} within a fragmented message: continue it with opcode 0")
        size = len(self._message) + header.payload_bytes
        if size > self._message_bytes_max:
            raise FrameError(
                CloseCode.TOO_BIG, f"message of {size} bytes or more: at most {self._message_bytes_max} are allowed"
            )
        if self._fragments >= self._fragments_max:
            raise FrameError(
                CloseCode.TOO_BIG, f"message in more than {self._fragments_max} fragments: send it in fewer"
            )

    def _begin_frame(self, header: FrameHeader, mask: bytes) -> None:
        if header.opcode != Opcode.CONTINUATION:
            self._opcode = header.opcode
            self._utf8 = codecs.getincrementaldecoder("utf-8")() if header.opcode == Opcode.TEXT else None
        self._fragments += 1
        self._mask = mask
        self._missing = header.payload_bytes
        self._fin = header.fin

    def _take_payload(self, data: bytes, place: int, messages: list[Message]) -> int:
        """Take what ``data`` has, from ``place`` on, of the data frame in progress; return the place behind it."""
        piece = data[place : place + self._missing]
        if piece:
            plain = unmask(piece, self._mask)
            self._message += plain
            self._check_utf8(plain, final=False)
            self._missing -= len(piece)
            turn = len(piece) % 4
            self._mask = self._mask[turn:] + self._mask[:turn]
        if not self._missing:
            self._mask = b""
            if self._fin:
                self._check_utf8(b"", final=True)
                messages.append(Message(Opcode(self._opcode), bytes(self._message)))
                self._end_message()
        return place + len(piece)

    def _check_utf8(self, plain: bytes, *, final: bool) -> None:
        if self._utf8 is None:
            return
        try:
            self._utf8.decode(plain, final)
        except UnicodeDecodeError as error:
            raise FrameError(CloseCode.INVALID_UTF8, f"text message is not UTF-8: {error.reason}") from None

    def _end_message(self) -> None:
        self._opcode = 0
        self._fragments = 0
        self._message = bytearray()
        self._utf8 = None

    def _finish(self) -> None:
        self._end_message()
        self._buffer.clear()
        self._mask = b""
        self._done = True


def _broken(message: str) -> FrameError:
    return FrameError(CloseCode.PROTOCOL_ERROR, message)
