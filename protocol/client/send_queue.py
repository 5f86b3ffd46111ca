"""Messages on their way to the node: the one owner of retries, which outlives reconnects and, with a file, restarts.

Each message keeps its client_msg_id for life, so repeating it is safe. Messages of one conversation go out one after
the other, each when the one before is settled: that keeps their order whatever is refused or lost. Conversations do
not wait for each other.
"""

import heapq
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import msgspec
import trio

from protocol import limits
from protocol.client.backoff import Backoff
from protocol.client.connection import Connection
from protocol.client.errors import (
    ClientClosed,
    ClientError,
    Refused,
    SendExpired,
    SendQueueFull,
    SendRefused,
    StateFileError,
)
from protocol.client.events import Event, MessageNotSent, MessageSent
from protocol.client.state_file import Changes, SavedMessage, StateFile
from protocol.codec import InvalidFrame, decode_command, encode_msgpack
from protocol.errors import ErrorCode
from protocol.frames import ErrorReply, Reply, Send, SendAck

IN_FLIGHT_MAX: Final = 64
"""Sends without an answer at once, one per conversation: well below a node's burst limit of commands."""

ANSWER_TIMEOUT_S: Final = 30.0
"""Seconds after which an unanswered send is repeated on the same connection."""

_EXPIRY_MARGIN_S: Final = 600
"""Seconds by which repeats end before the node forgets the id: clocks differ and commands queue."""


class Sent(msgspec.Struct, frozen=True):
    """A message is durable at ``seq``; ``time_us``: microseconds since the Unix epoch, by the node."""

    seq: int
    time_us: int


class Outgoing:
    """A message in the queue. ``attempts`` counts how often it may have been written to a connection."""

    __slots__ = (
        "_done", "attempts", "awaited", "backoff", "body", "client_msg_id", "conversation_id", "first_attempt_ms",
        "metadata", "outcome",
    )  # fmt: skip

    def __init__(
        self, conversation_id: str, client_msg_id: str, body: str, metadata: dict[str, str] | None, *, awaited: bool
    ) -> None:
        self.conversation_id = conversation_id
        self.client_msg_id = client_msg_id
        self.body = body
        self.metadata = metadata
        self.attempts = 0
        self.first_attempt_ms = 0
        self.awaited = awaited
        self.backoff = Backoff()
        self.outcome: Sent | ClientError | None = None
        self._done = trio.Event()

    def settle(self, outcome: Sent | ClientError) -> None:
        """Tell the outcome to whoever waits."""
        self.outcome = outcome
        self._done.set()

    async def wait_settled(self) -> Sent:
        """Wait for the outcome. Cancelling leaves the message in the queue."""
        await self._done.wait()
        if isinstance(self.outcome, Sent):
            return self.outcome
        assert self.outcome is not None
        raise self.outcome

    def command(self, request_id: int) -> Send:
        """The command that sends it."""
        return Send(
            request_id, self.conversation_id, self.client_msg_id, self.body, self.metadata, max(1, self.attempts)
        )

    def saved(self) -> SavedMessage:
        """The form that the state file keeps."""
        return SavedMessage(
            self.client_msg_id, self.conversation_id, self.body, self.metadata, self.attempts, self.first_attempt_ms
        )


