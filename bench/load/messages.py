"""Send commands and entry pushes whose size is known beforehand, so that counting bytes counts deliveries."""

import struct

from msgspec import Raw

from bench.errors import BenchError
from bench.load.wire import client_frame, server_frame_bytes, server_frames
from protocol.codec import encode_entry, encode_msgpack
from protocol.frames import Entry, EntryKind, EntryPush, Send

SEQ_FIRST = 256
"""From here to SEQ_LAST a seq takes three bytes of msgpack, so that every push of one conversation has one size."""
SEQ_LAST = 65_535

BODY_CHARS = 100
"""Characters of a benchmark's message: a long line of chat."""

STAMP = b"@ts="
"""Stands before the time in a body; bodies and ids contain no other @."""
STAMP_DIGITS = 17

_ID_PLACE = 0xABCDEF01
_MSG_ID = "m%011d"


class SendTemplate:
    """A prebuilt Send of one connection to one conversation; ``make`` fills in its numbers.

    The body begins with a time stamp (nanoseconds of the monotonic clock) when one is given.
    """

    def __init__(self, conversation_id: str, sender: str) -> None:
        """Build the frame once."""
        self.conversation_id, self.sender = conversation_id, sender
        body = STAMP.decode() + "0" * STAMP_DIGITS
        body += "." * (BODY_CHARS - len(body))
        frame = bytearray(client_frame(encode_msgpack(Send(_ID_PLACE, conversation_id, _MSG_ID % 0, body))))
        self._frame = frame
        self._id_at = frame.index(struct.pack("!I", _ID_PLACE))
        self._msg_id_at = frame.index((_MSG_ID % 0).encode()) + 1
        self._stamp_at = frame.index(STAMP) + len(STAMP)
        self._body = body

    def make(self, number: int, stamp_ns: int = 0) -> bytes:
        """The frame with ``number`` as request id and in its client_msg_id."""
        frame = self._frame
        struct.pack_into("!I", frame, self._id_at, number)
        frame[self._msg_id_at : self._msg_id_at + 11] = b"%011d" % number
        frame[self._stamp_at : self._stamp_at + STAMP_DIGITS] = b"%017d" % stamp_ns
        return bytes(frame)

    @property
    def push_bytes(self) -> int:
        """Size on the wire of the push that such a send becomes, for a seq from SEQ_FIRST to SEQ_LAST."""
        return server_frame_bytes(len(self._push()))

    @property
    def entry_bytes(self) -> int:
        """Size of the entry in a store."""
        return len(self._entry())

    def _entry(self) -> bytes:
        return encode_entry(Entry(SEQ_FIRST, EntryKind.MESSAGE, 1 << 50, self.sender, _MSG_ID % 0, self._body))

    def _push(self) -> bytes:
        return encode_msgpack(EntryPush(self.conversation_id, Raw(self._entry())))


def stamps_in(data: bytes) -> list[int]:
    """The time stamps of all pushes in ``data``."""
    found = data.split(STAMP)
    return [int(part[:STAMP_DIGITS]) for part in found[1:]]


def count_acks(data: bytes) -> tuple[int, int]:
    """SendAck frames at the beginning of ``data``, and the bytes they took. Raises BenchError at an ErrorReply."""
    acks = end = 0
    for _opcode, start, stop in server_frames(data):
        if data[start + 1] != 43:
            raise BenchError(f"the node answered a send with {data[start:stop]!r} instead of an acknowledgement")
        acks += 1
        end = stop
    return acks, end
