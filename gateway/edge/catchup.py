"""Coming back: what is new in all of a user's conversations (Sync), and which there are (ListConversations).

Both are read from the store after the command came, and the connection was registered before that: what is durable by
then is in the answer, what becomes durable later is pushed. Nothing can fall between the two, and the client drops by
seq what it gets twice. In a cluster the answer may stop short of what is durable and not acknowledged yet: that is
pushed, too, because its owner looks for who registered meanwhile before it acknowledges.

A client that missed nothing costs one read of the store: on a single node of all its conversations with their last
entries, in a cluster of which they are, their heads being known elsewhere. So does a page of a list, and in a cluster
a look into the logs of the conversations on it.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import msgspec
import trio
from msgspec import Raw

from gateway.broker import EdgePort, Origin
from gateway.config import Settings
from gateway.edge.followers import Followers
from gateway.edge.moved import Heads, described, standing
from gateway.pages import fit
from gateway.refusals import OVERLOADED_RETRY_MS, Refused, beyond_head, overloaded, too_long, unavailable
from gateway.task_pool import TaskPool
from protocol import limits
from protocol.codec import decode_entry, decode_entry_head
from protocol.errors import ErrorCode
from protocol.frames import (
    Command,
    Conversation,
    ConversationKind,
    ConversationList,
    EntryKind,
    ListConversations,
    Member,
    Seq,
    Sync,
    SyncedConversation,
    SyncPage,
)
from store.entries import Membership, changes_of
from store.interface import Store, Unavailable

SYNCS_WAITING_MAX: Final = 16_384
"""Commands that may wait for a turn: as many as connections that come back at once, some 2 KB each besides cursors."""

SYNCS_EACH_MAX: Final = 16
"""Those of one connection: a client with many conversations sends several; nobody shall take the places of all."""

CURSORS_WAITING_MAX: Final = 2_000_000
"""Cursors of all commands that wait, some 130 bytes each: those of 16,384 clients in 122 conversations each."""

CATCHUP_TIMEOUT_S: Final = 20.0
"""Seconds that one page may take once its turn has come: 1,000 conversations, read one by one."""

SYNCED_BYTES: Final = 150
"""Bytes that a conversation takes in a page besides its entries: its id and four numbers, rounded up."""


class OwnerMemory(Protocol):
    """What owners know better, or faster, than the store. Plain calls."""

    def pointers(self, conversation_id: str, user: str) -> tuple[int, int] | None:
        """delivered_seq and read_seq of a member, saved or not; None if the conversation is not in memory."""

    def excludes(self, conversation_id: str, user: str) -> bool:
        """True if the user is certainly not in the conversation (any more)."""

    def recent(self, conversation_id: str, after_seq: int, head_seq: int) -> list[bytes] | None:
        """Encoded durable entries with after_seq < seq <= head_seq; None if memory does not reach that far."""


class _Cursor(msgspec.Struct, array_like=True, frozen=True):
    """Where a list goes on: behind ``last``, the oldest shown so far, and again with what has moved beyond ``newest``.

    Both are time and conversation id of a head. A conversation that gets an entry between two pages is thus shown
    again rather than skipped.
    """

    newest: tuple[int, str]
    last: tuple[int, str]


_encode_cursor = msgspec.msgpack.Encoder().encode
_decode_cursor = msgspec.msgpack.Decoder(_Cursor).decode


class _SyncProgress:
    """A sync between two pages: what is still to be answered."""

    __slots__ = ("changed", "cursors", "origin", "request_id", "resumed")

    def __init__(self, origin: Origin, request_id: int, cursors: dict[str, Seq], changed: deque[Membership]) -> None:
        self.origin = origin
        self.request_id = request_id
        self.cursors = cursors
        self.changed = changed
        self.resumed = True


class Catchup:
    """Answers Sync and ListConversations, ``syncs_max`` at once.

    Attributes:
        syncs: syncs answered.
        resumed: those of them that left no gap.
        lists: conversation lists answered.
        overloaded: commands refused because too many waited.
        before_reading: awaited with the user before the store is read for one: from then on whatever becomes durable
            has to reach this node. Immediate on a single node.
        followers: who is to get what happens in channels; None: there are none.
        heads: knows heads of conversations without reading their logs; None on a single node, whose store knows them.
    """

    def __init__(self, settings: Settings, store: Store, owner: OwnerMemory, edge: EdgePort) -> None:
        self.syncs = 0
        self.resumed = 0
        self.lists = 0
        self.overloaded = 0
        self.before_reading: Callable[[str], Awaitable[None]] = _at_once
        self.followers: Followers | None = None
        self.heads: Heads | None = None
        self._store = store
        self._owner = owner
        self._edge = edge
        self._pool = TaskPool(settings.syncs_max, SYNCS_WAITING_MAX)
        self._waiting: dict[Origin, int] = {}  # commands without a first page yet
        self._cursors_waiting = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be the nursery of the answers until cancelled; what is under way then stays unanswered."""
        await self._pool.run(task_status=task_status)

    @property
    def idle(self) -> bool:
        """Whether no page of an answer is being made; the next one of a slow reader may wait for room."""
        return not self._pool.running and not self._pool.waiting

    def pause(self) -> None:
        """Refuse what comes, with a retryable error, the next page of an answer included."""
        self._pool.closed = True

    def resume(self) -> None:
        """Go on after ``pause``."""
        self._pool.closed = False

    def submit(self, origin: Origin, command: Command) -> None:
        """Answer a Sync or ListConversations when its turn comes. A plain call."""
        assert isinstance(command, Sync | ListConversations)
        cursors = len(command.cursors or ()) if isinstance(command, Sync) else 0
        if cursors > limits.SYNC_CURSORS_MAX:
            refusal = too_long("cursors", cursors, limits.SYNC_CURSORS_MAX, "conversations")
            self._edge.reply(origin, refusal.reply(command.id))
        elif self._waiting.get(origin, 0) >= SYNCS_EACH_MAX:
            self.overloaded += 1
            message = f"{SYNCS_EACH_MAX} such commands of this connection wait already, which is all that one may have"
            self._edge.reply(origin, Refused(ErrorCode.OVERLOADED, message, OVERLOADED_RETRY_MS).reply(command.id))
        elif self._cursors_waiting + cursors <= CURSORS_WAITING_MAX and self._pool.start(
            partial(self._answer, origin, command, cursors)
        ):
            self._waiting[origin] = self._waiting.get(origin, 0) + 1
            self._cursors_waiting += cursors
        else:
            self.overloaded += 1
            self._edge.reply(origin, overloaded(self._pool.waiting).reply(command.id))

    async def _answer(self, origin: Origin, command: Sync | ListConversations, cursors: int) -> None:
        try:
            if isinstance(command, Sync):
                await self._guarded(origin, command.id, partial(self._begin_sync, origin, command))
            else:
                await self._guarded(origin, command.id, partial(self._list, origin, command))
        finally:
            self._cursors_waiting -= cursors
            self._waiting[origin] -= 1
            if not self._waiting[origin]:
                del self._waiting[origin]

    async def _guarded(self, origin: Origin, request_id: int, job: Callable[[], Awaitable[None]]) -> None:
        """Do one job of an answer; answer, if only by an error. What was cancelled is not answered."""
        if self._edge.is_gone(origin):
            return
        refusal: Refused | None = None
        with trio.move_on_after(CATCHUP_TIMEOUT_S) as timeout:
            try:
                await self.before_reading(origin.user)
                await job()
            except Refused as error:
                refusal = error
            except Unavailable as error:
                refusal = unavailable(f"your conversations could not be read ({error})")
        if timeout.cancelled_caught:
            refusal = unavailable(f"the store was not read within {CATCHUP_TIMEOUT_S:g} s")
        if refusal is not None:
            self._edge.reply(origin, refusal.reply(request_id))

    # --- Sync -------------------------------------------------------------------------------------------------------

    async def _begin_sync(self, origin: Origin, command: Sync) -> None:
        """Find out what is new, and answer the first page of it: the conversations with the newest entries first."""
        cursors = command.cursors or {}
        read = partial(standing, self._store, self.heads, origin.user, cursors, command.only_named)
        found = await self._following(origin.user, read, whole=not command.only_named)
        memberships = {each.conversation_id: each for each in found}
        for conversation_id, cursor in cursors.items():
            membership = memberships.get(conversation_id)
            if membership is not None and cursor > membership.head_seq:
                raise beyond_head("the cursor", cursor, conversation_id, membership.head_seq)
        removed = [
            SyncedConversation(conversation_id, 0, 0, [], removed=True)
            for conversation_id in cursors
            if conversation_id not in memberships
        ]
        changed = self._changed(memberships, cursors, command.only_named)
        await self._next_page(_SyncProgress(origin, command.id, cursors, deque(changed)), removed)

    async def _following(
        self, user: str, read: Callable[[], Awaitable[list[Membership]]], *, whole: bool
    ) -> list[Membership]:
        """What ``read`` says of a user's conversations; from their heads on, what happens in channels is pushed, too.

        ``whole``: it says it of all of them.
        """
        if self.followers is None:
            return await read()
        with self.followers.comparing(user) as comparison:
            found = await read()
            channels = [each for each in found if each.kind is ConversationKind.CHANNEL]
            joined_seqs = {each.conversation_id: each.joined_seq for each in channels}
            complete = await comparison.take(joined_seqs, whole=whole)
        return found if complete else await read()

    async def _next_page(self, progress: "_SyncProgress", page: list[SyncedConversation]) -> None:
        """Answer one page; the next one is begun when the client has taken it, in a turn of its own.

        A client that takes its time thus keeps neither a place nor more than a page of memory.
        """
        size = SYNCED_BYTES * len(page)
        while progress.changed:
            membership = progress.changed[0]
            cursor = progress.cursors.get(membership.conversation_id, 0)
            entries = await self._entries(membership, cursor)
            added = SYNCED_BYTES + sum(map(len, entries))
            if page and size + added > limits.PAGE_BYTES_MAX:
                self._edge.reply(progress.origin, SyncPage(progress.request_id, page, done=False))
                self._edge.when_room(progress.origin, partial(self._go_on, progress))
                return
            left = await self._has_left(progress.origin.user, membership, cursor, entries)
            conversation = self._synced(progress.origin.user, membership, cursor, entries, left=left)
            progress.resumed = progress.resumed and not conversation.has_more
            progress.changed.popleft()
            page.append(conversation)
            size += added
        self.syncs += 1
        self.resumed += progress.resumed
        self._edge.reply(progress.origin, SyncPage(progress.request_id, page, done=True, resumed=progress.resumed))

    def _go_on(self, progress: "_SyncProgress") -> None:
        origin, request_id = progress.origin, progress.request_id
        if self._pool.closed:
            self._edge.reply(origin, unavailable("the node is being upgraded").reply(request_id))
            return
        job = partial(self._guarded, origin, request_id, partial(self._next_page, progress, []))
        if not self._pool.start(job):
            self.overloaded += 1
            self._edge.reply(origin, overloaded(self._pool.waiting).reply(request_id))

    @staticmethod
    def _changed(memberships: dict[str, Membership], cursors: dict[str, Seq], only_named: bool) -> list[Membership]:
        changed = [
            each
            for each in memberships.values()
            if each.head_seq > cursors.get(each.conversation_id, 0)
            and (each.conversation_id in cursors or not only_named)
        ]
        changed.sort(key=_recency, reverse=True)
        return changed

    async def _entries(self, membership: Membership, cursor: int) -> Sequence[bytes]:
        """The newest entries after the cursor that a page may hold, oldest first."""
        conversation_id, head_seq = membership.conversation_id, membership.head_seq
        after_seq = max(cursor, head_seq - limits.SYNC_ENTRIES_MAX)
        if after_seq == head_seq - 1 and membership.last_encoded:
            return [membership.last_encoded]
        entries: Sequence[bytes] | None = self._owner.recent(conversation_id, after_seq, head_seq)
        if entries is None:
            entries = await self._store.read(
                conversation_id,
                after_seq=after_seq,
                before_seq=head_seq + 1,
                limit=limits.SYNC_ENTRIES_MAX,
                newest=True,
            )
        return fit(entries, newest=True)

    async def _has_left(self, user: str, membership: Membership, cursor: int, entries: Sequence[bytes]) -> bool:
        """Whether the user was removed after it was read who is in, and before it was known how far the log is.

        What was appended behind that removal is not theirs to see. The entries tell, if none was left out.
        """
        if self.heads is None or membership.kind is ConversationKind.DIRECT:
            return False  # one read said both, or nobody ever leaves
        if membership.head_seq - cursor > len(entries):
            return user not in await self._store.find_members(membership.conversation_id, [user])
        left = False
        for encoded in entries:
            head = decode_entry_head(encoded)
            if head.kind != EntryKind.MESSAGE and head.seq > membership.joined_seq:
                changes = changes_of(decode_entry(encoded))
                left = user in changes.removed or (left and user not in changes.added)
        return left

    def _synced(
        self, user: str, membership: Membership, cursor: int, entries: Sequence[bytes], *, left: bool
    ) -> SyncedConversation:
        conversation_id = membership.conversation_id
        if left or self._owner.excludes(conversation_id, user):  # removed since the store was read
            return SyncedConversation(conversation_id, 0, 0, [], removed=True)
        _, read_seq = self._pointers(membership, user)
        return SyncedConversation(
            conversation_id,
            membership.head_seq,
            read_seq,
            [Raw(encoded) for encoded in entries],
            has_more=membership.head_seq - cursor > len(entries),
        )

    def _pointers(self, membership: Membership, user: str) -> tuple[int, int]:
        """delivered_seq and read_seq of the user; memory has what is not saved yet."""
        known = self._owner.pointers(membership.conversation_id, user)
        return known if known is not None else (membership.delivered_seq, membership.read_seq)

    # --- ListConversations ------------------------------------------------------------------------------------------

    async def _list(self, origin: Origin, command: ListConversations) -> None:
        """Answer with the page behind the cursor."""
        cursor = _parse_cursor(command.cursor) if command.cursor else None
        user = origin.user
        read = partial(standing, self._store, self.heads, user, {}, only_named=False)
        found = await self._following(user, read, whole=True)
        memberships = [each for each in found if not self._owner.excludes(each.conversation_id, user)]
        page, next_cursor = _page(memberships, cursor, command.limit)
        whole = {each.conversation_id: each for each in await described(self._store, self.heads, user, page)}
        shown = _shown(page, whole)
        limit = len(page)
        while limit > 1 and sum(len(each.last_encoded) + SYNCED_BYTES for each in shown) > limits.PAGE_BYTES_MAX:
            limit //= 2
            page, next_cursor = _page(memberships, cursor, limit)  # some of those before
            shown = _shown(page, whole)
        self.lists += 1
        conversations = [
            self._listed(each, user) for each in shown if not self._owner.excludes(each.conversation_id, user)
        ]
        self._edge.reply(origin, ConversationList(command.id, conversations, next_cursor))

    def _listed(self, membership: Membership, user: str) -> Conversation:
        delivered_seq, read_seq = self._pointers(membership, user)
        direct = membership.kind is ConversationKind.DIRECT
        return Conversation(
            membership.conversation_id,
            int(membership.kind),
            "" if direct else membership.title,
            membership.head_seq,
            read_seq,
            delivered_seq,
            Raw(membership.last_encoded),
            [
                Member(peer, *(self._owner.pointers(membership.conversation_id, peer) or (0, 0)))
                if peer != user
                else Member(user, delivered_seq, read_seq)
                for peer in (sorted({user, membership.peer}) if direct else ())
            ],
            membership.member_count,
        )


