"""Frames to ws frames, once for all who get the same bytes."""

from collections.abc import Sequence

from msgspec import Raw

from gateway.broker import Origin
from gateway.edge.connection import Connection
from protocol.codec import encode_msgpack, to_json
from protocol.frames import EntryPush, Push, Reply
from protocol.websocket import Opcode, encode_frame

BINARY = int(Opcode.BINARY)
TEXT = int(Opcode.TEXT)


def encode_for(frame: Reply | Push, *, json: bool) -> bytes:
    """One ws frame with ``frame`` in the connection's subprotocol."""
    payload = encode_msgpack(frame)
    return encode_frame(TEXT, to_json(payload)) if json else encode_frame(BINARY, payload)


class PushBatch:
    """The ws frames of the pushes that one delivery makes, joined for one write.

    Attributes:
        joined: all of them, msgpack: what nearly every connection gets.
        origins: connections that sent some of the entries themselves and are not to get those back.
        arrived_s: when the oldest of the sends arrived, seconds of the node's clock; 0 when unknown.
    """

    __slots__ = ("_frames", "_json", "_origins_by_entry", "_payloads", "arrived_s", "joined", "origins")

    def __init__(
        self, conversation_id: str, entries: Sequence[bytes], origins: Sequence[Origin | None], arrived_s: float = 0.0
    ) -> None:
        self._payloads = [encode_msgpack(EntryPush(conversation_id, Raw(entry))) for entry in entries]
        self._frames = [encode_frame(BINARY, payload) for payload in self._payloads]
        self._json: list[bytes] | None = None
        self._origins_by_entry = origins
        self.joined = self._frames[0] if len(self._frames) == 1 else b"".join(self._frames)
        self.origins = [origin for origin in set(origins) if type(origin) is Connection]
        self.arrived_s = arrived_s

    def for_connection(self, connection: object, *, json: bool) -> bytes:
        """What this one connection gets: its subprotocol, without the entries that it sent. May be empty."""
        frames = self._frames
        if json:
            if self._json is None:
                self._json = [encode_frame(TEXT, to_json(payload)) for payload in self._payloads]
            frames = self._json
        return b"".join(
            frame for frame, origin in zip(frames, self._origins_by_entry, strict=True) if origin is not connection
        )
