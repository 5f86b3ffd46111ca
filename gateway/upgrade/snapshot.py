"""The connections of a node that stands still, as chunks of descriptors and plain values."""

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gateway.edge.connection import CLOSED, JSON, TLS, Connection, Devices
from gateway.upgrade.messages import CONNECTIONS_PER_CHUNK, Chunk, Extra

if TYPE_CHECKING:
    from gateway.node import Node


def movable_connections(node: "Node") -> list[Connection]:
    """The open connections, user by user as the hub has them, then the closing ones.

    Those whose TLS ends in this process cannot be moved; by now they are closing at most. Nor can one that is closed,
    and was not forgotten by a fault of ours.
    """
    found: list[Connection] = []
    for target in node.hub.by_user.values():
        if isinstance(target, Devices):
            found += target.connections
        else:
            found.append(target)
    found += node.writer.closing()
    return [connection for connection in found if not connection.flags & (TLS | CLOSED)]


def chunks_of(node: "Node", connections: list[Connection]) -> Iterator[tuple[Chunk, list[int]]]:
    """What a successor has to know of each connection, and its descriptor."""
    closing = node.writer.closing()
    special = {
        *closing,
        *node.parking.partly_read(),
        *node.writer.queued(),
        *node.keepalive.noticed_connections,
        *node.presences.watching(),
    }
    for start in range(0, len(connections), CONNECTIONS_PER_CHUNK):
        yield _chunk(node, connections[start : start + CONNECTIONS_PER_CHUNK], closing, special)


def _chunk(
    node: "Node", connections: list[Connection], closing: dict[Connection, float], special: set[Connection]
) -> tuple[Chunk, list[int]]:
    table = node.table
    descriptors = [connection.fd for connection in connections]
    heard_s, ends_s, device_key, allowance_s = table.heard_s, table.ends_s, table.device_key, table.allowance_s
    extras = {
        at: _extra(node, connection, closing.get(connection, 0.0))
        for at, connection in enumerate(connections)
        if connection in special
    }
    chunk = Chunk(
        [connection.user for connection in connections],
        bytes([connection.sock.family for connection in connections]),
        bytes([connection.flags & JSON for connection in connections]),
        array("I", [heard_s[fd] for fd in descriptors]).tobytes(),
        array("I", [ends_s[fd] for fd in descriptors]).tobytes(),
        array("Q", [device_key[fd] for fd in descriptors]).tobytes(),
        array("d", [allowance_s[fd] for fd in descriptors]).tobytes(),
        extras,
    )
    return chunk, descriptors


def _extra(node: "Node", connection: Connection, closing_s: float) -> Extra:
    """What sets a connection apart from an idle one."""
    reader = node.parking.reader_of(connection)
    queue = node.writer.queue_of(connection)
    return Extra(
        reader.state() if reader is not None else None,
        list(queue.chunks) if queue is not None else [],
        queue.begun if queue is not None else False,
        queue.since if queue is not None else 0.0,
        closing_s,
        connection in node.keepalive.noticed_connections,
        node.presences.watched_by(connection),
    )
