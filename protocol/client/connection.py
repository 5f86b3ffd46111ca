"""One live connection: commands out, replies to whoever asked, pushes to the session, heartbeats in between."""

import logging
from collections import deque
from collections.abc import Callable

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from protocol import limits
from protocol.client.backoff import Backoff
from protocol.client.endings import ConnectionEnded, Ending
from protocol.client.errors import ConnectionLost, Refused
from protocol.codec import encode_msgpack
from protocol.errors import ErrorCode
from protocol.frames import Command, ErrorReply, Ping, Reply, SyncPage, Welcome

log = logging.getLogger("tidegate.client")

Answered = Callable[[Reply | None], None]
"""Takes the reply to a command, each page where there are several; None when the connection was lost first."""


class Connection:
    """An authenticated connection, as the other parts of the client use it."""

    def __init__(self, welcome: Welcome) -> None:
        self.welcome = welcome
        self.go_away_at = 0.0
        self._outgoing: deque[bytes] = deque()
        self._written = trio.Event()
        self._waiting: dict[int, Answered] = {}
        self._asked = trio.Event()
        self._last_id = 0
        self._ended = False

    @property
    def awaited(self) -> bool:
        """Does anybody wait for a reply?"""
        return bool(self._waiting)

    async def wait_asked(self) -> None:
        """Wait until somebody waits for a reply. Cancelling leaves nothing behind."""
        while not self._waiting:
            if self._asked.is_set():
                self._asked = trio.Event()
            await self._asked.wait()

    def ask(self, command: Callable[[int], Command], answered: Answered) -> int:
        """Send the command made for a request id; ``answered`` is called from the task that reads.

        Returns the request id, for ``give_up``.

        Raises:
            Refused: the command is larger than a node takes.
            ConnectionLost: the connection has ended.
        """
        request_id = self._next_id()
        self.post(command(request_id))
        self._waiting[request_id] = answered
        self._asked.set()
        return request_id

    def give_up(self, request_id: int) -> None:
        """Nobody waits for this reply any more; it is ignored when it comes."""
        self._waiting.pop(request_id, None)

    def post(self, command: Command) -> None:
        """Send a command; a reply to it is ignored. Raises as ``ask``."""
        if self._ended:
            raise ConnectionLost("the connection has ended")
        data = encode_msgpack(command)
        if len(data) > limits.COMMAND_BYTES_MAX:
            text = f"the command takes {len(data):,} bytes, no more than {limits.COMMAND_BYTES_MAX:,} are allowed"
            raise Refused(ErrorCode.TOO_LONG, text)
        self._outgoing.append(data)
        self._written.set()

    async def call(self, command: Callable[[int], Command], on_reply: Callable[[Reply], None] | None = None) -> Reply:
        """Send a command and wait for its reply (the last page where there are several).

        ``on_reply`` sees each page at once, in order with the pushes around it. Cancelling gives the reply up; the
        command may be carried out all the same.

        Raises:
            Refused: the node said no.
            ConnectionLost: no reply came.
        """
        done = trio.Event()
        last: list[Reply | None] = []

        def answered(reply: Reply | None) -> None:
            if reply is not None and on_reply is not None:
                on_reply(reply)
            if not isinstance(reply, SyncPage) or reply.done:
                last.append(reply)
                done.set()

        request_id = self.ask(command, answered)
        try:
            await done.wait()
        finally:
            self.give_up(request_id)
        reply = last[0]
        if reply is None:
            raise ConnectionLost("the connection ended before the reply came")
        if isinstance(reply, ErrorReply):
            raise RefusedNow(reply)
        return reply

    async def insist(self, command: Callable[[int], Command], on_reply: Callable[[Reply], None] | None = None) -> Reply:
        """``call``, again and again while the node refuses with an error that may pass. Cancelling is safe as there.

        Raises:
            RefusedNow: the node said no for good.
            ConnectionLost: no reply came.
        """
        backoff = Backoff()
        while True:
            try:
                return await self.call(command, on_reply)
            except RefusedNow as refused:
                if not refused.retry:
                    raise
                await trio.sleep(max(refused.retry_after_s, backoff.fail()))

    def take_reply(self, reply: Reply) -> None:
        """Hand a reply to whoever asked."""
        if isinstance(reply, SyncPage) and not reply.done:
            answered = self._waiting.get(reply.id)
        else:
            answered = self._waiting.pop(reply.id, None)
        if answered is not None:
            answered(reply)
        elif isinstance(reply, ErrorReply):
            log.warning("a command without a waiting caller was refused: error %d, %s", reply.code, reply.message)

    def lose(self) -> None:
        """The connection has ended: tell all who wait."""
        self._ended = True
        waiting, self._waiting = self._waiting, {}
        for answered in waiting.values():
            answered(None)

    async def write(self, websocket: WebSocketConnection) -> None:
        """Write what is sent, in order, until cancelled.

        Only this task writes, so that a cancelled caller never leaves half a frame on the stream.
        """
        while True:
            while self._outgoing:
                with trio.move_on_after(self.welcome.idle_timeout_s) as patience:
                    try:
                        await websocket.send_message(self._outgoing.popleft())
                    except ConnectionClosed:
                        return  # the task that reads comes to the same end, after what had arrived before it
                if patience.cancelled_caught:
                    raise ConnectionEnded(Ending("backoff", "the node has stopped reading"))
            self._written = trio.Event()
            await self._written.wait()

    async def beat(self) -> None:
        """Send a heartbeat at the interval that the node asked for, until cancelled."""
        while True:
            await trio.sleep(self.welcome.heartbeat_interval_s)
            self.post(Ping(self._next_id()))

    def _next_id(self) -> int:
        while True:
            self._last_id = self._last_id % (2**32 - 1) + 1
            if self._last_id not in self._waiting:
                return self._last_id


class RefusedNow(Refused):
    """A Refused with the node's advice when to repeat the command, in seconds."""

    def __init__(self, reply: ErrorReply) -> None:
        super().__init__(reply.code, reply.message)
        self.retry_after_s = reply.retry_after_ms / 1000
