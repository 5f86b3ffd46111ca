"""Bytes out: straight to the socket; a send queue only while the socket is full; the close handshake.

A slow consumer is given ``send_queue_bytes_max`` and ``send_queue_age_max_s``; then everything that it has not begun
to receive is dropped, it is closed with ``SLOW_CONSUMER``, and its sync brings what was dropped.
"""

import select
from collections import deque
from collections.abc import Callable, Collection
from itertools import islice
from socket import SHUT_WR

import structlog

from gateway.edge.connection import CLOSED, CLOSING, GONE, QUEUED, Connection, ConnectionTable
from protocol.errors import CloseCode
from protocol.websocket import encode_close

CLOSE_LINGER_S = 5.0
"""Seconds that a closing connection may take to read the close frame and to answer it."""

SENDMSG_CHUNKS_MAX = 256
"""Chunks given to one sendmsg: below IOV_MAX (1,024), and enough to fill any socket buffer."""

CHUNK_BYTES = 160
"""Bytes that a queued chunk takes besides its content (objects and references, CPython 3.11): many tiny replies must
not take many times what the limit says."""

HELD_BYTES_MAX = 16_384
"""Bytes held back for one connection until they are written, full or not: what its socket does not take shows soon
enough for ``send_queue_bytes_max``, and adding to what is held copies little. Some hundred acknowledgements."""

ENDINGS_PER_SWEEP = 100
"""Connections ended by one look at the deadlines: about a millisecond."""

READ = select.EPOLLIN
READ_WRITE = select.EPOLLIN | select.EPOLLOUT

log = structlog.get_logger(__name__)

KNOWN_CODES = frozenset(int(code) for code in CloseCode)


class SendQueue:
    """What waits for one full socket. The first chunk may have been sent in part (``begun``).

    Attributes:
        size: bytes that it takes, CHUNK_BYTES a chunk included.
        since: when it last got smaller, seconds. Sockets take what is large when they have room, so that a client
            which reads steadily, however slowly, lets it grow no older than that takes.
    """

    __slots__ = ("begun", "chunks", "since", "size")

    def __init__(self, now: float) -> None:
        self.chunks: deque[bytes] = deque()
        self.size = 0
        self.since = now
        self.begun = False

    def append(self, data: bytes) -> None:
        """Add bytes at the end."""
        self.chunks.append(data)
        self.size += len(data) + CHUNK_BYTES

    def consume(self, count: int, now: float) -> None:
        """Drop ``count`` sent bytes from the front."""
        self.since = now
        self.size -= count
        while count:
            data = self.chunks.popleft()
            if count < len(data):
                self.chunks.appendleft(data[count:])
                self.begun = True
                return
            count -= len(data)
            self.size -= CHUNK_BYTES
            self.begun = False

    def drop_unbegun(self) -> None:
        """Keep only the chunk that the peer has begun to receive: cutting it would break the framing."""
        while len(self.chunks) > int(self.begun):
            self.size -= len(self.chunks.pop()) + CHUNK_BYTES


class _Together:
    """A context that may be entered anew inside itself; what is held is written at the end of the outermost."""

    __slots__ = ("_write_held", "depth")

    def __init__(self, write_held: Callable[[], None]) -> None:
        self._write_held = write_held
        self.depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if not self.depth:
            self._write_held()


