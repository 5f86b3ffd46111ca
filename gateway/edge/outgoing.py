"""Frames to ws frames, once for all who get the same bytes."""

from msgspec import Raw

from gateway.broker import Delivery
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

    __slots__ = ("_conversation_id", "_entries", "_frames", "_json", "_origins", "arrived_s", "joined", "origins")

    def __init__(self, delivery: Delivery) -> None:
        self._conversation_id = delivery.conversation_id
        self._entries = delivery.entries
        self._origins = delivery.origins
        self._json: list[bytes] | None = None
        self._frames = self._encode(json=False)
        self.joined = b"".join(self._frames)
        self.origins = [origin for origin in set(delivery.origins) if type(origin) is Connection]
        self.arrived_s = delivery.arrived_s

    def _encode(self, *, json: bool) -> list[bytes]:
        return [encode_for(EntryPush(self._conversation_id, Raw(entry)), json=json) for entry in self._entries]

    def for_connection(self, connection: object, *, json: bool) -> bytes:
        """What this one connection gets: its subprotocol, without the entries that it sent. May be empty."""
        origins = self._origins
        if len(origins) == 1 and origins[0] is connection:
            return b""
        if json:
            frames = self._json = self._json or self._encode(json=True)
        else:
            frames = self._frames
        return b"".join(frame for frame, origin in zip(frames, origins, strict=True) if origin is not connection)
