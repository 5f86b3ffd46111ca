"""A connection of bare bytes to a node: what is sent over it may be as wrong, or as slow, as a fault likes."""

import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from bench.torture.node import PORT, TrialNode
from protocol.frames import SUBPROTOCOL
from protocol.websocket import Opcode, encode_masked_frame, parse_close, read_header

UPGRADE_TIMEOUT_S: Final = 15.0
"""Seconds that a node may take to grant an upgrade, and to close: more than ever seen on a busy machine."""


class NotUpgraded(Exception):
    """The node did not grant the upgrade; the message is its status line."""


class RawConnection:
    """A WebSocket, byte by byte."""

    def __init__(self, stream: trio.SocketStream, rest: bytes) -> None:
        self.stream = stream
        self._data = bytearray(rest)

    async def send_message(self, payload: bytes) -> None:
        """One well-formed binary message."""
        await self.stream.send_all(encode_masked_frame(Opcode.BINARY, payload, os.urandom(4)))

    async def close_code(self) -> int:
        """Read until the node closes: its code, 0 if it ended without one. Raises trio.TooSlowError."""
        with trio.fail_after(UPGRADE_TIMEOUT_S):
            while True:
                frame = self._take()
                if frame is None:
                    try:
                        chunk = await self.stream.receive_some(65_536)
                    except trio.BrokenResourceError:
                        return 0
                    if not chunk:
                        return 0
                    self._data += chunk
                elif frame[0] == Opcode.CLOSE:
                    return parse_close(frame[1])[0]

    def _take(self) -> tuple[int, bytes] | None:
        header = read_header(self._data)
        if header is None or len(self._data) < header.header_bytes + header.payload_bytes:
            return None
        end = header.header_bytes + header.payload_bytes
        payload = bytes(self._data[header.header_bytes : end])
        del self._data[:end]
        return header.opcode, payload


@asynccontextmanager
async def upgraded(
    node: TrialNode, token: str, device: str, receive_buffer_bytes: int = 0
) -> AsyncIterator[RawConnection]:
    """A connection of a user to the node itself, past its proxy; ``receive_buffer_bytes`` 0 leaves it to the system.

    Raises:
        NotUpgraded: the node said no, or not within UPGRADE_TIMEOUT_S seconds.
        OSError: the node cannot be reached.
    """
    sock = trio.socket.socket()
    if receive_buffer_bytes:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer_bytes)
    try:
        await sock.connect((node.host, PORT))
    except BaseException:
        sock.close()
        raise
    async with trio.SocketStream(sock) as stream:
        yield RawConnection(stream, await _upgrade(stream, token, device))


def upgrade_request(token: str, device: str) -> bytes:
    """A good upgrade request."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET /v1/connect?device={device} HTTP/1.1\r\nHost: torture\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    ).encode()


async def _upgrade(stream: trio.SocketStream, token: str, device: str) -> bytes:
    """Ask for the upgrade; what came behind the answer."""
    data = b""
    with trio.move_on_after(UPGRADE_TIMEOUT_S):
        try:
            await stream.send_all(upgrade_request(token, device))
            while b"\r\n\r\n" not in data:
                chunk = await stream.receive_some(65_536)
                if not chunk:
                    break
                data += chunk
        except trio.BrokenResourceError:
            raise NotUpgraded("the connection was reset") from None
    head, ended, rest = data.partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].decode("latin-1")
    if not ended or not status.startswith("HTTP/1.1 101"):
        raise NotUpgraded(status or "no answer")
    return rest