class SendQueue:
    """Messages that are not acknowledged yet.

    Args:
        state_file: where they outlive a restart, or None.
        on_unawaited: takes the outcome of messages that no call waits for.
        messages_max: messages in the queue.
        wall_clock_ms: milliseconds since the Unix epoch; only to find messages too old to be repeated.
    """

    def __init__(
        self,
        state_file: StateFile | None,
        on_unawaited: Callable[[Event], None],
        messages_max: int,
        wall_clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._state_file = state_file
        self._on_unawaited = on_unawaited
        self._messages_max = messages_max
        self._wall_clock_ms = wall_clock_ms
        self._messages: dict[str, Outgoing] = {}
        self._lines: dict[str, deque[Outgoing]] = {}
        self._runnable: dict[str, None] = {}
        self._delayed: list[tuple[float, str]] = []
        self._in_flight: dict[str, tuple[Outgoing, float]] = {}
        self._changes = Changes()
        self._saving = trio.Lock()
        self._closed: ClientClosed | None = None
        self._wake = trio.Event()
        self._dirty = trio.Event()
        self._empty = trio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._messages)

    def restore(self, messages: Iterable[SavedMessage]) -> None:
        """Take over what an earlier run left, in its order."""
        for saved in messages:
            item = Outgoing(saved.conversation_id, saved.client_msg_id, saved.body, saved.metadata, awaited=False)
            item.attempts, item.first_attempt_ms = saved.attempts, saved.first_attempt_ms
            self._enqueue(item)

    def submit(
        self, conversation_id: str, body: str, metadata: dict[str, str] | None, client_msg_id: str | None
    ) -> Outgoing:
        """Put a message into the queue.

        Raises:
            SendQueueFull: there are ``messages_max`` already.
            SendRefused: the body is empty or too long; no node would take it.
            ClientClosed: nothing will be sent any more.
        """
        if self._closed is not None:
            raise self._closed
        if len(self._messages) >= self._messages_max:
            raise SendQueueFull(
                f"{len(self._messages)} messages wait to be sent, no more than {self._messages_max} may: "
                "wait for some of them, or for the connection"
            )
        item = Outgoing(conversation_id, client_msg_id or uuid.uuid4().hex, body, metadata, awaited=True)
        if item.client_msg_id in self._messages:
            raise ValueError(
                f"client_msg_id {item.client_msg_id!r} is in the queue already: each message needs its own"
            )
        _check(item)
        self._changes.messages[item.client_msg_id] = item.saved()
        self._dirty.set()
        self._enqueue(item)
        return item

    async def wait(self, item: Outgoing) -> Sent:
        """Wait for a message's outcome.

        Cancelling removes a message that was never written to any connection: it is then certainly not sent. One
        that was, is kept and repeated until its outcome is known, which an event then tells.
        """
        try:
            return await item.wait_settled()
        except trio.Cancelled:
            item.awaited = False
            if item.outcome is not None:  # it was settled when this task was cancelled, but had not run yet
                self._tell(item)
            elif item.attempts == 0:
                self._remove(item)
            raise

    async def flush(self) -> None:
        """Wait until nothing is in the queue. Cancelling leaves nothing behind."""
        while self._messages:
            if self._closed is not None:
                raise self._closed
            await self._empty.wait()

    def stored(self, conversation_id: str, client_msg_id: str, seq: int, time_us: int) -> bool:
        """An entry with this id is in the log: settles the message. Returns whether it is one of ours."""
        item = self._messages.get(client_msg_id)
        if item is None or item.conversation_id != conversation_id:  # an id is unique within a conversation only
            return False
        self._settle(item, Sent(seq, time_us))
        return True

    def awaits_answer(self, conversation_id: str) -> bool:
        """Whether a message for this conversation was written to the connection and is not answered yet."""
        return conversation_id in self._in_flight

    async def answered(self, conversation_id: str) -> None:
        """Wait until that message is settled, however often it is tried. Cancelling is safe."""
        item, _ = self._in_flight[conversation_id]
        with suppress(ClientError):
            await item.wait_settled()

    async def run(self, connection: Connection, on_ack: Callable[[str, int], None]) -> None:
        """Send over one connection until cancelled; then what had no answer counts as not sent.

        ``on_ack`` is told conversation and seq of each acknowledgement, in the order of arrival.
        """
        try:
            while True:
                self._wake = trio.Event()
                batch = self._next_batch()
                if batch:
                    await self.save()  # an attempt is recorded before it is made
                    for item in batch:
                        self._ask(connection, item, on_ack)
                else:
                    with trio.move_on_at(self._next_deadline()):
                        await self._wake.wait()
        finally:
            for item, _ in self._in_flight.values():
                self._runnable[item.conversation_id] = None
            self._in_flight.clear()

    async def keep_saved(self) -> None:
        """Write new messages to the state file soon after they came, connected or not. Runs until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty = trio.Event()
            await self.save()

    async def save(self) -> None:
        """Write all changes so far to the state file; returns when they are on the disk."""
        async with self._saving:
            changes, self._changes = self._changes, Changes()
            if self._state_file is None or not changes:
                return
            try:
                await self._state_file.commit(changes)
            except StateFileError:
                self._changes = changes.before(self._changes)  # for the attempt that is made at the end
                raise

    def close(self, error: ClientClosed) -> None:
        """Nothing is sent any more: calls that wait raise ``error``. The state file keeps what is unsettled."""
        self._closed = error
        for item in self._messages.values():
            item.settle(error)
        self._empty.set()

    def _enqueue(self, item: Outgoing) -> None:
        self._messages[item.client_msg_id] = item
        self._empty = trio.Event() if self._empty.is_set() else self._empty
        line = self._lines.setdefault(item.conversation_id, deque())
        line.append(item)
        if len(line) == 1:
            self._runnable[item.conversation_id] = None
            self._wake.set()

    def _next_batch(self) -> list[Outgoing]:
        """The messages whose turn it is, marked as attempted."""
        now = trio.current_time()
        while self._delayed and self._delayed[0][0] <= now:
            conversation_id = heapq.heappop(self._delayed)[1]
            if conversation_id in self._lines and conversation_id not in self._in_flight:
                self._runnable[conversation_id] = None
        for item, sent_at in list(self._in_flight.values()):
            if sent_at + ANSWER_TIMEOUT_S <= now:
                del self._in_flight[item.conversation_id]
                self._runnable[item.conversation_id] = None
        batch: list[Outgoing] = []
        wall_ms = self._wall_clock_ms()
        while self._runnable and len(self._in_flight) < IN_FLIGHT_MAX:
            conversation_id = next(iter(self._runnable))
            del self._runnable[conversation_id]
            item = self._lines[conversation_id][0]
            if item.attempts and wall_ms - item.first_attempt_ms > _REPEAT_MS_MAX:
                self._settle(item, SendExpired(_EXPIRED))
                continue
            item.attempts += 1
            item.first_attempt_ms = item.first_attempt_ms or wall_ms
            self._changes.messages[item.client_msg_id] = item.saved()
            self._in_flight[conversation_id] = (item, now)
            batch.append(item)
        return batch

    def _next_deadline(self) -> float:
        delayed = self._delayed[0][0] if self._delayed else float("inf")
        unanswered = min((sent_at for _, sent_at in self._in_flight.values()), default=float("inf"))
        return min(delayed, unanswered + ANSWER_TIMEOUT_S)

    def _ask(self, connection: Connection, item: Outgoing, on_ack: Callable[[str, int], None]) -> None:
        def answered(reply: Reply | None) -> None:
            match reply:
                case SendAck():
                    on_ack(item.conversation_id, reply.seq)
                    self._settle(item, Sent(reply.seq, reply.time_us))
                case ErrorReply():
                    self._refused(item, reply)

        if item.outcome is None:  # else it was seen in the log while its attempt was being recorded
            connection.ask(item.command, answered)

    def _refused(self, item: Outgoing, reply: ErrorReply) -> None:
        refused = Refused(reply.code, reply.message)
        if not refused.retry:
            self._settle(item, SendRefused(reply.code, reply.message))
            return
        in_flight = self._in_flight.get(item.conversation_id)
        if reply.code == ErrorCode.RATE_LIMITED:
            item.attempts -= 1  # certainly not appended: this attempt is none that an owner would have to look for
        if in_flight is not None and in_flight[0] is item:
            del self._in_flight[item.conversation_id]
            delay_s = max(reply.retry_after_ms / 1000, item.backoff.fail())
            heapq.heappush(self._delayed, (trio.current_time() + delay_s, item.conversation_id))
            self._wake.set()

    def _settle(self, item: Outgoing, outcome: Sent | ClientError) -> None:
        if self._messages.get(item.client_msg_id) is not item:
            return  # settled before: an answer that came twice
        self._remove(item)
        item.settle(outcome)
        if not item.awaited:
            self._tell(item)

    def _tell(self, item: Outgoing) -> None:
        """Tell by an event how a message ended that no call waits for. That the client closed is no such end."""
        outcome = item.outcome
        if isinstance(outcome, Sent):
            self._on_unawaited(MessageSent(item.conversation_id, item.client_msg_id, outcome.seq, outcome.time_us))
        elif not isinstance(outcome, ClientClosed):
            self._on_unawaited(MessageNotSent(item.conversation_id, item.client_msg_id, item.body, str(outcome)))

    def _remove(self, item: Outgoing) -> None:
        del self._messages[item.client_msg_id]
        self._changes.messages.pop(item.client_msg_id, None)
        self._changes.dropped_messages.add(item.client_msg_id)
        self._dirty.set()
        line = self._lines[item.conversation_id]
        was_first = line[0] is item
        line.remove(item)
        if was_first:
            self._in_flight.pop(item.conversation_id, None)
        if not line:
            del self._lines[item.conversation_id]
            self._runnable.pop(item.conversation_id, None)
        elif was_first:
            self._runnable[item.conversation_id] = None
        self._wake.set()
        if not self._messages:
            self._empty.set()


def _check(item: Outgoing) -> None:
    """Refuse here what a node would refuse, or would close the connection for.

    Raises:
        SendRefused: see the message.
    """
    if not item.body:
        raise SendRefused(ErrorCode.BODY_EMPTY, "a message needs a body of at least one character")
    if len(item.body) > limits.BODY_CHARS_MAX:
        text = f"the body has {len(item.body):,} characters, no more than {limits.BODY_CHARS_MAX:,} are allowed"
        raise SendRefused(ErrorCode.TOO_LONG, text)
    try:
        data = encode_msgpack(item.command(2**32 - 1))
    except UnicodeEncodeError as error:
        # what Python makes of bytes that are no UTF-8 (surrogateescape), or half of a character from UTF-16
        code = ord(error.object[error.start])
        text = f"U+{code:04X}, half of a surrogate pair, is no character: text must be such that UTF-8 can hold it"
        raise SendRefused(ErrorCode.BAD_REQUEST, text) from None
    if len(data) > limits.COMMAND_BYTES_MAX:
        text = f"the message takes {len(data):,} bytes, no more than {limits.COMMAND_BYTES_MAX:,} are allowed"
        raise SendRefused(ErrorCode.TOO_LONG, text)
    try:
        decode_command(data)
    except InvalidFrame as error:
        raise SendRefused(ErrorCode.BAD_REQUEST, str(error)) from None


_REPEAT_MS_MAX: Final = (limits.DEDUPLICATION_WINDOW_S - _EXPIRY_MARGIN_S) * 1000
_EXPIRED: Final = (
    "the message waited more than a day after its first attempt: the node no longer recognises a repeat, so it may "
    "or may not have been stored; look for it in the conversation's history before sending it again"
)
