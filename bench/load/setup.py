"""A small blocking client that prepares what a benchmark needs: conversations and their members."""

import itertools
import socket
import time
from typing import Self

from bench.errors import BenchError
from bench.load.accounts import Door
from bench.load.connect import HANDSHAKE_TIMEOUT_S, open_connections
from bench.load.messages import SEQ_FIRST
from bench.load.wire import client_frame, server_frames
from protocol.codec import decode_server_frame, encode_msgpack
from protocol.frames import (
    AddMembers,
    Command,
    ConversationKind,
    ConversationReply,
    CreateConversation,
    ErrorReply,
    Push,
    Reply,
    Send,
)
from protocol.limits import MEMBERS_PER_COMMAND_MAX


class SetupClient:
    """One user's connection to a node; commands are sent one by one, each reply awaited. Pushes are dropped."""

    def __init__(self, door: Door, user: str) -> None:
        """Connect as ``user``."""
        [self.connection] = open_connections(door.host, door.port, [door.request(user)], frames=1)
        self.connection.settimeout(HANDSHAKE_TIMEOUT_S)
        self._ids = itertools.count(1)
        self._data = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def next_id(self) -> int:
        """A request id not used before on this connection."""
        return next(self._ids)

    def ask(self, command: Command) -> Reply:
        """Send a command and return its reply. Raises BenchError when it is refused."""
        return self.ask_many([command])[0]

    def ask_many(self, commands: list[Command]) -> list[Reply]:
        """Send commands back to back and return their replies, in order.

        A creation that the node asks to repeat is repeated: its id makes that safe. Raises BenchError when any other
        command is refused.
        """
        self._send(commands)
        asked = {command.id: command for command in commands}
        by_id: dict[int, Reply] = {}
        while len(by_id) < len(commands):
            for frame in self._frames():
                if isinstance(frame, ErrorReply):
                    if frame.retry_after_ms and isinstance(asked.get(frame.id), CreateConversation):
                        time.sleep(frame.retry_after_ms / 1e3)
                        self._send([asked[frame.id]])
                        continue
                    raise BenchError(f"the node refused a command of the benchmark's set-up: {frame}")
                if isinstance(frame, Reply):
                    by_id[frame.id] = frame
        return [by_id[command.id] for command in commands]

    def _send(self, commands: list[Command]) -> None:
        self.connection.sendall(b"".join(client_frame(encode_msgpack(command)) for command in commands))

    def create_direct(self, *others: str) -> list[str]:
        """Direct conversations with each of ``others``; their ids."""
        replies = self.ask_many(
            [
                CreateConversation(self.next_id(), ConversationKind.DIRECT, [other], f"create-{number}")
                for number, other in enumerate(others)
            ]
        )
        return [_conversation_id(reply) for reply in replies]

    def create_group(self, members: list[str]) -> str:
        """A group with so many members, besides this user."""
        first, rest = members[:MEMBERS_PER_COMMAND_MAX], members[MEMBERS_PER_COMMAND_MAX:]
        number = self.next_id()
        group = _conversation_id(
            self.ask(CreateConversation(number, ConversationKind.GROUP, first, f"create-{number}", "bench"))
        )
        self.add_members(group, rest)
        return group

    def create_long_group(self, members: list[str]) -> tuple[str, int]:
        """A group whose head is so high that every push has one size; and that head."""
        group = self.create_group([])
        self.send_filler(group, SEQ_FIRST)
        self.add_members(group, members)
        return group, 1 + SEQ_FIRST + -(-len(members) // MEMBERS_PER_COMMAND_MAX)

    def add_members(self, group: str, users: list[str]) -> None:
        """Add users to a group, as many commands as that takes."""
        for at in range(0, len(users), MEMBERS_PER_COMMAND_MAX):
            chunk = users[at : at + MEMBERS_PER_COMMAND_MAX]
            self.ask(AddMembers(self.next_id(), group, f"add-{at}", chunk))

    def send_filler(self, conversation_id: str, count: int) -> None:
        """Raise the head of a conversation by ``count`` small messages."""
        self.ask_many([Send(self.next_id(), conversation_id, f"filler-{number}", "filler") for number in range(count)])

    def _frames(self) -> list[Reply | Push]:
        """The frames that one read brings."""
        chunk = self.connection.recv(262_144)
        if not chunk:
            raise BenchError("the node closed the connection that prepares the benchmark")
        self._data += chunk
        frames, end = [], 0
        for _opcode, start, stop in server_frames(self._data):
            frames.append(decode_server_frame(bytes(self._data[start:stop])))
            end = stop
        del self._data[:end]
        return frames


def _conversation_id(reply: Reply) -> str:
    if not isinstance(reply, ConversationReply):
        raise BenchError(f"the node answered a create command with {reply}")
    return reply.conversation.conversation_id


def receive_exactly(connection: socket.socket, count: int) -> bytes:
    """Read ``count`` bytes from a blocking socket. Raises BenchError at an early end."""
    data = bytearray()
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise BenchError(f"a connection ended after {len(data)} of {count} expected bytes")
        data += chunk
    return bytes(data)
