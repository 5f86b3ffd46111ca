"""The commands of a client besides sending: one method each, all built on ``request``."""

import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from msgspec import Struct

from protocol import limits
from protocol.client.events import EntryEvent, entry_event
from protocol.codec import decode_entry
from protocol.frames import (
    AddMembers,
    Command,
    Conversation,
    ConversationKind,
    ConversationList,
    ConversationReply,
    CreateConversation,
    Frame,
    GetConversation,
    History,
    HistoryPage,
    ListConversations,
    ListMembers,
    MarkReceipt,
    Member,
    MembersPage,
    Ok,
    Presence,
    PresenceReply,
    RemoveMembers,
    Rename,
    Reply,
    SendAck,
    WatchPresence,
)

R = TypeVar("R", bound=Frame)

REQUEST_TIMEOUT_S: Final = 30.0
"""Seconds that a request may take, reconnects included."""


class Page(Struct, frozen=True):
    """A page of history, oldest first. ``has_more``: the log goes on in the direction asked."""

    entries: list[EntryEvent]
    head_seq: int
    has_more: bool


class Commands(ABC):
    """What a program may ask of a node.

    Each method waits for the answer, across reconnects, up to a timeout in seconds. Cancelling gives the answer up;
    the command may be carried out all the same, and repeating it is safe.

    All raise ``Refused`` (the node said no), ``RequestTimeout`` (nothing was heard in time) and ``ClientClosed``.
    """

    @property
    @abstractmethod
    def user(self) -> str:
        """The user that the node knows this client as; empty before the first connection."""

    @abstractmethod
    async def request(
        self, command: Callable[[int, int], Command], *, timeout_s: float = REQUEST_TIMEOUT_S, own: str = ""
    ) -> Reply:
        """Carry out the command made for a request id and an attempt (from 1), connecting again where needed.

        ``own``: the client_msg_id under which the command may appear in the log.
        """

    @abstractmethod
    def _forget(self, conversation_id: str) -> None:
        """The user has left the conversation by a command of this client."""

    async def create_direct(self, user: str) -> Conversation:
        """The conversation with ``user``, created if there was none."""
        return await self._create(ConversationKind.DIRECT, [user], "")

    async def note_to_self(self) -> Conversation:
        """The conversation with oneself, created if there was none."""
        return await self._create(ConversationKind.DIRECT, [], "")

    async def create_group(
        self, title: str, members: Sequence[str], *, client_msg_id: str | None = None
    ) -> Conversation:
        """Create a group of the user and ``members``. The same ``client_msg_id`` again finds the same group."""
        return await self._create(ConversationKind.GROUP, members, title, client_msg_id)

    async def create_channel(
        self, title: str, members: Sequence[str], *, client_msg_id: str | None = None
    ) -> Conversation:
        """Create a channel, a group for very many, of the user and ``members``; others are added by ``add_members``.

        The same ``client_msg_id`` again finds the same channel.
        """
        return await self._create(ConversationKind.CHANNEL, members, title, client_msg_id)

    async def add_members(self, conversation_id: str, users: Sequence[str]) -> None:
        """Add users to a group; those already in are passed over."""
        name = uuid.uuid4().hex
        await self._ask(
            lambda request_id, n: AddMembers(request_id, conversation_id, name, list(users), n), SendAck, Ok, own=name
        )

    async def remove_members(self, conversation_id: str, users: Sequence[str]) -> None:
        """Remove users from a group: oneself, or, as its creator, anybody."""
        name = uuid.uuid4().hex
        await self._ask(
            lambda request_id, n: RemoveMembers(request_id, conversation_id, name, list(users), n),
            SendAck,
            Ok,
            own=name,
        )
        if self.user in users:
            self._forget(conversation_id)

    async def rename(self, conversation_id: str, title: str) -> None:
        """Give a group a new title."""
        name = uuid.uuid4().hex
        await self._ask(
            lambda request_id, n: Rename(request_id, conversation_id, name, title, n), SendAck, Ok, own=name
        )

    async def get_conversation(self, conversation_id: str) -> Conversation:
        """One conversation; with its members and how far they are, unless those are too many: see ``members``."""
        reply = await self._ask(lambda request_id, _: GetConversation(request_id, conversation_id), ConversationReply)
        return reply.conversation

    def members(self, conversation_id: str) -> "Members":
        """All members of a conversation and how far they are, fetched page by page while iterating."""

        async def fetch(after: str) -> MembersPage:
            return await self._ask(
                lambda request_id, _: ListMembers(request_id, conversation_id, after, limits.LIST_MEMBERS_MAX),
                MembersPage,
            )

        return Members(fetch)

    def conversations(self) -> "Conversations":
        """The user's conversations, newest first, fetched page by page while iterating."""
        return Conversations(self._list_page)

    async def history(
        self,
        conversation_id: str,
        *,
        after_seq: int | None = None,
        before_seq: int | None = None,
        limit: int = limits.HISTORY_ENTRIES_DEFAULT,
    ) -> Page:
        """A page of a log, oldest first: after ``after_seq``, before ``before_seq``, or the newest.

        Looking at history changes nothing in what ``events`` shows.
        """
        page = await self._ask(
            lambda request_id, _: History(request_id, conversation_id, after_seq, before_seq, limit), HistoryPage
        )
        entries = [entry_event(conversation_id, decode_entry(bytes(raw))) for raw in page.entries]
        return Page(entries, page.head_seq, page.has_more)

    async def mark_read(self, conversation_id: str, seq: int) -> None:
        """All up to ``seq`` was read; that implies delivered."""
        await self._ask(lambda request_id, _: MarkReceipt(request_id, conversation_id, seq, seq), Ok)

    async def mark_delivered(self, conversation_id: str, seq: int) -> None:
        """All up to ``seq`` reached the user. The client does this by itself, unless told not to."""
        await self._ask(lambda request_id, _: MarkReceipt(request_id, conversation_id, seq), Ok)

    async def watch_presence(self, users: Sequence[str]) -> list[Presence]:
        """Be told by events when these users come and go, instead of those watched before.

        Returns how things stand now. The client repeats the command after each reconnect.
        """
        reply = await self._ask(lambda request_id, _: WatchPresence(request_id, list(users)), PresenceReply)
        return reply.users

    async def _create(
        self, kind: ConversationKind, members: Sequence[str], title: str, client_msg_id: str | None = None
    ) -> Conversation:
        name = client_msg_id or uuid.uuid4().hex
        reply = await self._ask(
            lambda request_id, _: CreateConversation(request_id, kind, list(members), name, title),
            ConversationReply,
            own=name,
        )
        return reply.conversation

    async def _list_page(self, cursor: str) -> ConversationList:
        return await self._ask(
            lambda request_id, _: ListConversations(request_id, cursor, limits.LIST_CONVERSATIONS_MAX),
            ConversationList,
        )

    async def _ask(
        self, command: Callable[[int, int], Command], expected: type[R], *also: type[Frame], own: str = ""
    ) -> R:
        reply = await self.request(command, own=own)
        if not isinstance(reply, (expected, *also)):
            raise AssertionError(f"the node answered with {type(reply).__name__} instead of {expected.__name__}")
        return reply  # type: ignore[return-value]  # ``also`` is for callers that ignore the reply


