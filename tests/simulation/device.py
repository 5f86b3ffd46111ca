"""A simulated device of a user: it sends with retries, comes back, reads what it missed, and notes all it sees."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from gateway.broker import is_channel
from gateway.check.recorder import payload_of
from gateway.cluster.resyncs import RESYNC_SPREAD_S
from protocol.codec import decode_entry
from protocol.errors import ErrorCode
from protocol.frames import (
    Entry,
    EntryKind,
    ErrorReply,
    History,
    HistoryPage,
    Reply,
    Send,
    SendAck,
    Sync,
    SyncedConversation,
    SyncPage,
)
from tests.simulation.node import Session

if TYPE_CHECKING:
    from tests.simulation.node import Node
    from tests.simulation.world import World

ANSWER_MAX_S = 12.0
"""Seconds that a device waits for an answer; longer than a node takes to say that it has none."""

NOTHING_STORED = frozenset((ErrorCode.UNAVAILABLE, ErrorCode.OVERLOADED, ErrorCode.RATE_LIMITED))
UNKNOWN = frozenset((ErrorCode.OUTCOME_UNKNOWN, ErrorCode.INTERNAL))
PAGE_ENTRIES = 50

ROAMERS_STAY_S = 12.0
"""Seconds that a device which only reads is connected at most."""

ROAMERS_AWAY_S = 4.0
"""Seconds that it is gone at most."""

KINDS = {EntryKind.CREATED: "created", EntryKind.MEMBERS_ADDED: "added", EntryKind.MEMBERS_REMOVED: "removed"}


def seen_entry(entry: Entry) -> dict[str, Any]:
    """An entry as histories tell it."""
    fields: dict[str, Any] = {"seq": entry.seq, "sender": entry.sender, "client_msg_id": entry.client_msg_id}
    kind = KINDS.get(EntryKind(entry.kind))
    if kind is not None:
        return fields | {"kind": kind, "users": tuple(entry.users or ())}
    return fields | {"payload": payload_of(entry.body)}


class Device:
    """One device in one conversation.

    Attributes:
        sends: whether it sends; who only reads comes and goes.
        stays: whether its user is a member all the time.
        unsent: sends begun and not acknowledged.
        resuming: it is reading what it may have missed.
    """

    def __init__(self, world: "World", name: str, user: str, conversation_id: str, *, sends: bool, stays: bool) -> None:
        self.world = world
        self.name = name
        self.user = user
        self.conversation_id = conversation_id
        self.sends = sends
        self.stays = stays
        self.node: Node | None = None
        self.session = Session(user, self._replied, self)
        self.connection = ""
        self.seen: set[int] = set()
        self.cursor = 0
        self.resuming = False
        self.unsent = 0
        self._connected = trio.Event()
        self._connections = 0
        self._ids = 0
        self._waiting: dict[int, tuple[trio.Event, list[Reply], Callable[[Reply], None]]] = {}
        self._wants_resume = trio.Event()
        self._resumed_from = 0
        self._by_sync = False

    # --- What the edge of a node calls ------------------------------------------------------------------------------

    def _replied(self, reply: Reply) -> None:
        found = self._waiting.get(reply.id)  # type: ignore[union-attr]
        if found is None:
            return
        event, replies, take = found
        replies.append(reply)
        take(reply)  # at once: the order of acknowledgements and pushes is part of what is judged
        event.set()

    def pushed(self, entry: Entry) -> None:
        self.world.show(self.user, entry.seq)
        skips = self._skips(entry.seq)
        if not skips:
            self._note(entry.seq)  # what is pushed while something is asked for is not judged
        self._record("ok", "push", entry=seen_entry(entry))
        if skips:
            self._note(entry.seq)

    def resync(self) -> None:
        """Something may have been missed."""
        self._wants_resume.set()
        if not self.resuming and self.node is not None:
            self._begin_resume()

    def gone(self, session: Session) -> None:
        """The connection has ended: come back, to another node perhaps."""
        if session is not self.session or self.node is None:
            return
        if self.resuming:
            self.resuming = False
            self._record("info", "resume", call=self._call)
        self.world.record("info", "disconnect", self.name, connection=self.connection)
        self.node = None
        # What came behind a gap comes again: the next connection is judged by what is pushed to it.
        self.seen = {seq for seq in self.seen if seq <= self.cursor}
        self._connected = trio.Event()
        waiting, self._waiting = self._waiting, {}
        for event, _, _ in waiting.values():
            event.set()
        away_s = ROAMERS_AWAY_S if self._roams else 1.0
        self.world.timeline.after(away_s * self.world.rng.random(), self._connect)

    def go_away(self, session: Session) -> None:
        """The node drains, or the device moves on its own account."""
        if session is self.session and self.node is not None:
            node = self.node
            self.gone(session)
            node.close(session)

    def vanish(self, after_s: float) -> None:
        """Lose the connection without the node's noticing for a while."""
        node, session = self.node, self.session
        if node is not None:
            session.device = None
            self.gone(session)
            self.world.timeline.after(after_s, lambda: node.close(session))

    # --- Life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        self._connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_whole)
            if self._roams:
                nursery.start_soon(self._keep_roaming)
            for _ in range(2 if self.sends else 0):
                nursery.start_soon(self._keep_sending)

    def _connect(self) -> None:
        node = self.world.any_node()
        if node is None:
            self.world.timeline.after(self.world.rng.random(), self._connect)
            return
        self._connections += 1
        self.connection = f"{self.name}-{self._connections}"
        self.session = Session(self.user, self._replied, self)
        self.node = node
        self.resuming = False
        self._record("ok", "connect", conversation="")
        node.open(self.session)
        self._connected.set()
        self.resync()

    @property
    def _roams(self) -> bool:
        return self.stays and not self.sends

    async def _keep_roaming(self) -> None:
        while True:
            await trio.sleep(self.world.rng.uniform(0.5, ROAMERS_STAY_S))
            if self.world.sending:
                self.go_away(self.session)

    async def _keep_sending(self) -> None:
        world = self.world
        while True:
            await trio.sleep(world.rng.expovariate(world.sends_per_s))
            if world.sending and self.node is not None:
                self._ids += 1
                self.unsent += 1
                await self._send_surely(f"{self.name}-{self._ids}")
                self.unsent -= 1

    async def _send_surely(self, client_msg_id: str) -> None:
        """Send until it is acknowledged, or in some worlds until it is said that nothing of it was stored."""
        attempt = 0
        refused = True
        while True:
            await self._connected.wait()
            attempt += 1
            reply = await self._send(client_msg_id, attempt)
            if isinstance(reply, SendAck):
                return
            refused = refused and reply is not None and reply.code in NOTHING_STORED
            if refused and self.world.gives_up:
                self.world.count("gave up")
                return
            await trio.sleep(0.2 + self.world.rng.random())

    async def _send(self, client_msg_id: str, attempt: int) -> SendAck | ErrorReply | None:
        call = self.world.next_call()
        self._record(
            "invoke", "send", call=call, client_msg_id=client_msg_id, payload=payload_of(client_msg_id), attempt=attempt
        )

        def answered(reply: Reply) -> None:
            if isinstance(reply, SendAck):
                self._note(reply.seq)
                self.world.acknowledge(self.conversation_id, reply)
                self.world.show(self.user, reply.seq)
                self._record("ok", "send", call=call, seq=reply.seq, duplicate=reply.duplicate)
                return
            assert isinstance(reply, ErrorReply), reply
            assert reply.code in NOTHING_STORED | UNKNOWN, reply
            self._record("fail" if reply.code in NOTHING_STORED else "info", "send", call=call)

        reply = await self.ask(
            lambda number: Send(number, self.conversation_id, client_msg_id, client_msg_id, None, attempt), answered
        )
        assert isinstance(reply, SendAck | ErrorReply | None), reply
        return reply

    async def ask(self, command: Any, take: Callable[[Reply], None] = lambda _reply: None) -> Reply | None:
        """Submit what ``command`` makes of a number; None: no answer came. ``take`` is called with it as it comes."""
        if self.node is None:
            return None
        number = self.world.next_call()
        event, replies, _ = self._waiting[number] = (trio.Event(), [], take)
        self.node.submit(self.session, command(number))
        with trio.move_on_after(ANSWER_MAX_S):
            await event.wait()
        self._waiting.pop(number, None)
        return replies[-1] if replies else None

    # --- Missing nothing --------------------------------------------------------------------------------------------

    def _skips(self, seq: int) -> bool:
        """Whether a push of it surely breaks a promise, because something was acknowledged that has not come.

        Not so where parcels may have been lost. An entry whose sender had no answer may be told with the next one. A
        node that others believe dead is told nothing more, until it finds that out and closes its connections; and one
        that was told something by such a node may miss parcels of it: its connections are told to sync soon.
        """
        node = self.node
        if not self.world.fair or not self.stays or self.resuming or node is None or not node.lease.valid():
            return False
        if trio.current_time() < node.gap_s + 2 * RESYNC_SPREAD_S:
            return False
        acknowledged = self.world.acknowledged.get(self.conversation_id, set())
        return any(each in acknowledged and each not in self.seen for each in range(self.cursor + 1, seq))

    def _note(self, seq: int) -> None:
        if seq > self.cursor + 1 and not self.resuming:
            self.resync()
        self._take(seq)

    def _take(self, seq: int) -> None:
        self.seen.add(seq)
        while self.cursor + 1 in self.seen:
            self.cursor += 1

    def _begin_resume(self) -> None:
        self.resuming = True
        self._resumed_from = self.cursor
        # What happens in a channel is pushed to those who synced.
        self._by_sync = is_channel(self.conversation_id) or self.world.rng.random() < self.world.sync_share
        self._call = self.world.next_call()
        self._record("invoke", "resume", call=self._call, cursor=self.cursor)

    async def _keep_whole(self) -> None:
        while True:
            await self._wants_resume.wait()
            self._wants_resume = trio.Event()
            await self._connected.wait()
            connection = self.connection
            head_seq = await self._catch_up()
            if self.connection != connection or self.node is None:
                continue  # the next connection begins anew
            whole = max(self.seen, default=0) <= self.cursor or head_seq == 0
            if head_seq is None or self._wants_resume.is_set() or not whole:
                self._wants_resume.set()
                await trio.sleep(0.3 + self.world.rng.random())
                continue
            self.resuming = False
            # Who is no member any more has nothing to read, and is told when that changes.
            known = {"head_seq": head_seq} if head_seq else {}
            self._record("ok" if head_seq else "info", "resume", call=self._call, **known)

    async def _catch_up(self) -> int | None:
        """Read from the cursor to the head; None: it did not work, and is to be tried again; 0: not a member."""
        if self._by_sync:
            return await self._sync(self._resumed_from)
        return await self._history(self._resumed_from)

    async def _sync(self, cursor: int) -> int | None:
        """Ask for all that is new, and let the history fill what lies before the newest entries.

        What anybody was acknowledged, or has read, has to be in the answer. Pushes run ahead of that, and so does what
        the owner's node itself answers: it does not wait for others to know the head, because who is told an older one
        is going to be pushed the rest.
        """
        world, call, connection = self.world, self._begin_read(), self.connection
        known_seq = world.known_seqs.get(self.conversation_id, 0)
        shown_seq = world.shown_seqs.get(self.user, 0)
        page = await self.ask(lambda number: Sync(number, {self.conversation_id: cursor}))
        if connection != self.connection or self.node is None:
            return None
        if not isinstance(page, SyncPage):
            assert page is None or (isinstance(page, ErrorReply) and page.code in NOTHING_STORED), page
            world.count("sync refused" if page else "sync unanswered")
            return None
        assert page.done, "all that is new of one conversation is one page"
        # What a page leaves out has nothing new: its head is what the cursor says.
        (synced,) = page.conversations or [SyncedConversation(self.conversation_id, cursor, 0, [])]
        if synced.removed:
            assert not self.stays, page
            return await self._history(cursor)  # what was sent before the removal may be on its way: this comes behind
        world.count("synced")
        assert synced.head_seq >= known_seq, f"{known_seq} was known before this sync of {self.name}: {page}"
        entries = [bytes(raw) for raw in synced.entries]
        first_seq = decode_entry(entries[0]).seq if synced.has_more else cursor + 1
        last_seq = self._read(call, first_seq - 1, entries, max(synced.head_seq, shown_seq))
        world.show(self.user, synced.head_seq)
        assert last_seq == synced.head_seq, f"a sync does not end with the head that it tells: {page}"
        if synced.has_more:
            world.count("filled in")
            return await self._history(cursor)
        return synced.head_seq

    async def _history(self, after_seq: int) -> int | None:
        """Read page by page up to the head, which its owner tells."""
        connection = self.connection
        while True:
            call = self._begin_read()
            page = await self.ask(
                lambda number, after=after_seq: History(
                    number, self.conversation_id, after_seq=after, limit=PAGE_ENTRIES
                )
            )
            if connection != self.connection or self.node is None:
                return None
            if not isinstance(page, HistoryPage):
                outside = isinstance(page, ErrorReply) and page.code == ErrorCode.NOT_FOUND and not self.stays
                assert outside or not isinstance(page, ErrorReply) or page.code in NOTHING_STORED | UNKNOWN, page
                return 0 if outside else None
            entries = [bytes(raw) for raw in page.entries]
            self.world.know(self.conversation_id, page.head_seq)
            after_seq = self._read(call, after_seq, entries, page.head_seq)
            if not page.has_more:
                return page.head_seq

    def _begin_read(self) -> int:
        call = self.world.next_call()
        self._record("invoke", "read", call=call)
        return call

    def _read(self, call: int, after_seq: int, encoded: list[bytes], head_seq: int) -> int:
        """Take the entries of an answer; the last seq of them."""
        entries = [decode_entry(each) for each in encoded]
        for entry in entries:
            self._take(entry.seq)
        last_seq = entries[-1].seq if entries else after_seq
        told = tuple(seen_entry(entry) for entry in entries)
        span = {"first_seq": after_seq + 1, "last_seq": last_seq, "head_seq": head_seq}
        self._record("ok", "read", call=call, entries=told, **span)
        return last_seq

    def _record(self, type: str, op: str, **fields: Any) -> None:
        fields.setdefault("conversation", self.conversation_id)
        self.world.record(type, op, self.name, user=self.user, connection=self.connection, **fields)
