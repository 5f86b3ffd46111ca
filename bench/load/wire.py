"""A client's side of RFC 6455, as bytes made ahead of time.

Frames are masked with the key 0, which the RFC allows and which leaves the payload readable: a generator can then
write a number into a finished frame. A node unmasks them like any other.
"""

import base64
import struct
from collections.abc import Iterator

_KEY = base64.b64encode(bytes(range(16))).decode()


def upgrade_request(host: str, port: int, path: str = "/", *, token: str = "", subprotocol: str = "") -> bytes:
    """A WebSocket handshake as a native client sends it, with ``token`` as bearer."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {_KEY}",
        "Sec-WebSocket-Version: 13",
    ]
    if subprotocol:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    if token:
        lines.append(f"Authorization: Bearer {token}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def client_frame(payload: bytes, opcode: int = 2) -> bytes:
    """One complete ws frame from a client, mask key 0."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 65_536:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + bytes(4) + payload


def server_frame_bytes(payload_bytes: int) -> int:
    """Size on the wire of a server's frame with so many bytes of payload."""
    if payload_bytes < 126:
        return 2 + payload_bytes
    return payload_bytes + (4 if payload_bytes < 65_536 else 10)


def payload_of(frame_bytes: int) -> int:
    """Bytes of payload that make a server's frame of ``frame_bytes`` bytes."""
    for head in (2, 4, 10):
        if server_frame_bytes(frame_bytes - head) == frame_bytes:
            return frame_bytes - head
    raise ValueError(f"no server frame has {frame_bytes} bytes")


def server_frames(data: bytes | bytearray | memoryview) -> Iterator[tuple[int, int, int]]:
    """Complete frames of a server at the beginning of ``data``: opcode, start and end of each payload."""
    at, have = 0, len(data)
    while have - at >= 2:
        size, start = data[at + 1], at + 2
        if size == 126:
            start += 2
            if have < start:
                return
            size = int.from_bytes(data[at + 2 : start], "big")
        elif size == 127:
            start += 8
            if have < start:
                return
            size = int.from_bytes(data[at + 2 : start], "big")
        if have < start + size:
            return
        yield data[at] & 0x0F, start, start + size
        at = start + size


def unread_from(data: bytes | bytearray) -> int:
    """Where the last complete frame of ``data`` ends."""
    end = 0
    for _opcode, _start, stop in server_frames(data):
        end = stop
    return end
