"""Parked connections: one epoll inside trio's epoll, one task for all of them.

A connection costs a task only while it is shaken hands with. After that its descriptor is in this level-triggered
epoll; one task waits for the epoll as a whole, drains what is ready in bounded slices and yields between them. What a
ready connection sent is decoded and handled by plain calls, in arrival order.
"""

import select
from collections.abc import Callable, Collection

import structlog
import trio

from gateway.edge.admission import Admission
from gateway.edge.connection import CLOSED, CLOSING, GONE, JSON, Connection, ConnectionTable
from gateway.edge.writer import READ, Writer
from gateway.pausing import PausableLoop
from protocol import limits
from protocol.errors import CloseCode
from protocol.websocket import (
    FrameError,
    FrameReader,
    Message,
    Opcode,
    encode_frame,
    parse_close,
    read_small_frame,
    read_whole_frames,
)

EVENTS_PER_SLICE = 64
"""Ready connections handled between two checkpoints: 64 commands of at most some 15 us each are about a millisecond."""

FRAMES_PER_SLICE = 512
"""Frames after which the next connection's turn waits for a checkpoint, however few connections sent them: some 8 ms.
Eight of each connection in a slice, as when all keep that many sends under way: with 128 a node took 59,000 of these a
second instead of 63,000, because a commit of the store got 190 of them instead of 760."""

READ_BYTES = 32_768
"""Bytes read from one connection before the next one's turn. A full frame takes two turns; a buffer of this size comes
from the heap instead of being mapped each time (``gateway.heap.MAPPED_BYTES``)."""

log = structlog.get_logger(__name__)

FrameHandler = Callable[[Connection, bytes], None]


class Parking:
    """Reads from parked connections.

    Attributes:
        frames: frames received, ever.
        reading: may be paused; what clients send waits in their sockets then, and so do send queues.
    """

    def __init__(
        self,
        table: ConnectionTable,
        epoll: select.epoll,
        writer: Writer,
        admission: Admission,
        on_frame: FrameHandler,
    ) -> None:
        self._table = table
        self._epoll = epoll
        self._writer = writer
        self._admission = admission
        self._on_frame = on_frame
        self._readers: dict[Connection, FrameReader] = {}
        self.reading = PausableLoop(self._read_for_ever)
        self.frames = 0

    @property
    def partial(self) -> int:
        """Connections of which a partial frame or message is held."""
        return len(self._readers)

    def park(self, connection: Connection) -> None:
        """Take over an open connection that the table knows."""
        self._epoll.register(connection.fd, READ)

    def adopt(self, connection: Connection, reader: FrameReader, messages: list[Message]) -> None:
        """Handle what was read from a parked connection before it was parked."""
        if reader.pending:
            self._readers[connection] = reader
        self._handle_messages(connection, messages)

    def forget(self, connection: Connection) -> None:
        """Drop the partial frame, if any, of a connection that is open no more."""
        self._readers.pop(connection, None)

    def partly_read(self) -> Collection[Connection]:
        """Connections of which a partial frame or message is held."""
        return self._readers.keys()

    def reader_of(self, connection: Connection) -> FrameReader | None:
        """What holds the partial frame or message of a connection, if there is one."""
        return self._readers.get(connection)

    def restore(self, connection: Connection, reader: FrameReader) -> None:
        """Give back the partial frame or message of a connection that another process began to read."""
        self._readers[connection] = reader

    async def run(self) -> None:
        """Serve for ever, but for pauses. A cancellation leaves the connections as they are, unread."""
        await self.reading.run()

    async def _read_for_ever(self) -> None:
        table, poll, by_fd = self._table, self._epoll.poll, self._table.by_fd
        epoll_fd = self._epoll.fileno()
        while True:
            await trio.lowlevel.wait_readable(epoll_fd)
            table.now = trio.current_time()
            frames_max = self.frames + FRAMES_PER_SLICE
            for fd, event in poll(0, EVENTS_PER_SLICE):
                if self.frames >= frames_max:
                    await trio.lowlevel.checkpoint()
                    table.now = trio.current_time()
                    frames_max = self.frames + FRAMES_PER_SLICE
                connection = by_fd[fd]  # perhaps another one by now: what it has sent, if anything, is read as well
                if connection is None:
                    continue  # closed earlier in this slice
                if event & select.EPOLLOUT:
                    self._writer.flush(connection)
                if event & ~select.EPOLLOUT and not connection.flags & CLOSED:
                    self._read(connection, fd)

    def _read(self, connection: Connection, fd: int) -> None:
        try:
            data = connection.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # reset by the peer, or timed out by the kernel
            self._writer.abort(connection)
            return
        if not data:
            self._writer.abort(connection)
            return
        if connection.flags & CLOSING:
            return  # nothing counts after our close frame
        self._table.heard_s[fd] = int(self._table.now)
        self._received(connection, data)

    def _received(self, connection: Connection, data: bytes) -> None:
        if connection not in self._readers and not connection.flags & JSON:
            payload = read_small_frame(data)
            if payload is not None:
                self._handle(connection, payload)
                return
            payloads = read_whole_frames(data)
            if payloads is not None:
                for payload in payloads:
                    if not connection.flags & GONE:
                        self._handle(connection, payload)
                return
        self._read_frames(connection, data)

    def _read_frames(self, connection: Connection, data: bytes) -> None:
        """Anything but whole binary frames: partial, fragmented, text, control, or broken ones."""
        reader = self._readers.pop(connection, None) or FrameReader(limits.COMMAND_BYTES_MAX, limits.FRAGMENTS_MAX)
        try:
            messages = reader.feed(data)
        except FrameError as error:
            self._handle_messages(connection, error.messages)
            self._writer.close(connection, error.close_code, str(error))
            return
        if reader.pending:
            self._readers[connection] = reader
        self._handle_messages(connection, messages)

    def _handle_messages(self, connection: Connection, messages: list[Message]) -> None:
        for message in messages:
            if connection.flags & GONE:
                return
            match message.opcode:
                case Opcode.BINARY | Opcode.TEXT:
                    if (message.opcode == Opcode.TEXT) != bool(connection.flags & JSON):
                        wanted = "text" if connection.flags & JSON else "binary"
                        self._writer.close(connection, CloseCode.UNSUPPORTED_DATA, f"send {wanted} messages")
                        return
                    self._handle(connection, message.payload)
                case Opcode.PING if not self._admission.wait_s(connection):  # else: it gets no pong
                    self._writer.write(connection, encode_frame(Opcode.PONG, message.payload))
                case Opcode.CLOSE:
                    code, _reason = parse_close(message.payload)
                    self._writer.close(connection, code if message.payload else CloseCode.NORMAL)
                case _:  # a pong was not asked for and means nothing (RFC 6455 section 5.5.3)
                    pass

    def _handle(self, connection: Connection, payload: bytes) -> None:
        self.frames += 1
        try:
            self._on_frame(connection, payload)
        except Exception:
            # As in Commands, for what fails before there is a command: one connection must not end the node.
            log.exception("frame failed", user=connection.user, connection=connection.fd)
            self._writer.close(connection, CloseCode.INTERNAL_ERROR, "a fault of the node, which has logged it")
