"""A node in memory for tests of the client: real WebSocket and frames, no network, scripted where a test wants it."""

from collections import deque
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

import trio
from msgspec import Raw
from trio.testing import memory_stream_pair
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream

from protocol.client.wire import Address
from protocol.codec import InvalidFrame, decode_command, encode_entry, encode_msgpack
from protocol.errors import ErrorCode
from protocol.frames import (
    SUBPROTOCOL,
    AddMembers,
    Authenticate,
    Authenticated,
    Command,
    Conversation,
    ConversationKind,
    ConversationList,
    ConversationReply,
    CreateConversation,
    Entry,
    EntryKind,
    EntryPush,
    ErrorReply,
    GetConversation,
    History,
    HistoryPage,
    ListConversations,
    MarkReceipt,
    Member,
    Ok,
    Ping,
    Pong,
    Presence,
    PresenceReply,
    Push,
    RemoveMembers,
    Rename,
    Reply,
    Send,
    SendAck,
    Sync,
    SyncedConversation,
    SyncPage,
    Typing,
    WatchPresence,
    Welcome,
)

NodeScript = Callable[["FakeConnection", Command], Awaitable[bool]]
"""Sees a command first; True when it has dealt with it."""


class Refusals:
    """A script that refuses what comes first, each time with the next of these codes and retry_after_ms."""

    def __init__(self, *refusals: tuple[ErrorCode, int]) -> None:
        self.left = list(refusals)

    async def __call__(self, connection: "FakeConnection", command: Command) -> bool:
        if not self.left:
            return False
        code, retry_after_ms = self.left.pop(0)
        await connection.put(ErrorReply(command.id, code, "no", retry_after_ms))
        return True


class FakeConnection:
    """The node's end of one connection."""

    def __init__(self, node: "FakeNode", websocket: WebSocketConnection, user: str, device: str) -> None:
        self.node = node
        self.websocket = websocket
        self.user = user
        self.device = device
        self.stalled = trio.Event()
        self.stalled.set()

    async def put(self, frame: Reply | Push) -> None:
        await self.websocket.send_message(encode_msgpack(frame))

    async def push_entry(self, conversation_id: str, entry: Entry) -> None:
        await self.put(EntryPush(conversation_id, Raw(encode_entry(entry))))

    async def close(self, code: int, reason: str = "") -> None:
        await self.websocket.aclose(code, reason)

    async def serve(self) -> None:
        """Answer commands in order until the connection ends."""
        while True:
            try:
                data = await self.websocket.get_message()
            except ConnectionClosed as closed:
                self.node.close_codes.append(closed.reason.code if closed.reason else 1006)
                return
            try:
                command = decode_command(bytes(data))
            except InvalidFrame as error:
                await self.put(ErrorReply(error.request_id, error.code, str(error)))
                continue
            self.node.received.append(command)
            script = self.node.scripts.get(type(command))
            try:
                if script is None or not await script(self, command):
                    await self.node.answer(self, command)
            except ConnectionClosed:
                return


