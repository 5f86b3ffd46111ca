"""One device of a user that sends, receives, comes back and records everything: the load of the crash test."""

import random
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import trio
from msgspec import Raw

from bench.processes import NodeProcess
from gateway.check.history import SeenEntry
from gateway.check.recorder import Recorder, payload_of
from protocol import codec
from protocol.errors import ErrorCode
from protocol.frames import (
    Entry,
    EntryKind,
    EntryPush,
    ErrorReply,
    History,
    HistoryPage,
    MarkReceipt,
    Ok,
    SendAck,
    Sync,
    SyncPage,
)
from tests.process.outgoing import Membership, Outgoing
from tests.process.wire import Closed, Wire, connected

KINDS = {
    EntryKind.MESSAGE: "message",
    EntryKind.CREATED: "created",
    EntryKind.MEMBERS_ADDED: "added",
    EntryKind.MEMBERS_REMOVED: "removed",
    EntryKind.RENAMED: "renamed",
}
RECEIPT_SHARE = 0.1
"""Receipts for each send."""
WINDOW = 8
"""Sends of one device that may be unanswered."""
PAGE = 200


class Place:
    """How far a device is in one conversation: everything up to ``upto``, and what came ahead of that."""

    def __init__(self) -> None:
        self.upto = 0
        self._ahead: set[int] = set()

    def take(self, seq: int) -> None:
        self._ahead.add(seq)
        while self.upto + 1 in self._ahead:
            self.upto += 1
            self._ahead.discard(self.upto)