class Conversations:
    """Iterator over a user's conversations: see ``Commands.conversations``. It may be left half-way."""

    def __init__(self, fetch: Callable[[str], Awaitable[ConversationList]]) -> None:
        self._fetch = fetch
        self._page: deque[Conversation] = deque()
        self._cursor: str | None = ""

    def __aiter__(self) -> "Conversations":
        return self

    async def __anext__(self) -> Conversation:
        while not self._page:
            if self._cursor is None:
                raise StopAsyncIteration
            page = await self._fetch(self._cursor)
            self._page.extend(page.conversations)
            self._cursor = page.next_cursor or None
        return self._page.popleft()


class Members:
    """Iterator over a conversation's members: see ``Commands.members``. It may be left half-way."""

    def __init__(self, fetch: Callable[[str], Awaitable[MembersPage]]) -> None:
        self._fetch = fetch
        self._page: deque[Member] = deque()
        self._after = ""
        self._has_more = True

    def __aiter__(self) -> "Members":
        return self

    async def __anext__(self) -> Member:
        while not self._page:
            if not self._has_more:
                raise StopAsyncIteration
            page = await self._fetch(self._after)
            self._page.extend(page.members)
            self._has_more = page.has_more
            if page.members:
                self._after = page.members[-1].user
        return self._page.popleft()