class FakeNode:
    """Conversations as plain lists; every user is in every conversation.

    Attributes:
        logs: entries by conversation, oldest first, without a gap.
        received: all commands, in order of arrival.
        scripts: by command type, what happens instead of the usual answer.
        refusals: for the next attempts: an OSError, or an HTTP status with headers and body; None lets one through.
        attempts: tokens and devices of all attempts, also refused ones.
        close_codes: with which codes connections ended.
        streams: the node's ends of all streams, without the refused ones.
        cut_handshakes: so many next attempts are cut off at once; likewise mute_handshakes, which are never answered.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.logs: dict[str, list[Entry]] = {}
        self.received: list[Command] = []
        self.scripts: dict[type, NodeScript] = {}
        self.refusals: deque[OSError | tuple[int, list[tuple[bytes, bytes]], bytes] | None] = deque()
        self.attempts: list[tuple[str, str, float]] = []
        self.close_codes: list[int] = []
        self.connections: list[FakeConnection] = []
        self.user = "alice"
        self.heartbeat_interval_s = 30.0
        self.idle_timeout_s = 90.0
        self.sends: dict[str, tuple[str, Entry]] = {}
        self.streams: list[trio.abc.Stream] = []
        self.cut_handshakes = 0
        self.mute_handshakes = 0
        self._nursery = nursery
        self._changed = trio.Event()

    @property
    def connection(self) -> FakeConnection:
        """The newest connection."""
        return self.connections[-1]

    async def connected(self, count: int = 1) -> FakeConnection:
        """Wait for so many connections since the beginning; returns the last of them."""
        while len(self.connections) < count:
            await self._changed.wait()
        return self.connections[count - 1]

    async def opener(self, address: Address) -> trio.abc.HalfCloseableStream:
        ours, theirs = memory_stream_pair()
        refusal = self.refusals.popleft() if self.refusals else None
        if isinstance(refusal, OSError):
            self.attempts.append(("", "", trio.current_time()))
            raise refusal
        self._nursery.start_soon(self._serve, theirs, refusal)
        return ours

    async def _serve(
        self, stream: trio.abc.Stream, refusal: tuple[int, list[tuple[bytes, bytes]], bytes] | None
    ) -> None:
        self.streams.append(stream)
        if self.cut_handshakes:
            self.cut_handshakes -= 1
            await stream.aclose()
            return
        if self.mute_handshakes:
            self.mute_handshakes -= 1
            return
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream)
            headers = {name.lower(): value for name, value in request.headers}
            token = headers[b"authorization"].decode().removeprefix("Bearer ")
            device = parse_qs(urlsplit(request.path).query).get("device", [""])[0]
            self.attempts.append((token, device, trio.current_time()))
            if refusal is not None:
                status, extra, body = refusal
                await request.reject(status, extra_headers=extra, body=body)
                await stream.aclose()
            else:
                await self._accept(request, device)

    async def _accept(self, request: WebSocketRequest, device: str) -> None:
        websocket = await request.accept(subprotocol=SUBPROTOCOL)
        connection = FakeConnection(self, websocket, self.user, device)
        welcome = Welcome(
            self.user, device, "fake", self.heartbeat_interval_s, self.idle_timeout_s, 3600, 1_700_000_000_000_000
        )
        await connection.put(welcome)
        self.connections.append(connection)
        self._changed.set()
        self._changed = trio.Event()
        await connection.serve()

    def append(self, conversation_id: str, body: str, sender: str = "bob", **fields: object) -> Entry:
        """Put an entry into a log without telling anybody."""
        entries = self.logs.setdefault(conversation_id, [])
        seq = len(entries) + 1
        values = {
            "kind": EntryKind.MESSAGE, "time_us": 1_700_000_000_000_000 + seq, "client_msg_id": f"{sender}-{seq}",
        } | fields  # fmt: skip
        entry = Entry(seq=seq, sender=sender, body=body, **values)
        entries.append(entry)
        return entry

    async def say(self, conversation_id: str, body: str, sender: str = "bob", **fields: object) -> Entry:
        """Append an entry and push it to the newest connection."""
        entry = self.append(conversation_id, body, sender, **fields)
        await self.connection.push_entry(conversation_id, entry)
        return entry

    def store_send(self, command: Send) -> tuple[Entry, bool]:
        """Append a send once; returns its entry and whether it was there already."""
        if command.client_msg_id in self.sends:
            return self.sends[command.client_msg_id][1], True
        entry = self.append(
            command.conversation_id, command.body, self.user, client_msg_id=command.client_msg_id,
            metadata=command.metadata,
        )  # fmt: skip
        self.sends[command.client_msg_id] = (command.conversation_id, entry)
        return entry, False

    async def answer(self, connection: FakeConnection, command: Command) -> None:
        """The usual answer to a command."""
        for reply in self._replies(command):
            if command.id:
                await connection.put(reply)

    def _replies(self, command: Command) -> list[Reply]:
        match command:
            case Ping():
                return [Pong(command.id)]
            case Authenticate():
                return [Authenticated(command.id, 3600)]
            case Send():
                entry, duplicate = self.store_send(command)
                return [SendAck(command.id, entry.seq, entry.time_us, duplicate)]
            case AddMembers() | RemoveMembers():
                entry = self.append(
                    command.conversation_id, "", self.user, client_msg_id=command.client_msg_id, users=command.users,
                    kind=EntryKind.MEMBERS_ADDED if isinstance(command, AddMembers) else EntryKind.MEMBERS_REMOVED,
                )  # fmt: skip
                return [SendAck(command.id, entry.seq, entry.time_us)]
            case Rename():
                entry = self.append(
                    command.conversation_id, command.title, self.user, kind=EntryKind.RENAMED,
                    client_msg_id=command.client_msg_id,
                )  # fmt: skip
                return [SendAck(command.id, entry.seq, entry.time_us)]
            case CreateConversation():
                return [self._create(command)]
            case GetConversation():
                return [self._or_not_found(command, lambda: ConversationReply(command.id, self._listed(command)))]
            case History():
                return [self._or_not_found(command, lambda: self._history(command))]
            case Sync():
                return [self._sync(command)]
            case ListConversations():
                return [ConversationList(command.id, [self._describe(name) for name in self.logs])]
            case WatchPresence():
                return [PresenceReply(command.id, [Presence(user, True) for user in command.users])]
            case MarkReceipt() | Typing():
                return [Ok(command.id)]
        raise AssertionError(command)

    def _or_not_found(self, command: History | GetConversation, answer: Callable[[], Reply]) -> Reply:
        if command.conversation_id in self.logs:
            return answer()
        return ErrorReply(command.id, ErrorCode.NOT_FOUND, "no such conversation")

    def _create(self, command: CreateConversation) -> ConversationReply:
        name = "d-" + "-".join(command.members) if command.kind == ConversationKind.DIRECT else command.client_msg_id
        created = name not in self.logs
        if created:
            users = [self.user, *command.members]
            self.append(
                name, command.title, self.user, kind=EntryKind.CREATED, users=users, client_msg_id=command.client_msg_id
            )
        return ConversationReply(command.id, self._describe(name), created)

    def _listed(self, command: GetConversation) -> Conversation:
        return self._describe(command.conversation_id)

    def _describe(self, name: str) -> Conversation:
        entries = self.logs[name]
        users = entries[0].users or [] if entries else []
        return Conversation(
            name, ConversationKind.GROUP, "", len(entries), 0, 0, Raw(encode_entry(entries[-1])) if entries else None,
            [Member(user) for user in users], len(users),
        )  # fmt: skip

    def _history(self, command: History) -> Reply:
        entries = self.logs[command.conversation_id]
        if command.after_seq is not None:
            found = entries[command.after_seq :]
            page, more = found[: command.limit], len(found) > command.limit
        else:
            found = entries[: command.before_seq - 1] if command.before_seq is not None else entries
            page, more = found[-command.limit :], len(found) > command.limit
        return HistoryPage(command.id, command.conversation_id, _raw(page), len(entries), more)

    def _sync(self, command: Sync) -> Reply:
        cursors = dict(command.cursors or {})
        if not command.only_named:
            cursors = dict.fromkeys(self.logs, 0) | cursors
        synced: list[SyncedConversation] = []
        for name, cursor in cursors.items():
            if name not in self.logs:
                synced.append(SyncedConversation(name, 0, 0, [], removed=True))
                continue
            entries = self.logs[name]
            if cursor > len(entries):
                return ErrorReply(command.id, ErrorCode.BEYOND_HEAD, f"{name} has head {len(entries)}")
            if cursor < len(entries):
                new = entries[cursor:]
                synced.append(SyncedConversation(name, len(entries), 0, _raw(new[-100:]), len(new) > 100))
        return SyncPage(command.id, synced, True, not any(s.has_more for s in synced))


def _raw(entries: list[Entry]) -> list[Raw]:
    return [Raw(encode_entry(entry)) for entry in entries]
