"""A simulated device of a user: it sends with retries, reads what it missed, and writes down all it sees.

Time is that of the simulation's virtual clock (MockClock).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from gateway.check.recorder import payload_of
from protocol.codec import decode_entry
from protocol.errors import ErrorCode
from protocol.frames import Entry, EntryKind, ErrorReply, History, HistoryPage, Reply, Send, SendAck
from tests.fakes.edge import FakeOrigin

if TYPE_CHECKING:
    from tests.simulation.world import Node, World

ANSWER_MAX_S = 12.0
"""Seconds that a device waits for an answer; longer than a node takes to say that it has none."""

NOTHING_STORED = frozenset((ErrorCode.UNAVAILABLE, ErrorCode.OVERLOADED, ErrorCode.RATE_LIMITED))
PAGE_ENTRIES = 50


def seen_entry(entry: Entry) -> dict[str, Any]:
    """An entry as histories tell it."""
    created = entry.kind == EntryKind.CREATED
    fields: dict[str, Any] = {"seq": entry.seq, "sender": entry.sender, "client_msg_id": entry.client_msg_id}
    if created:
        return fields | {"kind": "created", "users": tuple(entry.users or ())}
    return fields | {"payload": payload_of(entry.body)}


class Device:
    """One device in one conversation."""

    def __init__(self, world: "World", user: str, conversation_id: str) -> None:
        self.world = world
        self.user = user
        self.conversation_id = conversation_id
        self.node: Node | None = None
        self.origin = FakeOrigin(user)
        self.connection = ""
        self.seen: set[int] = set()
        self.cursor = 0
        self.resuming = False
        self.unsent = 0
        self._connections = 0
        self._ids = 0
        self._waiting: dict[int, tuple[trio.Event, list[Reply], Callable[[Reply], None]]] = {}
        self._wants_resume = trio.Event()

    # --- What the edge of a node calls ------------------------------------------------------------------------------

    def replied(self, reply: Reply) -> None:
        found = self._waiting.pop(reply.id, None)  # type: ignore[union-attr]
        if found is None:
            return
        event, replies, take = found
        replies.append(reply)
        take(reply)  # at once: the order of acknowledgements and pushes is part of what is judged
        event.set()

    def pushed(self, entry: Entry) -> None:
        self._note(entry.seq)
        self._record("ok", "push", entry=seen_entry(entry))

    def resync(self) -> None:
        """Something may have been missed."""
        self._wants_resume.set()
        if not self.resuming:
            self._begin_resume()

    def gone(self) -> None:
        """The node has ended: come back to another."""
        if self.resuming:
            self.resuming = False
            self._record("info", "resume", call=self._call)
        self.world.record("info", "disconnect", self.name, connection=self.connection)
        self.node = None
        waiting, self._waiting = self._waiting, {}
        for event, _, _ in waiting.values():
            event.set()

    # --- Life -------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The process of its records."""
        return f"{self.user}-device"

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_connected)
            nursery.start_soon(self._keep_whole)
            for _ in range(2):
                nursery.start_soon(self._keep_sending)

    async def _keep_connected(self) -> None:
        while True:
            if self.node is None:
                await trio.sleep(0.1 + self.world.rng.random())
                node = self.world.any_node()
                if node is not None:
                    self._connect(node)
            await trio.sleep(0.05 + 0.1 * self.world.rng.random())

    def _connect(self, node: "Node") -> None:
        self._connections += 1
        self.connection = f"{self.name}-{self._connections}"
        self.origin = FakeOrigin(self.user)
        self.node = node
        self.resuming = False
        node.devices.append(self)
        self.world.place(self.user)
        self._record("ok", "connect", conversation="")
        self.resync()

    async def _keep_sending(self) -> None:
        world = self.world
        while True:
            await trio.sleep(world.rng.expovariate(2.0))
            if world.sending and self.node is not None:
                self._ids += 1
                self.unsent += 1
                await self._send_surely(f"{self.name}-{self._ids}")
                self.unsent -= 1

    async def _send_surely(self, client_msg_id: str) -> None:
        attempt = 0
        while True:
            while self.node is None:  # noqa: ASYNC110 - virtual time
                await trio.sleep(0.1)
            attempt += 1
            if await self._send(client_msg_id, attempt):
                return
            await trio.sleep(0.2 + self.world.rng.random())

    async def _send(self, client_msg_id: str, attempt: int) -> bool:
        call = self.world.next_call()
        self._record(
            "invoke", "send", call=call, client_msg_id=client_msg_id, payload=payload_of(client_msg_id), attempt=attempt
        )

        def answered(reply: Reply) -> None:
            if isinstance(reply, SendAck):
                self._note(reply.seq)
                self._record("ok", "send", call=call, seq=reply.seq, duplicate=reply.duplicate)
                return
            assert isinstance(reply, ErrorReply), reply
            if reply.code in NOTHING_STORED:
                self._record("fail", "send", call=call)
            else:
                assert reply.code in (ErrorCode.OUTCOME_UNKNOWN, ErrorCode.INTERNAL), reply
                self._record("info", "send", call=call)

        reply = await self.ask(
            lambda number: Send(number, self.conversation_id, client_msg_id, client_msg_id, None, attempt), answered
        )
        return isinstance(reply, SendAck)

    async def ask(self, command: Any, take: Callable[[Reply], None] = lambda _reply: None) -> Reply | None:
        """Submit what ``command`` makes of a number; None: no answer came. ``take`` is called with it as it comes."""
        node = self.node
        if node is None:
            return None
        number = self.world.next_call()
        event, replies, _ = self._waiting[number] = (trio.Event(), [], take)
        node.submit(self.origin, command(number))
        with trio.move_on_after(ANSWER_MAX_S):
            await event.wait()
        self._waiting.pop(number, None)
        return replies[0] if replies else None

    # --- Missing nothing --------------------------------------------------------------------------------------------

    def _note(self, seq: int) -> None:
        if seq > self.cursor + 1 and not self.resuming:
            self.resync()
        self.seen.add(seq)
        while self.cursor + 1 in self.seen:
            self.cursor += 1

    def _begin_resume(self) -> None:
        self.resuming = True
        self._call = self.world.next_call()
        self._resume_connection = self.connection
        self._record("invoke", "resume", call=self._call, cursor=self.cursor)

    async def _keep_whole(self) -> None:
        while True:
            await self._wants_resume.wait()
            self._wants_resume = trio.Event()
            connection = self.connection
            head_seq = await self._catch_up()
            if self.connection != connection or self.node is None:
                continue  # the next connection begins anew
            if head_seq is None or self._wants_resume.is_set() or max(self.seen, default=0) > self.cursor:
                self._wants_resume.set()
                await trio.sleep(0.3 + self.world.rng.random())
                continue
            self.resuming = False
            self._record("ok", "resume", call=self._call, head_seq=head_seq)

    async def _catch_up(self) -> int | None:
        """Read from the cursor to the head; None: it did not work."""
        after_seq, connection = self.cursor, self.connection
        while True:
            call = self.world.next_call()
            self._record("invoke", "read", call=call)
            page = await self.ask(
                lambda number, after=after_seq: History(
                    number, self.conversation_id, after_seq=after, limit=PAGE_ENTRIES
                )
            )
            if not isinstance(page, HistoryPage) or connection != self.connection or self.node is None:
                return None
            entries = [decode_entry(bytes(raw)) for raw in page.entries]
            last_seq = entries[-1].seq if entries else after_seq
            self.seen.update(entry.seq for entry in entries)
            while self.cursor + 1 in self.seen:
                self.cursor += 1
            told = tuple(seen_entry(entry) for entry in entries)
            span = {"first_seq": after_seq + 1, "last_seq": last_seq, "head_seq": page.head_seq}
            self._record("ok", "read", call=call, entries=told, **span)
            if not page.has_more:
                return page.head_seq
            after_seq = last_seq

    def _record(self, type: str, op: str, **fields: Any) -> None:
        fields.setdefault("conversation", self.conversation_id)
        self.world.record(type, op, self.name, user=self.user, connection=self.connection, **fields)
