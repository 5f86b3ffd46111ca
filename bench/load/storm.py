"""Clients that are all dropped at once and come back as the SDK does, each with the cursors of its conversations."""

import contextlib
import heapq
import os
import select
import socket
import struct
import time
from collections import deque
from random import Random

from msgspec import Struct

from bench.errors import BenchError
from bench.load.accounts import Door, user_names
from bench.load.acks import AckTimes
from bench.load.connect import HANDSHAKE_TIMEOUT_S, open_connections, source_address
from bench.load.setup import SetupClient
from bench.load.wire import client_frame, server_frames
from bench.machine import Cores
from protocol import limits
from protocol.client.backoff import Backoff
from protocol.codec import decode_server_frame, encode_msgpack
from protocol.frames import (
    ConversationKind,
    ConversationReply,
    CreateConversation,
    ErrorReply,
    Sync,
    SyncPage,
    Welcome,
)
from protocol.websocket import Opcode, parse_close

GROUP_MEMBERS = 20
"""Members of each conversation; all of them are clients of this benchmark, in one group of friends."""

SYNC_ID = 7
"""The request id of each client's Sync."""

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes a close a reset: what a client sees of a load balancer that died."""

_IP_BIND_ADDRESS_NO_PORT = 24  # of <linux/in.h>: let connect() choose the port, knowing the destination


class Return(Struct, frozen=True):
    """How one client came back.

    Attributes:
        seconds: from the drop until its Sync was answered.
        missed: conversations of which it was told news.
        failures: why each connection that it took before the last was given up.
    """

    seconds: float
    missed: int
    failures: list[str]


class _Client:
    """A client on its way back. ``sock`` is None while it waits for its next attempt."""

    __slots__ = ("backoff", "data", "failures", "greeted", "number", "sock", "sync", "welcomed")

    def __init__(self, number: int, sync: bytes, backoff: Backoff) -> None:
        self.number = number
        self.sync = sync
        self.backoff = backoff
        self.failures: list[str] = []
        self.sock: socket.socket | None = None
        self.data = b""
        self.greeted = self.welcomed = False


class Storm:
    """Some of the clients. Each call returns when it is done."""

    def __init__(self, door: Door, first_address: int) -> None:
        """Nothing is opened yet; ``first_address``: which of the 127.x addresses the first ones come from."""
        self._door = door
        self._first_address = first_address
        self._requests: list[bytes] = []
        self._syncs: list[bytes] = []
        self._connections: list[socket.socket] = []
        self._clients: dict[int, _Client] = {}
        self._due: list[tuple[float, int, _Client]] = []
        self._patience: deque[tuple[float, _Client, socket.socket]] = deque()
        self._epoll = select.epoll()
        self._back: dict[int, Return] = {}
        self._dropped_s = 0.0

    def create(self, count: int, conversations: int, wave: str) -> None:
        """Make users, in groups of friends, and the conversations of each of these; one entry is in each."""
        users = user_names(count, wave)
        self._requests = self._door.requests(users)
        for at in range(0, count, GROUP_MEMBERS):
            friends = users[at : at + GROUP_MEMBERS]
            cursors = dict.fromkeys(self._groups(friends, conversations), 1)
            self._syncs += [client_frame(encode_msgpack(Sync(SYNC_ID, cursors)))] * len(friends)

    def _groups(self, friends: list[str], conversations: int) -> list[str]:
        with SetupClient(self._door, friends[0]) as setup:
            replies = setup.ask_many(
                [
                    CreateConversation(
                        setup.next_id(), ConversationKind.GROUP, friends[1:], f"create-{number}", "bench"
                    )
                    for number in range(conversations)
                ]
            )
        return [reply.conversation.conversation_id for reply in replies if isinstance(reply, ConversationReply)]

    def open(self) -> None:
        """Connect everybody."""
        self._connections = open_connections(
            self._door.host, self._door.port, self._requests, frames=1, first_address=self._first_address
        )

    def storm(self, seed: int) -> list[Return]:
        """Drop everybody, and have everybody come back. Raises BenchError when the node falls silent or refuses."""
        self._dropped_s = time.monotonic()
        for connection in self._connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.close()
        for number, sync in enumerate(self._syncs):
            self._wait(_Client(number, sync, Backoff(rng=Random(f"{seed}/{number}"))), 0.0)
        heard_s = time.monotonic()
        while len(self._back) < len(self._syncs):
            known = len(self._back)
            self._step()
            if len(self._back) > known:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > HANDSHAKE_TIMEOUT_S + limits.RECONNECT_MAX_S:
                raise BenchError(f"{len(self._back)} of {len(self._syncs)} clients came back, and then nobody more")
        return list(self._back.values())

    def _step(self) -> None:
        now_s = time.monotonic()
        while self._due and self._due[0][0] <= now_s:
            self._connect(heapq.heappop(self._due)[2])
        while self._patience and self._patience[0][0] <= now_s:
            _, client, sock = self._patience.popleft()
            if client.sock is sock and not client.welcomed:
                self._failed(client, "no answer in time")
        wait_s = min(0.05, max(0.0, self._due[0][0] - now_s)) if self._due else 0.05
        for fd, events in self._epoll.poll(wait_s):
            client = self._clients[fd]
            if events & select.EPOLLOUT:
                self._connected(client)
            else:
                self._read(client)

    # --- One client -------------------------------------------------------------------------------------------------

    def _wait(self, client: _Client, at_least_s: float) -> None:
        delay_s = max(at_least_s, client.backoff.fail())
        heapq.heappush(self._due, (time.monotonic() + delay_s, client.number, client))

    def _connect(self, client: _Client) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((source_address(client.number, self._first_address), 0))
        sock.connect_ex((self._door.host, self._door.port))
        client.sock, client.data = sock, b""
        client.greeted = client.welcomed = False
        self._clients[sock.fileno()] = client
        self._patience.append((time.monotonic() + limits.AUTHENTICATE_TIMEOUT_S, client, sock))
        self._epoll.register(sock, select.EPOLLOUT)

    def _connected(self, client: _Client) -> None:
        assert client.sock is not None
        if client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._failed(client, "not connected")
            return
        client.sock.send(self._requests[client.number])
        self._epoll.modify(client.sock, select.EPOLLIN)

    def _failed(self, client: _Client, why: str, retry_after_s: float = 0.0) -> None:
        """Give a connection up and try again later, as the SDK does."""
        assert client.sock is not None
        client.failures.append(why)
        self._epoll.unregister(client.sock)
        del self._clients[client.sock.fileno()]
        client.sock.close()
        client.sock = None
        self._wait(client, retry_after_s)

    def _read(self, client: _Client) -> None:
        assert client.sock is not None
        try:
            chunk = client.sock.recv(65_536)
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            self._failed(client, "closed without a close frame")
            return
        client.data += chunk
        if not client.greeted:
            head, blank, rest = client.data.partition(b"\r\n\r\n")
            if not blank:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._failed(client, head[:12].decode("latin-1"), _retry_after_s(head))
                return
            client.data, client.greeted = rest, True
        self._frames(client)

    def _frames(self, client: _Client) -> None:
        assert client.sock is not None
        end = 0
        for opcode, start, stop in server_frames(client.data):
            if opcode == Opcode.CLOSE:
                code, _reason = parse_close(client.data[start:stop])
                self._failed(client, f"close code {code}")
                return
            frame = decode_server_frame(client.data[start:stop])
            end = stop
            if isinstance(frame, Welcome):
                client.welcomed = True
                client.sock.send(client.sync)
            elif isinstance(frame, ErrorReply):
                self._failed(client, f"error {int(frame.code)}", (frame.retry_after_ms or 0) / 1e3)
                return
            elif isinstance(frame, SyncPage) and frame.done:
                seconds = time.monotonic() - self._dropped_s
                self._back[client.number] = Return(seconds, len(frame.conversations), list(client.failures))
        client.data = client.data[end:]


def _retry_after_s(head: bytes) -> float:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"retry-after":
            return float(value)
    return 0.0


class Others(AckTimes):
    """Those who were not dropped, and go on sending."""

    def __init__(
        self, door: Door, cores: Cores, senders: list[str], receivers: list[str], conversations: list[str]
    ) -> None:
        """Connect; where that is allowed, ahead of every other process on the load core."""
        with contextlib.suppress(PermissionError):  # then its own waiting for the core is part of the figure
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        super().__init__(door, cores, senders, receivers, conversations)
