"""A chat in progress, whoever sits at the other side of the terminal: a person or a script."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from msgspec import Struct

from gateway.cli.chat_model import HISTORY_ENTRIES, ChatModel
from gateway.cli.chat_text import in_one_line
from gateway.cli.errors import UNAVAILABLE, USAGE, CliError, sole_cause
from protocol import limits
from protocol.client import (
    Client,
    ClientError,
    ConversationLeft,
    EntryEvent,
    Event,
    NotReachable,
    PresenceChanged,
    ReceiptChanged,
    Refused,
    RequestTimeout,
    Resumed,
    StateChanged,
    TokenRefused,
    TypingChanged,
)
from protocol.frames import Conversation, ConversationKind

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
"""Seconds that a chat waits for its first connection: long enough for a node that is just starting."""


class Goal(Struct, frozen=True):
    """Which conversation is meant: with ``peers``, or the group ``group`` (id or title), made of peers if need be."""

    user: str
    peers: list[str]
    group: str


class Chat:
    """A conversation open for chatting. Made by ``open_chat``."""

    def __init__(self, client: Client, conversation: Conversation, model: ChatModel) -> None:
        self.client = client
        self.conversation_id = conversation.conversation_id
        self.model = model
        self._oldest_seq = 0
        self._read_seq = 0
        self._came_back = False
        self._unread = trio.Event()

    def concerns(self, event: Event) -> bool:
        """Is the event about this conversation, or about the connection?"""
        if isinstance(event, EntryEvent | ReceiptChanged | TypingChanged | ConversationLeft):
            return event.conversation_id == self.conversation_id
        return isinstance(event, StateChanged | PresenceChanged | Resumed)

    async def load_history(self) -> list[EntryEvent]:
        """The newest entries, shown in the model."""
        page = await self.client.history(self.conversation_id, limit=HISTORY_ENTRIES)
        for entry in page.entries:
            self.model.take(entry, time.monotonic())
        self._oldest_seq = page.entries[0].seq if page.entries else 0
        self.read(page.head_seq)
        return page.entries

    def read(self, seq: int) -> None:
        """The user has seen everything up to ``seq``; ``keep_read`` tells the others."""
        if seq > self._read_seq:
            self._read_seq = seq
            self._unread.set()

    def came_back(self) -> None:
        """The connection is a new one: receipts passed by meanwhile, and what a killed node had not saved is lost."""
        self._came_back = True
        self._unread.set()

    async def keep_read(self) -> None:
        """Send read receipts, the newest only, and fetch those that were missed. Runs until cancelled."""
        while True:
            await self._unread.wait()
            self._unread = trio.Event()
            try:
                if self._came_back:
                    await self._fetch_receipts()
                await self.client.mark_read(self.conversation_id, self._read_seq)
            except RequestTimeout:
                self._unread.set()  # still offline: it is worth telling when the connection is back
            except Refused as refused:
                self.model.note(f"the others are not told that you read this: {refused.message}")

    async def _fetch_receipts(self) -> None:
        conversation = await self.client.get_conversation(self.conversation_id)
        self._came_back = False
        for member in conversation.members:
            receipt = ReceiptChanged(self.conversation_id, member.user, member.delivered_seq, member.read_seq)
            self.model.take(receipt, time.monotonic())

    async def older(self, count: int) -> list[EntryEvent]:
        """Entries before those shown so far."""
        if self._oldest_seq <= 1:
            return []
        page = await self.client.history(self.conversation_id, before_seq=self._oldest_seq, limit=count)
        if page.entries:
            self._oldest_seq = page.entries[0].seq
        return page.entries


async def open_chat(client: Client, goal: Goal) -> Chat:
    """Connect and find, or create, the conversation.

    Raises:
        CliError: it cannot be.
    """
    try:
        await client.wait_online(CONNECT_TIMEOUT_S)
    except NotReachable as error:
        raise CliError(
            f"{in_one_line(str(error))}; is the node running (tidegate serve), and is --url right?", UNAVAILABLE
        ) from None
    if client.user != goal.user:
        raise CliError(f"the token is for {client.user}, not for {goal.user}: chat --as {client.user}", USAGE)
    conversation = await _find(client, goal)
    users = [member.user for member in conversation.members]
    others = [user for user in users if user != goal.user]
    if conversation.kind != ConversationKind.DIRECT:
        title = conversation.title or conversation.conversation_id
    else:
        title = others[0] if others else "note to self"
    chat = Chat(client, conversation, ChatModel(goal.user, title, conversation.members))
    chat.model.state = client.state
    if 0 < len(others) <= limits.PRESENCE_WATCH_USERS_MAX:
        for presence in await client.watch_presence(others):
            chat.model.take(PresenceChanged(presence.user, presence.online, presence.last_seen_ms), 0)
    return chat


async def _find(client: Client, goal: Goal) -> Conversation:
    if not goal.group:
        if len(goal.peers) > 1:
            raise CliError("several --to need --group TITLE: a name for the conversation of them all", USAGE)
        return await client.create_direct(goal.peers[0])
    async for found in client.conversations():
        if goal.group in {found.conversation_id, found.title}:
            return await client.get_conversation(found.conversation_id)
    if not goal.peers:
        raise CliError(f"{goal.user} is in no group {goal.group!r}; add --to USER (several times) to create it")
    return await client.create_group(goal.group, goal.peers)


async def plainly(work: Callable[[], Awaitable[T]]) -> T:
    """Run a chat; what the client raises becomes one clear line.

    Raises:
        CliError: for every error of the client.
    """
    try:
        return await work()
    except Exception as error:
        cause = sole_cause(error)
        if isinstance(cause, ClientError):
            raise _in_words(cause) from None
        raise


def _in_words(error: ClientError) -> CliError:
    told = in_one_line(str(error))
    match error:
        case TokenRefused():
            return CliError(f"{told}; pass --token, or the --data-dir of the node for a development token")
        case RequestTimeout() | NotReachable():
            return CliError(told, UNAVAILABLE)
        case Refused():
            return CliError(f"the node refused: {in_one_line(error.message)}")
        case _:
            return CliError(told)
