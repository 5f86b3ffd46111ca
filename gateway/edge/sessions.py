"""From an authenticated socket to an open connection: the one place where connections begin."""

import secrets
import socket
import time
from hashlib import blake2b

import structlog
import trio

from gateway.auth import Identity
from gateway.clock import clock_us
from gateway.config import Settings
from gateway.edge.connection import CLOSED, JSON, TLS, Connection, ConnectionTable, plain_socket
from gateway.edge.farewell import farewell
from gateway.edge.hub import Hub
from gateway.edge.outgoing import encode_for
from gateway.edge.parking import Parking
from gateway.edge.tls import TlsSocket
from gateway.edge.writer import Writer
from protocol import limits
from protocol.errors import CloseCode
from protocol.frames import Welcome
from protocol.websocket import encode_close

log = structlog.get_logger(__name__)


def device_key(device: str) -> int:
    """64-bit key of a device id: what is kept of it. Two devices of one user collide once in 2**64."""
    return int.from_bytes(blake2b(device.encode(), digest_size=8).digest(), "big")


class Sessions:
    """Opens connections.

    Attributes:
        opened: connections opened, ever.
    """

    def __init__(
        self, settings: Settings, table: ConnectionTable, writer: Writer, hub: Hub, parking: Parking, node: str
    ) -> None:
        self._settings = settings
        self._table = table
        self._writer = writer
        self._hub = hub
        self._parking = parking
        self._node = node
        self.opened = 0

    def open(
        self, sock: socket.socket, identity: Identity, device: str, *, json: bool, greeting: bytes = b""
    ) -> Connection:
        """Park an authenticated socket, which then belongs to the connection returned.

        Args:
            sock: non-blocking; the WebSocket handshake is done but for ``greeting``.
            identity: whose it is, and until when.
            device: the client's device id; empty: one is made up.
            json: whether it speaks ``tidegate.v1.json``.
            greeting: bytes that go out before the welcome push, in the same write.

        The connection may be closed already when this returns, if its socket turned out to be broken.
        """
        device = device or secrets.token_urlsafe(9)
        now, lifetime_s = trio.current_time(), identity.expires_at_s - time.time()
        self._table.now = max(self._table.now, now)
        flags = (JSON if json else 0) | (TLS if isinstance(sock, TlsSocket) else 0)
        connection = Connection(plain_socket(sock), identity.user, flags)
        ends_s = now + lifetime_s + limits.TOKEN_LEEWAY_S
        self._table.insert(connection, ends_s=ends_s, device_key=device_key(device))
        try:
            self._parking.park(connection)
        except OSError as error:  # no memory or no watch left for one more (epoll_ctl)
            log.error("connection not parked", error=str(error))
            self._writer.abort(connection)
            return connection
        welcome = Welcome(
            user=identity.user,
            device=device,
            node=self._node,
            heartbeat_interval_s=self._settings.heartbeat_interval_s,
            idle_timeout_s=self._settings.idle_timeout_s,
            token_expires_in_s=max(0, int(lifetime_s)),
            time_us=clock_us(),
        )
        self._writer.write(connection, greeting + encode_for(welcome, json=json))
        if not connection.flags & CLOSED:
            self.opened += 1
            self._hub.add(connection)
        return connection

    def turn_away(self, sock: socket.socket, code: CloseCode, reason: str = "", *, first: bytes = b"") -> None:
        """Close a WebSocket that does not become a connection; ``first``: ws frames that it gets before."""
        self._writer.count_close(code)
        farewell(sock, first + encode_close(code, reason))

    def renew(self, connection: Connection, identity: Identity) -> int:
        """A fresh token came over the live connection: seconds that it is good for."""
        lifetime_s = identity.expires_at_s - time.time()
        ends_s = trio.current_time() + lifetime_s + limits.TOKEN_LEEWAY_S
        self._table.ends_s[connection.fd] = min(int(ends_s), 2**32 - 1)
        return max(0, int(lifetime_s))
