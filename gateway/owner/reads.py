"""Answers about one conversation: pages of its log, and how it stands."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio
from msgspec import Raw, Struct

from gateway.broker import EdgePort, Origin
from gateway.owner.conversation import Conversation
from gateway.owner.counters import OwnerCounters
from gateway.pages import fit
from gateway.refusals import Refused, beyond_head, not_found, overloaded, unavailable
from gateway.task_pool import TaskPool
from protocol import frames
from protocol.errors import ErrorCode
from protocol.frames import History, HistoryPage, ListMembers
from protocol.limits import GROUP_MEMBERS_MAX
from store.entries import MemberRecord
from store.interface import Store, Unavailable

READ_TIMEOUT_S: Final = 5.0
"""Seconds that reading a page may take: half of what a client waits for an answer."""


class Window(Struct, frozen=True):
    """Seqs asked for: first <= seq <= last; ``newest`` says from which end a page is filled."""

    first: int
    last: int
    newest: bool


def describe(conversation: Conversation, user: str) -> frames.Conversation:
    """The conversation for ``user``, who is one of its members; with all of them, if they are not too many."""
    member = conversation.members[user]
    few = not conversation.is_channel and conversation.member_count <= GROUP_MEMBERS_MAX
    shown = conversation.members.values() if few else ()
    return frames.Conversation(
        conversation.conversation_id,
        int(conversation.kind),
        conversation.title,
        conversation.head_seq,
        member.read_seq,
        member.delivered_seq,
        Raw(conversation.tail[-1]) if conversation.tail else None,
        [frames.Member(each.user, each.delivered_seq, each.read_seq) for each in shown],
        conversation.member_count,
    )


def window_of(conversation: Conversation, command: History) -> Window:
    """What a History command asks for, at most ``limit`` seqs.

    Raises:
        Refused: both directions given, or after_seq beyond the head.
    """
    head_seq, after, before = conversation.head_seq, command.after_seq, command.before_seq
    if after is not None and before is not None:
        raise Refused(
            ErrorCode.BAD_REQUEST,
            "after_seq and before_seq are both given; give one of them, or neither for the newest entries",
        )
    if after is not None:
        if after > head_seq:
            raise beyond_head("after_seq", after, conversation.conversation_id, head_seq)
        return Window(after + 1, min(head_seq, after + command.limit), newest=False)
    last = head_seq if before is None else min(max(before, 1) - 1, head_seq)
    return Window(max(1, last - command.limit + 1), last, newest=True)


class Reader:
    """Answers History, GetConversation and ListMembers: from memory, or from the store for a bounded number at once."""

    def __init__(
        self,
        store: Store,
        edge: EdgePort,
        counters: OwnerCounters,
        pool: TaskPool,
        find: Callable[[str], Conversation | None],
    ) -> None:
        self._store = store
        self._edge = edge
        self._counters = counters
        self._pool = pool
        self._find = find

    def get(self, conversation: Conversation, origin: Origin, request_id: int) -> None:
        """Answer GetConversation. Raises as ``require_member`` does."""
        conversation.require_member(origin.user)
        reply = frames.ConversationReply(request_id, describe(conversation, origin.user))
        self._edge.reply(origin, reply, conversation.conversation_id)

    def list_members(self, conversation: Conversation, origin: Origin, command: ListMembers) -> None:
        """Answer ListMembers when the store was read. Raises as ``require_member`` does, or when too many wait."""
        conversation.require_member(origin.user)
        if not self._pool.start(partial(self._list, conversation, origin, command)):
            self._counters.overloaded += 1
            raise overloaded(self._pool.waiting)

    async def _list(self, conversation: Conversation, origin: Origin, command: ListMembers) -> None:
        """Read a page of members; what was cancelled is not answered."""
        refusal: Refused | None = None
        found: Sequence[MemberRecord] = ()
        conversation_id, limit = conversation.conversation_id, command.limit
        with trio.move_on_after(READ_TIMEOUT_S) as timeout:
            try:
                found = await self._store.list_members(conversation_id, after=command.after, limit=limit + 1)
            except Unavailable as error:
                refusal = unavailable(f"the store could not be read ({error})")
        if timeout.cancelled_caught:
            refusal = unavailable(f"the store was not read within {READ_TIMEOUT_S:g} s")
        current = self._find(conversation_id) or conversation
        if refusal is None and current.excludes(origin.user):
            refusal = not_found()
        if refusal is not None:
            self._edge.reply(origin, refusal.reply(command.id))
            return
        # What is in memory is newer than what the store was told.
        members = [current.members.get(each.user, each) for each in found[:limit]]
        page = [frames.Member(each.user, each.delivered_seq, each.read_seq) for each in members]
        self._edge.reply(origin, frames.MembersPage(command.id, conversation_id, page, len(found) > limit))

    def history(self, conversation: Conversation, origin: Origin, command: History) -> None:
        """Answer History, now or when the store was read.

        Raises:
            Refused: not a member, a window that makes no sense, or too many reads waiting.
            MembersUnknown: whether the user is one.
        """
        conversation.require_member(origin.user)
        window = window_of(conversation, command)
        first = conversation.first_tail_seq
        if window.first >= first or window.first > window.last:
            entries = conversation.tail[window.first - first : window.last + 1 - first]
            self._reply(conversation, origin, command, window, entries)
        elif not self._pool.start(partial(self._read, conversation, origin, command, window)):
            self._counters.overloaded += 1
            raise overloaded(self._pool.waiting)

    async def _read(self, conversation: Conversation, origin: Origin, command: History, window: Window) -> None:
        """Read a page from the store; what was cancelled is not answered."""
        refusal: Refused | None = None
        entries: Sequence[bytes] = ()
        with trio.move_on_after(READ_TIMEOUT_S) as timeout:
            try:
                entries = await self._store.read(
                    conversation.conversation_id,
                    after_seq=window.first - 1,
                    before_seq=window.last + 1,
                    limit=command.limit,
                    newest=window.newest,
                )
            except Unavailable as error:
                refusal = unavailable(f"the store could not be read ({error})")
        if timeout.cancelled_caught:
            refusal = unavailable(f"the store was not read within {READ_TIMEOUT_S:g} s")
        # Memory may have let go of the conversation, or of this member, meanwhile.
        current = self._find(conversation.conversation_id) or conversation
        if refusal is None and current.excludes(origin.user):
            refusal = not_found()
        if refusal is None:
            self._reply(conversation, origin, command, window, entries)
        else:
            self._edge.reply(origin, refusal.reply(command.id))

    def _reply(
        self,
        conversation: Conversation,
        origin: Origin,
        command: History,
        window: Window,
        entries: Sequence[bytes],
    ) -> None:
        page = fit(entries, window.newest)
        head_seq = conversation.head_seq
        has_more = window.last - len(page) > 0 if window.newest else window.first + len(page) <= head_seq
        self._edge.reply(
            origin,
            HistoryPage(
                command.id, conversation.conversation_id, [Raw(encoded) for encoded in page], head_seq, has_more
            ),
            conversation.conversation_id,
        )