async def _at_once(_user: str) -> None:
    """Nothing to wait for: this node sees all that happens."""


def _recency(membership: Membership) -> tuple[int, str]:
    return membership.head_time_us, membership.conversation_id


def _page(memberships: list[Membership], cursor: _Cursor | None, limit: int) -> tuple[list[Membership], str]:
    """The page behind the cursor, newest first, and the cursor behind that page (empty: there is no more)."""
    if cursor is None:
        moved: list[Membership] = []
        older = memberships
    else:
        moved = sorted((each for each in memberships if _recency(each) > cursor.newest), key=_recency)
        older = [each for each in memberships if _recency(each) < cursor.last]
    older = sorted(older, key=_recency, reverse=True)
    again = moved[:limit]  # the oldest of them first, so that the rest is what moved after the newest shown
    first_time = older[: limit - len(again)]
    page = sorted((*again, *first_time), key=_recency, reverse=True)
    if len(page) == len(moved) + len(older) or not page:
        return page, ""
    newest = _recency(again[-1]) if again else cursor.newest if cursor else _recency(page[0])
    last = _recency(first_time[-1]) if first_time else cursor.last if cursor else _recency(page[-1])
    return page, urlsafe_b64encode(_encode_cursor(_Cursor(newest, last))).rstrip(b"=").decode()


def _shown(page: Sequence[Membership], whole: Mapping[str, Membership]) -> list[Membership]:
    """What is known of the conversations of a page by now, newest first; one that has ended meanwhile is missing."""
    return sorted((whole[each.conversation_id] for each in page if each.conversation_id in whole), key=_recency)[::-1]


def _parse_cursor(text: str) -> _Cursor:
    try:
        return _decode_cursor(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, msgspec.DecodeError, RecursionError):
        raise Refused(
            ErrorCode.BAD_REQUEST,
            "cursor is none that this node gave; use next_cursor of the page before, or leave it empty for the first",
        ) from None