class Device:
    """Stays connected as long as the node is up, and sends as long as it is told to."""

    def __init__(self, node: NodeProcess, user: str, name: str, recorder: Recorder, rng: random.Random) -> None:
        self.node, self.user, self.name = node, user, f"{user}-{name}"
        self.places: dict[str, Place] = {}
        self.acknowledged = 0
        self.on_acknowledged: Callable[[], None] = lambda: None
        self.membership: Membership | None = None
        self._recorder, self._rng = recorder, rng
        self._unanswered: list[Outgoing] = []
        self._by_id: dict[int, Outgoing] = {}
        self._handlers: dict[int, Callable[[Any], None]] = {}
        self._connections = 0
        self._connection = ""
        self._ids = 0
        self._room = trio.Semaphore(WINDOW)
        self._scope = trio.CancelScope()
        self.moved = trio.Event()

    @property
    def idle(self) -> bool:
        """Whether everything it sent was acknowledged."""
        return not self._unanswered

    def cut(self) -> None:
        """Drop the connection without a word; it will come back."""
        self._scope.cancel()

    async def run(self, up: Callable[[], trio.Event], sending: Callable[[], trio.Event]) -> None:
        """Connect whenever the event that ``up`` gives is set, send while that of ``sending`` is; until cancelled."""
        while True:
            await up().wait()
            with trio.CancelScope() as self._scope:
                try:
                    async with connected(self.node, self.user, device=self.name) as wire:
                        await self._converse(wire, sending)
                except* (OSError, Closed, trio.BrokenResourceError):
                    pass  # killed: to be expected at any moment
                finally:
                    self._disconnected()

    def record(self, kind: str, op: str, **fields: Any) -> None:
        self._recorder.record(kind, op, self.name, **fields)

    async def _converse(self, wire: Wire, sending: Callable[[], trio.Event]) -> None:
        self._connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, wire)
            await self._resume(wire)
            for outgoing in list(self._unanswered):
                await self._send(wire, outgoing)
            while True:
                await sending().wait()
                await self._room.acquire()
                outgoing = (self.membership and self.membership.next()) or self._message()
                self._unanswered.append(outgoing)
                await self._send(wire, outgoing)
                if self._rng.random() < RECEIPT_SHARE:
                    await self.mark_read(wire, self._rng.choice(sorted(self.places)))

    def _message(self) -> Outgoing:
        conversation = self._rng.choice(sorted(self.places))
        return Outgoing(conversation, uuid4().hex, "x" * self._rng.choice((5, 20, 100, 2000)) + str(self._rng.random()))

    def _connected(self) -> None:
        self._connections += 1
        self._connection = f"{self.name}#{self._connections}"
        self.record("ok", "connect", user=self.user, connection=self._connection)

    def _disconnected(self) -> None:
        if not self._connection:
            return
        self.record("info", "disconnect", connection=self._connection)
        for outgoing in self._by_id.values():
            self.record("info", outgoing.op, call=outgoing.call, error="connection lost")
        self._by_id.clear()
        self._handlers.clear()
        self._connection = ""

    # --- sending ------------------------------------------------------------------------------------------------------

    async def _send(self, wire: Wire, outgoing: Outgoing) -> None:
        outgoing.attempt += 1
        outgoing.call = self._recorder.next_call()
        outgoing.request_id = self._next_id()
        self.record(
            "invoke", outgoing.op, call=outgoing.call, user=self.user, connection=self._connection,
            conversation=outgoing.conversation, client_msg_id=outgoing.name, payload=outgoing.payload,
            users=outgoing.users, attempt=outgoing.attempt,
        )  # fmt: skip
        self._by_id[outgoing.request_id] = outgoing
        await wire.send(outgoing.command())

    def _answered(self, reply: SendAck | ErrorReply) -> None:
        outgoing = self._by_id.pop(reply.id)
        if isinstance(reply, ErrorReply):
            raise AssertionError(f"{self.name}: {ErrorCode(reply.code).name} {reply.message}")
        self.record("ok", outgoing.op, call=outgoing.call, seq=reply.seq, duplicate=reply.duplicate)
        outgoing.seq = reply.seq
        self._unanswered.remove(outgoing)
        self._room.release()
        self._take(outgoing.conversation, reply.seq)
        self.acknowledged += 1
        self.on_acknowledged()

    async def mark_read(self, wire: Wire, conversation: str) -> None:
        """Say that all that came so far was read; the answer is awaited by nobody."""
        call, seq = self._recorder.next_call(), self.places[conversation].upto
        self.record("invoke", "receipt", call=call, user=self.user, conversation=conversation, seq=seq)

        def marked(reply: Ok | ErrorReply) -> None:
            assert isinstance(reply, Ok), (self.name, reply)
            self.record("ok", "receipt", call=call)
            del self._handlers[command.id]

        command = MarkReceipt(self._next_id(), conversation, seq, seq)
        self._handlers[command.id] = marked
        await wire.send(command)

    # --- receiving ----------------------------------------------------------------------------------------------------

    async def _receive(self, wire: Wire) -> None:
        while True:
            frame = await wire.receive()
            if isinstance(frame, EntryPush):
                entry = _seen(frame.entry)
                self.record("ok", "push", user=self.user, connection=self._connection,
                            conversation=frame.conversation_id, entry=entry)  # fmt: skip
                self._take(frame.conversation_id, entry.seq)
            elif getattr(frame, "id", 0) in self._by_id:
                self._answered(frame)
            elif getattr(frame, "id", 0) in self._handlers:
                self._handlers[frame.id](frame)
            else:
                self.heard(frame)

    def heard(self, frame: object) -> None:
        """A push that is no entry, or a late answer."""

    def _take(self, conversation: str, seq: int) -> None:
        self.places.setdefault(conversation, Place()).take(seq)
        self.moved.set()
        self.moved = trio.Event()

    # --- coming back --------------------------------------------------------------------------------------------------

    async def _resume(self, wire: Wire) -> None:
        """Sync from the cursors and fill what lies between; recorded as reads and as one resume per conversation."""
        cursors = {conversation: place.upto for conversation, place in self.places.items()}
        calls = {
            conversation: self._invoke("resume", conversation, cursor=cursor)
            for conversation, cursor in cursors.items()
        }
        reads = {conversation: self._invoke("read", conversation) for conversation in cursors}
        heads, gaps = dict(cursors), []

        def page(reply: SyncPage) -> None:
            for item in reply.conversations:
                assert not item.removed, (self.name, item, cursors)
                first = _seen(item.entries[0]).seq
                self._read(reads.pop(item.conversation_id), item.conversation_id, item.entries, first, item.head_seq)
                heads[item.conversation_id] = item.head_seq
                if item.has_more:
                    gaps.append((item.conversation_id, cursors[item.conversation_id], first))
                else:
                    assert first == cursors[item.conversation_id] + 1

        await self._ask(wire, Sync(0, cursors), page, lambda reply: reply.done)
        for conversation, call in reads.items():  # nothing new there
            self._read(call, conversation, (), heads[conversation] + 1, heads[conversation])
        for conversation, cursor, first in gaps:
            await self._fill(wire, conversation, cursor, first)
        for conversation, call in calls.items():
            self.record("ok", "resume", call=call, head_seq=heads[conversation])

    async def _fill(self, wire: Wire, conversation: str, after: int, before: int) -> None:
        while after + 1 < before:
            after = await self._history(wire, conversation, after, min(PAGE, before - after - 1))

    async def read_all(self, wire: Wire, conversation: str) -> None:
        """The full read at the end, recorded as one."""
        call = self._invoke("read", conversation, final=True)
        entries: list[Raw] = []
        done = False

        def page(reply: HistoryPage) -> None:
            nonlocal done
            entries.extend(reply.entries)
            done = not reply.has_more

        while not done:
            await self._ask(wire, History(0, conversation, after_seq=len(entries), limit=PAGE), page)
        self._read(call, conversation, entries, 1, len(entries))

    async def _history(self, wire: Wire, conversation: str, after: int, limit: int) -> int:
        call = self._invoke("read", conversation)
        last = after

        def page(reply: HistoryPage) -> None:
            nonlocal last
            last = _seen(reply.entries[-1]).seq
            self._read(call, conversation, reply.entries, after + 1, reply.head_seq, last)

        await self._ask(wire, History(0, conversation, after_seq=after, limit=limit), page)
        assert last > after
        return last

    def _invoke(self, op: str, conversation: str, **fields: Any) -> int:
        call = self._recorder.next_call()
        self.record("invoke", op, call=call, user=self.user, connection=self._connection, conversation=conversation,
                    **fields)  # fmt: skip
        return call

    def _read(
        self, call: int, conversation: str, raw: Sequence[Raw], first: int, head: int, last: int | None = None
    ) -> None:
        entries = tuple(_seen(item) for item in raw)
        span = {"first_seq": first, "last_seq": head if last is None else last, "head_seq": head}
        self.record("ok", "read", call=call, entries=entries, **span)
        for entry in entries:
            self._take(conversation, entry.seq)

    async def _ask(
        self, wire: Wire, command: Any, take: Callable[[Any], None], done: Callable[[Any], bool] = lambda _: True
    ) -> None:
        """Send a command; ``take`` gets each reply in the order of arrival, among the pushes."""
        answered = trio.Event()

        def handle(reply: Any) -> None:
            assert not isinstance(reply, ErrorReply), reply
            take(reply)
            if done(reply):
                answered.set()

        command.id = self._next_id()
        self._handlers[command.id] = handle
        await wire.send(command)
        await answered.wait()
        self._handlers.pop(command.id, None)

    def _next_id(self) -> int:
        self._ids += 1
        return self._ids

    async def read_everything(self) -> None:
        """Connect once more and read every conversation in full."""
        async with (
            connected(self.node, self.user, device=f"{self.name}-reader") as wire,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._receive, wire)
            for conversation in sorted(self.places):
                await self.read_all(wire, conversation)
            nursery.cancel_scope.cancel()


class Guest(Device):
    """A device that only listens: to whatever reaches it while its user is let in and out."""

    async def _converse(self, wire: Wire, _sending: Callable[[], trio.Event]) -> None:
        self._connected()
        await self._receive(wire)


def _seen(raw: Raw) -> SeenEntry:
    entry: Entry = codec.decode_entry(raw)
    kind = KINDS.get(EntryKind(entry.kind), "other")
    payload = payload_of(entry.body, entry.metadata) if kind == "message" else ""
    return SeenEntry(entry.seq, entry.sender, entry.client_msg_id, payload, kind, tuple(entry.users or ()))