class Writer:
    """Writes to connections and closes them. All plain calls.

    Attributes:
        together: as a context, holds back what is written until its end, or until it is HELD_BYTES_MAX for one
            connection. A client's acknowledgements and deliveries then take one system call instead of one each, and
            many of these calls in a row find the kernel's code and the interpreter's each in the processor's cache.
            (Measured with 500 pairs: 59,000 instead of 44,000 sends a second where eight of each sender are under way.)
        on_gone: called with a connection that has just left the open state, before its descriptor is closed.
        bytes_queued: bytes in all send queues.
        slow_consumers: connections closed for being slow, ever.
        closed_by_code: connections closed by close code, ever; codes of the peers' own count under 0.
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
        self._held: dict[Connection, bytes] = {}
        self._held_bytes_max = min(HELD_BYTES_MAX, queue_bytes_max)
        self.together = _Together(self.write_held)
        self._awaiting_room: dict[Connection, list[Callable[[], None]]] = {}
        self.on_gone: Callable[[Connection], None] = lambda _connection: None
        self.bytes_queued = 0
        self.slow_consumers = 0
        self.closed_by_code: dict[int, int] = {}

    def write(self, connection: Connection, data: bytes) -> None:
        """Send whole ws frames, or queue them. A connection that is closing or closed gets nothing."""
        if self.together.depth and not connection.flags & (GONE | QUEUED):
            held = self._held.get(connection)
            if held is None:
                self._held[connection] = data
            elif len(held) + len(data) <= self._held_bytes_max:
                self._held[connection] = held + data
            else:
                del self._held[connection]
                self._write_now(connection, held)
                self.write(connection, data)
        else:
            self._write_now(connection, data)

    def write_held(self) -> None:
        """Send now what is held back to be written together: before something is sent past ``write``."""
        held, self._held = self._held, {}
        for connection, data in held.items():
            self._write_now(connection, data)

    def _write_now(self, connection: Connection, data: bytes) -> None:
        """Send, or queue. What goes wrong ends this connection alone: it comes back, and its sync brings the data."""
        try:
            if connection.flags & (GONE | QUEUED):
                if not connection.flags & GONE:
                    self._enqueue(connection, data)
                return
            try:
                sent = connection.sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent != len(data):
                self.take_rest(connection, data, sent)
        except OSError:
            self.abort(connection)
        except Exception:
            # Our bug, logged whole. Who is written to next must not miss what was acknowledged because of it.
            log.exception("write failed", user=connection.user)
            self.abort(connection)

    def take_rest(self, connection: Connection, data: bytes, sent: int) -> None:
        """Queue what a write of ``data`` left over after ``sent`` bytes."""
        queue = SendQueue(self._table.now)
        queue.append(data)
        if sent:
            queue.consume(sent, self._table.now)
        self._queues[connection] = queue
        connection.flags |= QUEUED
        self.bytes_queued += queue.size
        self._await(connection, READ_WRITE)

    def _await(self, connection: Connection, events: int) -> None:
        """Be told by the epoll of these events from now on; a connection that it does not take would wait for ever."""
        try:
            self._epoll.modify(connection.fd, events)
        except OSError as error:
            log.error("connection not watched", error=str(error))
            self.abort(connection)

    def _enqueue(self, connection: Connection, data: bytes) -> None:
        queue = self._queues[connection]
        if queue.size + len(data) + CHUNK_BYTES > self._queue_bytes_max:
            self._close_slow(connection)
            return
        queue.append(data)
        self.bytes_queued += len(data) + CHUNK_BYTES

    def when_room(self, connection: Connection, then: Callable[[], None]) -> None:
        """Call ``then`` once nothing is queued for an open connection, perhaps at once; never if it ends before."""
        if connection.flags & GONE:
            return
        if connection.flags & QUEUED:
            self._awaiting_room.setdefault(connection, []).append(then)
        else:
            then()

    def flush(self, connection: Connection) -> None:
        """Send from the queue of a connection whose socket has room again."""
        queue = self._queues.get(connection)
        if queue is None:
            return
        try:
            sent = connection.sock.sendmsg(list(islice(queue.chunks, SENDMSG_CHUNKS_MAX)))
        except BlockingIOError:
            return
        except OSError:
            self.abort(connection)
            return
        self.bytes_queued -= queue.size
        queue.consume(sent, self._table.now)
        self.bytes_queued += queue.size
        if not queue.chunks:
            self._drop_queue(connection)
            self._await(connection, READ)
            if connection.flags & CLOSED:
                return
            if connection.flags & CLOSING:
                self._shut_down(connection)
            for then in self._awaiting_room.pop(connection, ()):
                then()

    def release_waiting(self) -> None:
        """Make all calls that wait for room, although there is none: who waited has to give up, and to say so."""
        waiting, self._awaiting_room = self._awaiting_room, {}
        for calls in waiting.values():
            for then in calls:
                then()

    # --- Upgrade ------------------------------------------------------------------------------------------------

    def queued(self) -> Collection[Connection]:
        """Connections with a send queue."""
        return self._queues.keys()

    def queue_of(self, connection: Connection) -> SendQueue | None:
        """What waits for a full socket, if anything does."""
        return self._queues.get(connection)

    def closing(self) -> dict[Connection, float]:
        """The closing connections, and when each is cut off, seconds."""
        return dict(self._closing)

    def restore_queue(self, connection: Connection, queue: SendQueue) -> None:
        """Give back what waits for a socket, of a connection that another process began to send it to."""
        self._queues[connection] = queue
        connection.flags |= QUEUED
        self.bytes_queued += queue.size
        self._await(connection, READ_WRITE)

    def restore_closing(self, connection: Connection, deadline: float) -> None:
        """Go on closing a connection to which another process has written the close frame, or queued it."""
        connection.flags |= CLOSING
        self._closing[connection] = deadline

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
        held = self._held.pop(connection, None)
        if held is not None:
            self._write_now(connection, held)
        if connection.flags & GONE:
            return
        self._leave(connection)
        self.count_close(code)
        frame = encode_close(code, reason)
        queue = self._queues.get(connection)
        if queue is not None:
            self.bytes_queued -= queue.size
            queue.drop_unbegun()
            queue.append(frame)
            self.bytes_queued += queue.size
        else:
            self._write_now(connection, frame)
        if connection.flags & CLOSED:
            return  # the write found it broken
        connection.flags |= CLOSING
        self._closing[connection] = self._table.now + CLOSE_LINGER_S
        if not connection.flags & QUEUED:
            self._shut_down(connection)

    def count_close(self, code: int) -> None:
        """Count a close, of a connection or of a WebSocket that did not become one."""
        # A peer may close with thousands of codes of its own; each would be a time series.
        label = int(code) if code in KNOWN_CODES else 0
        self.closed_by_code[label] = self.closed_by_code.get(label, 0) + 1

    def _leave(self, connection: Connection) -> None:
        self._awaiting_room.pop(connection, None)
        self.on_gone(connection)

    def _shut_down(self, connection: Connection) -> None:
        """No more bytes from us: the peer sees the close frame, then the end; its own end is awaited by reading."""
        try:
            connection.sock.shutdown(SHUT_WR)
        except OSError:
            self.abort(connection)

    def abort(self, connection: Connection) -> None:
        """Close the descriptor now: the socket is broken, at its end, or out of time. Any state becomes closed."""
        if connection.flags & CLOSED:
            return
        if not connection.flags & CLOSING:
            self._leave(connection)
        self._held.pop(connection, None)
        self._drop_queue(connection)
        self._closing.pop(connection, None)
        self._table.remove(connection)
        connection.flags |= CLOSED
        connection.sock.close()  # leaves the epoll by itself: nothing else refers to the socket

    def sweep(self, now: float) -> bool:
        """Once a second: end slow consumers by age and closing connections by their deadline; True if there are more.

        Ends a bounded number at a time, so that a crowd that ends together keeps nobody waiting.
        """
        old = [
            connection
            for connection, queue in self._queues.items()
            if queue.since < now - self._queue_age_max_s and not connection.flags & CLOSING
        ]
        for connection in old[:ENDINGS_PER_SWEEP]:
            self._close_slow(connection)
        overdue = [
            connection
            for connection, deadline in islice(self._closing.items(), ENDINGS_PER_SWEEP)  # the oldest come first
            if now >= deadline
        ]
        for connection in overdue:
            self.abort(connection)
        return len(old) > ENDINGS_PER_SWEEP or len(overdue) == ENDINGS_PER_SWEEP
