"""Following the conversations: sync after each connect, then pushes; gaps are filled by history."""

import logging
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

import trio
from msgspec import DecodeError, Raw

from protocol import limits
from protocol.client.connection import Connection, RefusedNow
from protocol.client.endings import ConnectionEnded, Ending
from protocol.client.errors import Refused
from protocol.client.events import ConversationLeft, EventQueue, Resumed, entry_event
from protocol.client.send_queue import SendQueue
from protocol.client.session import Session, since_joining
from protocol.codec import decode_entry
from protocol.errors import ErrorCode
from protocol.frames import (
    Command,
    ConversationList,
    Entry,
    EntryKind,
    History,
    HistoryPage,
    ListConversations,
    Reply,
    Sync,
    SyncedConversation,
    SyncPage,
)

log = logging.getLogger("tidegate.client")

Make = Callable[[int], Command]
OnReply = Callable[[Reply], None]

HELD_ENTRIES_MAX: Final = 1_000
"""Entries held back behind gaps, over all conversations: ten full syncs of a conversation."""

OWN_ANSWER_S: Final = 0.5
"""Seconds for which a gap may be the place of an own message, which is not pushed: its acknowledgement comes behind
what was appended together with it (PROTOCOL.md 7), so the gap closes by itself a moment later."""


class Follower:
    """Turns what a connection brings into events: each entry once, in order, nothing missed.

    Args:
        session: what this device has seen.
        events: where entries go.
        sends: asked whether an entry is a message of this very client.
        begun: whether the session comes from an earlier run; if not, it begins at the present heads.
        replay: a session that begins anew begins with what a sync gives, not with the present heads.

    Attributes:
        begun: whether the session has its beginning in all conversations; until then it cannot be gone on with.
    """

    def __init__(self, session: Session, events: EventQueue, sends: SendQueue, *, begun: bool, replay: bool) -> None:
        self.user = ""
        self.own_ids: set[str] = set()
        self.moved: set[str] = set()
        self.left: set[str] = set()
        self._session = session
        self._events = events
        self._sends = sends
        self.begun = begun or replay
        self._resync_all = False
        self._resync_named: set[str] = set()
        self._work = trio.Event()
        self._page_entries = min(limits.HISTORY_ENTRIES_MAX, max(1, events.events_max // 2))
        self._early: dict[str, list[Callable[[], None]]] = {}
        self._early_count = 0
        self._syncing = False

    def begin(self, user: str) -> None:
        """A new connection is there, ``user``'s; nothing was read from it yet."""
        self.user = user
        self._resync_all = False
        self._resync_named.clear()
        self._early.clear()  # the sync that was broken off brings them
        self._early_count = 0
        self._syncing = self.begun

    def pushed(self, conversation_id: str, raw: Raw) -> None:
        """An entry was pushed.

        Raises:
            ConnectionEnded: it is no entry.
        """
        entry = _decode(raw)
        if not self._wait_for_sync(conversation_id, lambda: self._take(conversation_id, entry)):
            self._take(conversation_id, entry)

    def _take(self, conversation_id: str, entry: Entry) -> None:
        """An entry came, whichever way."""
        if entry.sender == self.user and (
            self._sends.stored(conversation_id, entry.client_msg_id, entry.seq, entry.time_us)
            or entry.client_msg_id in self.own_ids
        ):
            self._own(conversation_id, entry.seq)
        elif self._events.full:
            self._session.exists(conversation_id, entry.seq)  # fetched again when there is room
        else:
            self._show(conversation_id, self._session.offer(conversation_id, entry))
        self._look_for_gaps()

    def own(self, conversation_id: str, seq: int) -> None:
        """An entry of this very client stands at ``seq``: it is no event, and no gap either."""
        if not self._wait_for_sync(conversation_id, lambda: self._own(conversation_id, seq)):
            self._own(conversation_id, seq)

    def _own(self, conversation_id: str, seq: int) -> None:
        self._show(conversation_id, self._session.own(conversation_id, seq))
        self._look_for_gaps()

    def leave(self, conversation_id: str) -> bool:
        """The user is no longer in the conversation. Returns whether that is news."""
        self.left.add(conversation_id)
        self.moved.discard(conversation_id)
        return self._session.forget(conversation_id)

    def resync(self, conversation_ids: Iterable[str]) -> None:
        """The node may have missed something in these conversations, or in all when there are none."""
        named = set(conversation_ids)
        self._resync_named |= named
        self._resync_all = self._resync_all or not named
        self._syncing = self.begun
        self._work.set()

    async def run(self, connection: Connection) -> None:
        """Catch up over a new connection, then fill gaps as they appear. Runs until cancelled."""
        resumed = await self._catch_up(connection)
        self._take_early(list(self._early))
        self._events.put_control(Resumed(resumed))
        while True:
            self._work = trio.Event()
            if self._resync_all:
                self._resync_all = False
                await self._catch_up(connection)
            elif self._resync_named:
                names, self._resync_named = self._resync_named, set()
                await self._resync_some(connection, names)
            else:
                self._syncing = False
                self._take_early(list(self._early))
                if self._session.gap() is not None:
                    await self._fill(connection)
                else:
                    await self._work.wait()

    def _wait_for_sync(self, conversation_id: str, take: Callable[[], None]) -> bool:
        """Put off what came of a conversation that is not known yet, while a sync may bring what stands before it.

        Returns False when there is nothing to wait for.
        """
        if not self._syncing or conversation_id in self._session:
            return False
        if self._early_count >= HELD_ENTRIES_MAX:
            self._syncing = False
            self._take_early(list(self._early))
            return False
        self._early.setdefault(conversation_id, []).append(take)
        self._early_count += 1
        return True

    def _take_early(self, names: Iterable[str]) -> None:
        """Take what waited for a sync, which has told of these conversations by now."""
        for name in names:
            waited = self._early.pop(name, [])
            self._early_count -= len(waited)
            for take in waited:
                take()

    async def _catch_up(self, connection: Connection) -> bool:
        """Learn all that is new. Returns whether every conversation was continued without a gap."""
        if not self.begun:
            interrupted = bool(self._session.cursors())
            await self._begin_at_heads(connection)
            self.begun = True
            if not interrupted:
                return False
        lowered = False
        while True:
            cursors = self._session.cursors()
            try:
                if len(cursors) > limits.SYNC_CURSORS_MAX:
                    resumed = await self._sync_named(connection, cursors)
                    await self._discover(connection, cursors)
                else:
                    resumed = await self._sync(connection, Sync(0, cursors))
                return resumed and not lowered
            except Refused as refused:
                if refused.code != ErrorCode.BEYOND_HEAD:
                    raise ConnectionEnded(Ending("backoff", f"the node refuses to sync ({refused})")) from refused
                await self._lower_cursors(connection, refused)
                lowered = True

    async def _sync(self, connection: Connection, sync: Sync) -> bool:
        def on_reply(reply: Reply) -> None:
            if isinstance(reply, SyncPage):
                for synced in reply.conversations:
                    self._take_synced(synced)

        def command(request_id: int) -> Sync:
            return Sync(request_id, sync.cursors, sync.only_named)

        reply = await self._call(connection, command, on_reply)
        return isinstance(reply, SyncPage) and reply.resumed

    async def _sync_named(self, connection: Connection, cursors: dict[str, int]) -> bool:
        resumed = True
        rest = iter(cursors.items())
        while part := dict(islice(rest, limits.SYNC_CURSORS_MAX)):
            resumed &= await self._sync(connection, Sync(0, part, True))
        return resumed

    async def _resync_some(self, connection: Connection, names: set[str]) -> None:
        known = {name: self._session.cursor(name) for name in names if name in self._session}
        try:
            await self._sync_named(connection, known)
            await self._sync_named(connection, dict.fromkeys(names - known.keys(), 0))
        except Refused:
            self._resync_all = True  # a full sync knows what to do about each refusal

    async def _discover(self, connection: Connection, cursors: dict[str, int]) -> None:
        """Find conversations that came while away, when there are too many to name in one sync.

        The list is newest first, so the first conversation without news since ``cursors`` ends the search.
        """
        cursor = ""
        while True:
            page = await self._list(connection, cursor)
            for found in page.conversations:
                if found.head_seq <= cursors.get(found.conversation_id, -1):
                    return
                if found.conversation_id not in self._session:
                    await self._sync(connection, Sync(0, {found.conversation_id: 0}, True))
            cursor = page.next_cursor
            if not cursor:
                return

    async def _begin_at_heads(self, connection: Connection) -> None:
        cursor = ""
        while True:
            page = await self._list(connection, cursor)
            for found in page.conversations:
                self._session.start_at(found.conversation_id, found.head_seq)
                self.moved.add(found.conversation_id)
            cursor = page.next_cursor
            if not cursor:
                return

    async def _lower_cursors(self, connection: Connection, refused: Refused) -> None:
        log.warning("the node has fewer entries than this client has seen (%s): going on from its heads", refused)
        lowered: set[str] = set()
        cursor = ""
        while True:
            page = await self._list(connection, cursor)
            lowered.update(self._session.lower({c.conversation_id: c.head_seq for c in page.conversations}))
            cursor = page.next_cursor
            if not cursor:
                break
        if not lowered:
            raise ConnectionEnded(Ending("backoff", f"the node refuses to sync ({refused})")) from refused
        self.moved.update(lowered)

    async def _list(self, connection: Connection, cursor: str) -> ConversationList:
        reply = await self._call(
            connection, lambda request_id: ListConversations(request_id, cursor, limits.LIST_CONVERSATIONS_MAX)
        )
        assert isinstance(reply, ConversationList)
        return reply

    async def _fill(self, connection: Connection) -> None:
        """Fetch one page of what is missing, when the program has room for it."""
        await self._events.wait_half_empty()
        name = self._session.gap()
        if name is not None and self._sends.awaits_answer(name):
            with trio.move_on_after(OWN_ANSWER_S):
                await self._sends.answered(name)
            name = self._session.gap()
        if name is None:
            return
        before = self._session.cursor(name)
        try:
            page = await self._call(
                connection, lambda request_id: History(request_id, name, before, None, self._page_entries)
            )
        except Refused as refused:
            if refused.code == ErrorCode.BEYOND_HEAD:
                self._resync_all = True  # which finds out what the node has, and lowers the cursor
            else:
                self._tell_left(name)
            return
        assert isinstance(page, HistoryPage)
        self._take_all(name, page.entries)
        if self._session.cursor(name) == before:
            # The node told of an entry that it cannot give yet. Ask again, but neither at once nor before the others.
            self._session.postpone(name)
            await trio.sleep(limits.RECONNECT_BASE_S)

    async def _call(self, connection: Connection, command: Make, on_reply: OnReply | None = None) -> Reply:
        """Ask until the node answers; refusals that may pass are waited for.

        Raises:
            Refused: NOT_FOUND and BEYOND_HEAD, which have a meaning here.
            ConnectionEnded: any other refusal that is final. A new connection may meet a node without the fault.
        """
        try:
            return await connection.insist(command, on_reply)
        except RefusedNow as refused:
            if refused.code in {ErrorCode.NOT_FOUND, ErrorCode.BEYOND_HEAD}:
                raise
            raise ConnectionEnded(Ending("backoff", f"the node refuses to sync ({refused})")) from refused

    def _take_synced(self, synced: SyncedConversation) -> None:
        name = synced.conversation_id
        if synced.removed:
            self._tell_left(name)
        elif name in self._session:
            self._take_all(name, synced.entries)
        else:
            entries = [_decode(raw) for raw in synced.entries]
            for entry in since_joining(entries, self.user):
                self._take(name, entry)
        self._take_early([name])

    def _take_all(self, conversation_id: str, raws: Iterable[Raw]) -> None:
        for raw in raws:
            self._take(conversation_id, _decode(raw))

    def _tell_left(self, conversation_id: str) -> None:
        if self.leave(conversation_id):
            self._events.put_control(ConversationLeft(conversation_id))

    def _show(self, conversation_id: str, entries: list[Entry]) -> None:
        if conversation_id not in self._session:
            return  # what came late of a conversation that was left
        self.moved.add(conversation_id)
        self.left.discard(conversation_id)
        inside = True
        for entry in entries:
            self._events.put_entry(entry_event(conversation_id, entry))
            if self.user in (entry.users or ()):
                inside = entry.kind != EntryKind.MEMBERS_REMOVED
        if not inside:
            self.leave(conversation_id)

    def _look_for_gaps(self) -> None:
        if self._session.gap() is not None:
            self._work.set()


def _decode(raw: Raw) -> Entry:
    try:
        return decode_entry(bytes(raw))
    except (DecodeError, RecursionError, UnicodeDecodeError) as error:
        text = f"the node sent something that is no entry: {error}"
        raise ConnectionEnded(Ending("backoff", text)) from error
