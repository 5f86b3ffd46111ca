"""An edge without a node: real non-blocking sockets with tiny buffers, parked by hand."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import trio

from gateway.config import Settings
from gateway.edge.admission import Admission
from gateway.edge.connection import JSON, Connection, ConnectionTable, plain_socket
from gateway.edge.hub import Hub
from gateway.edge.parking import Parking
from gateway.edge.writer import Writer
from protocol.codec import decode_server_frame
from protocol.websocket import encode_masked_frame, read_header

QUEUE_BYTES_MAX = 4096
QUEUE_AGE_MAX_S = 10.0


@dataclass
class Peer:
    """The client's end of one connection."""

    sock: socket.socket
    connection: Connection
    received: bytearray = field(default_factory=bytearray)

    def send(self, payload: bytes, opcode: int = 2) -> None:
        self.sock.send(encode_masked_frame(opcode, payload, b"\x01\x02\x03\x04"))

    def read(self) -> bytes:
        """Everything that is there now; ``ended`` tells whether the node closed."""
        while True:
            try:
                data = self.sock.recv(65536)
            except BlockingIOError:
                break
            except ConnectionResetError:
                break
            if not data:
                break
            self.received += data
        return bytes(self.received)

    @property
    def ended(self) -> bool:
        self.read()
        try:
            return self.sock.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def ws_frames(self) -> list[tuple[int, bytes]]:
        """(opcode, payload) of each complete ws frame received so far."""
        data, frames = self.read(), []
        while data:
            header = read_header(data)
            if header is None or len(data) < header.header_bytes + header.payload_bytes:
                break
            end = header.header_bytes + header.payload_bytes
            frames.append((header.opcode, data[header.header_bytes : end]))
            data = data[end:]
        return frames

    def frames(self) -> list[object]:
        return [decode_server_frame(payload, json=opcode == 1) for opcode, payload in self.ws_frames() if opcode < 8]

    def close_code(self) -> int | None:
        codes = [int.from_bytes(payload[:2], "big") for opcode, payload in self.ws_frames() if opcode == 8]
        return codes[-1] if codes else None


class Edge:
    """Table, writer, hub and parking, wired as a node wires them."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.table = ConnectionTable()
        self.writer = Writer(self.table, self.epoll, queue_bytes_max=QUEUE_BYTES_MAX, queue_age_max_s=QUEUE_AGE_MAX_S)
        self.hub = Hub(self.table, self.writer, devices_per_user_max=32)
        self.admission = Admission(Settings(commands_per_s_max=0), self.table)
        self.handled: list[tuple[Connection, bytes]] = []
        self.parking = Parking(self.table, self.epoll, self.writer, self.admission, self.handle)
        self.writer.on_gone = self.gone
        self.gone_connections: list[Connection] = []
        self.sockets: list[socket.socket] = []

    def handle(self, connection: Connection, payload: bytes) -> None:
        self.handled.append((connection, payload))

    def gone(self, connection: Connection) -> None:
        self.gone_connections.append(connection)
        self.hub.remove(connection)
        self.parking.forget(connection)

    def connect(
        self,
        user: str,
        device: int | None = None,
        *,
        json: bool = False,
        ends_s: float = 1e9,
        buffer: int | None = None,
        leaves: bool = False,
    ) -> Peer:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.setblocking(False)
        if buffer is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        if leaves:
            theirs.shutdown(socket.SHUT_WR)
        connection = Connection(plain_socket(ours), user, JSON if json else 0)
        self.table.insert(connection, ends_s=ends_s, device_key=len(self.sockets) if device is None else device)
        self.parking.park(connection)
        self.hub.add(connection)
        self.sockets.append(theirs)
        return Peer(theirs, connection)

    async def settle(self) -> None:
        """Run the loops until there is nothing left to do."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.parking.run)
            nursery.start_soon(self.hub.fanout.run)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        self.hub.on_departure = lambda _user: None  # there is no trio any more in which it could look at the clock
        for connection in list(self.table.by_fd):
            if connection is not None:
                self.writer.abort(connection)
        for sock in self.sockets:
            sock.close()
        self.epoll.close()


@pytest.fixture
def edge() -> Iterator[Edge]:
    made = Edge()
    yield made
    made.close()
    assert made.table.count == 0
    assert made.writer.bytes_queued == 0
    assert not made.hub.by_user
