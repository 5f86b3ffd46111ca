"""Bytes out: straight to the socket; a send queue only while the socket is full; the close handshake.

A slow consumer is given ``send_queue_bytes_max`` and ``send_queue_age_max_s``; then everything that it has not begun
to receive is dropped, it is closed with ``SLOW_CONSUMER``, and its sync brings what was dropped.
"""

import os
import select
import socket
from collections import deque
from collections.abc import Callable
from itertools import islice

from gateway.edge.connection import CLOSING, QUEUED, Connection, ConnectionTable
from protocol.errors import CloseCode
from protocol.websocket import encode_close

CLOSE_LINGER_S = 5.0
"""Seconds that a closing connection may take to read the close frame and to answer it."""

WRITEV_CHUNKS_MAX = 256
"""Chunks given to one writev: below IOV_MAX (1,024), and enough to fill any socket buffer."""

READ = select.EPOLLIN
READ_WRITE = select.EPOLLIN | select.EPOLLOUT


class SendQueue:
    """What waits for one full socket. The first chunk may have been sent in part (``begun``)."""

    __slots__ = ("begun", "chunks", "size")

    def __init__(self) -> None:
        self.chunks: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.begun = False

    def append(self, now: float, data: bytes) -> None:
        """Add bytes that arrived at ``now`` (seconds)."""
        self.chunks.append((now, data))
        self.size += len(data)

    def age(self, now: float) -> float:
        """Seconds that the oldest bytes have waited."""
        return now - self.chunks[0][0] if self.chunks else 0.0

    def consume(self, count: int) -> None:
        """Drop ``count`` sent bytes from the front."""
        self.size -= count
        while count:
            since, data = self.chunks.popleft()
            if count < len(data):
                self.chunks.appendleft((since, data[count:]))
                self.begun = True
                return
            count -= len(data)
            self.begun = False

    def drop_unbegun(self) -> None:
        """Keep only the chunk that the peer has begun to receive: cutting it would break the framing."""
        while len(self.chunks) > int(self.begun):
            self.size -= len(self.chunks.pop()[1])


class Writer:
    """Writes to connections and closes them. All plain calls.

    Attributes:
        on_gone: called with a connection that has just left the open state, before its descriptor is closed.
        bytes_queued: bytes in all send queues.
        slow_consumers: connections closed for being slow, ever.
    """

    def __init__(
        self, table: ConnectionTable, epoll: select.epoll, *, queue_bytes_max: int, queue_age_max_s: float
    ) -> None:
        self._table = table
        self._epoll = epoll
        self._queue_bytes_max = queue_bytes_max
        self._queue_age_max_s = queue_age_max_s
        self._queues: dict[Connection, SendQueue] = {}
        self._closing: dict[Connection, float] = {}
        self.on_gone: Callable[[Connection], None] = lambda _connection: None
        self.bytes_queued = 0
        self.slow_consumers = 0
        self.closed_by_code: dict[int, int] = {}

    def write(self, connection: Connection, data: bytes) -> None:
        """Send whole ws frames, or queue them. A connection that is closing or closed gets nothing."""
        if connection.flags & CLOSING or connection.fd < 0:
            return
        if connection.flags & QUEUED:
            self._enqueue(connection, data)
            return
        try:
            sent = os.write(connection.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abort(connection)
            return
        if sent != len(data):
            self.take_rest(connection, data, sent)

    def take_rest(self, connection: Connection, data: bytes, sent: int) -> None:
        """Queue what a write of ``data`` left over after ``sent`` bytes."""
        queue = self._queues[connection] = SendQueue()
        connection.flags |= QUEUED
        self._epoll.modify(connection.fd, READ_WRITE)
        queue.append(self._table.now, data)
        self.bytes_queued += len(data) - sent
        if sent:
            queue.consume(sent)

    def _enqueue(self, connection: Connection, data: bytes) -> None:
        queue = self._queues[connection]
        if queue.size + len(data) > self._queue_bytes_max:
            self._close_slow(connection)
            return
        queue.append(self._table.now, data)
        self.bytes_queued += len(data)

    def flush(self, connection: Connection) -> None:
        """Send from the queue of a connection whose socket has room again."""
        queue = self._queues.get(connection)
        if queue is None:
            return
        try:
            sent = os.writev(connection.fd, [data for _, data in islice(queue.chunks, WRITEV_CHUNKS_MAX)])
        except BlockingIOError:
            return
        except OSError:
            self.abort(connection)
            return
        queue.consume(sent)
        self.bytes_queued -= sent
        if not queue.chunks:
            self._drop_queue(connection)
            self._epoll.modify(connection.fd, READ)
            if connection.flags & CLOSING:
                self._shut_down(connection)

    def _drop_queue(self, connection: Connection) -> None:
        queue = self._queues.pop(connection, None)
        if queue is not None:
            self.bytes_queued -= queue.size
            connection.flags &= ~QUEUED

    def _close_slow(self, connection: Connection) -> None:
        self.slow_consumers += 1
        self.close(connection, CloseCode.SLOW_CONSUMER, "send queue full: reconnect and sync")

    def close(self, connection: Connection, code: int, reason: str = "") -> None:
        """Begin the close handshake (RFC 6455 section 7.1.2): open becomes closing. Does nothing in other states."""
        if connection.flags & CLOSING or connection.fd < 0:
            return
        self.on_gone(connection)
        self.closed_by_code[code] = self.closed_by_code.get(code, 0) + 1
        frame = encode_close(code, reason)
        queue = self._queues.get(connection)
        if queue is not None:
            self.bytes_queued -= queue.size
            queue.drop_unbegun()
            queue.append(self._table.now, frame)
            self.bytes_queued += queue.size
        else:
            self.write(connection, frame)
        if connection.fd < 0:
            return  # the write found it broken
        connection.flags |= CLOSING
        self._closing[connection] = self._table.now + CLOSE_LINGER_S
        if not connection.flags & QUEUED:
            self._shut_down(connection)

    def _shut_down(self, connection: Connection) -> None:
        """No more bytes from us: the peer sees the close frame, then the end; its own end is awaited by reading."""
        sock = socket.socket(fileno=connection.fd)
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.detach()
            self.abort(connection)
        else:
            sock.detach()

    def abort(self, connection: Connection) -> None:
        """Close the descriptor now: the socket is broken, at its end, or out of time. Any state becomes closed."""
        if connection.fd < 0:
            return
        if not connection.flags & CLOSING:
            self.on_gone(connection)
        self._drop_queue(connection)
        self._closing.pop(connection, None)
        self._table.remove(connection)
        fd, connection.fd = connection.fd, -1
        os.close(fd)  # leaves the epoll by itself: nothing else refers to the socket

    def sweep(self, now: float) -> None:
        """Once a second: end slow consumers by age and closing connections by their deadline."""
        for connection in [c for c, q in self._queues.items() if q.age(now) > self._queue_age_max_s]:
            if not connection.flags & CLOSING:
                self._close_slow(connection)
        for connection in [c for c, deadline in self._closing.items() if now >= deadline]:
            self.abort(connection)
