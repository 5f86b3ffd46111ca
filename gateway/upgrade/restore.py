"""The connections of another process, entered into a node that does not serve yet."""

import time
from array import array
from socket import SOCK_STREAM, SocketType
from typing import TYPE_CHECKING

import trio

from gateway.edge.connection import CLOSING, JSON, Connection
from gateway.edge.writer import SendQueue
from gateway.upgrade.messages import Begin, Chunk, Extra
from protocol import limits
from protocol.websocket import FrameReader

if TYPE_CHECKING:
    from gateway.node import Node

NEVER_S = 2**32 - 1
"""What the table keeps for a token that does not run out."""


class Restorer:
    """Takes chunk after chunk. ``finish`` is the end of it: only then do others learn of the connections.

    Attributes:
        count: connections restored so far.
    """

    def __init__(self, node: "Node", begin: Begin) -> None:
        self.count = 0
        self._node = node
        self._begin = begin
        # Both trio clocks run as the machine's monotonic clock does, each from a beginning of its own.
        self._shift_s = trio.current_time() - (begin.now_s + time.monotonic() - begin.monotonic_s)
        self._noticed: list[Connection] = []
        self._lists: list[tuple[Connection, tuple[str, ...]]] = []
        node.table.now = trio.current_time()

    def take(self, chunk: Chunk, descriptors: list[int]) -> None:
        """Enter the connections of one chunk. After an error nothing is closed: the process is to end."""
        shift_s, extras = self._shift_s, chunk.extras
        heard_s, ends_s = self._whole_seconds(chunk.heard_s), self._whole_seconds(chunk.ends_s)
        keys, allowance_s = array("Q", chunk.device_key), array("d", chunk.allowance_s)
        table, park, by_user = self._node.table, self._node.parking.park, self._node.hub.by_user
        table.grow(max(descriptors))
        by_fd, heard_cells, ends_cells = table.by_fd, table.heard_s, table.ends_s
        key_cells, allowance_cells = table.device_key, table.allowance_s
        for at, (fd, user, family, json) in enumerate(
            zip(descriptors, chunk.users, chunk.families, chunk.json, strict=True)
        ):
            connection = Connection(SocketType(family, SOCK_STREAM, 0, fd), user, JSON if json else 0)
            by_fd[fd] = connection
            heard_cells[fd] = heard_s[at]
            ends_cells[fd] = ends_s[at]
            key_cells[fd] = keys[at]
            allowance_cells[fd] = allowance_s[at] + shift_s
            park(connection)
            if at in extras:
                self._restore_extra(connection, extras[at])
                if connection.flags & CLOSING:
                    continue  # out of the hub already
            if by_user.setdefault(user, connection) is not connection:
                self._node.hub.restore(connection)
        table.count += len(descriptors)
        self.count += len(descriptors)

    def finish(self) -> None:
        """All chunks have come: restore what concerns the connections together."""
        node = self._node
        node.keepalive.restore(self._noticed, trio.current_time())
        node.presences.restore(self._lists, self._begin.left_ago_s)
        node.hub.followers.restore(self._begin.followed)

    def _whole_seconds(self, cells: bytes) -> list[int]:
        """Times of the other clock in this one's, in what the table's cells take."""
        shift_s = self._shift_s
        return [NEVER_S if cell == NEVER_S else min(max(int(cell + shift_s), 0), NEVER_S) for cell in array("I", cells)]

    def _restore_extra(self, connection: Connection, extra: Extra) -> None:
        node = self._node
        if extra.reader is not None:
            reader = FrameReader(limits.COMMAND_BYTES_MAX, limits.FRAGMENTS_MAX)
            reader.resume(extra.reader)
            node.parking.restore(connection, reader)
        if extra.queue:
            queue = SendQueue(extra.since_s + self._shift_s)
            for data in extra.queue:
                queue.append(data)
            queue.begun = extra.begun
            node.writer.restore_queue(connection, queue)
        if extra.closing_s:
            node.writer.restore_closing(connection, extra.closing_s + self._shift_s)
        if extra.noticed:
            self._noticed.append(connection)
        if extra.watches:
            self._lists.append((connection, extra.watches))
