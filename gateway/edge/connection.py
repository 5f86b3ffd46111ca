"""A parked connection: one small object and a few array cells.

States of a connection, in the order they happen::

    handshake  a task of the listener's nursery holds the socket; nothing of it is in this module yet
    open       parked: registered in the epoll, in the table and in the hub; gets pushes
    closing    a close frame is on its way; out of the hub, reads are thrown away, ends with EOF or CLOSE_LINGER_S
    closed     the socket is closed; whoever still holds the object writes nothing any more

``open`` may hold a partial frame (``Parking``) or a send queue (``Writer``); both are gone again when it is idle.

Memory (what the density benchmark counts): the object 48 B, its socket 48 B, the user id about 64 B, the hub's and the
table's references about 40 B, the array cells 24 B.
"""

import select
from array import array
from socket import SocketType, socket

from msgspec import Struct

from gateway.edge.tls import TlsSocket

JSON = 1
"""Flag: speaks ``tidegate.v1.json``."""
QUEUED = 2
"""Flag: its socket is full and a send queue holds what follows."""
CLOSING = 4
"""Flag: state closing."""
CLOSED = 32
"""Flag: state closed."""
GONE = CLOSING | CLOSED
"""Flags of a connection to which nothing is sent any more."""
SENDER = 8
"""Flag, only while a delivery is being written: it sent some of these entries itself."""
TLS = 64
"""Flag: TLS runs on its socket, whose calls are not those of a plain one."""
SEVERAL = 16
"""Flag of ``Devices``: not a connection but several."""


class Connection(Struct, gc=False, eq=False):
    """One live WebSocket of an authenticated user. Compared and hashed by identity.

    Not tracked by the collector: it refers to a socket and a str only, so it can be part of no cycle.

    Attributes:
        sock: the plain socket type, which is small and not tracked either; not its subclass ``socket.socket``. Its
            ``send`` and ``recv`` are system calls of their own: a fifth cheaper than ``os.write`` and ``os.read``,
            which go by way of files. A TlsSocket has the same calls; it is large, and tracked.
        user: user id.
        flags: JSON, QUEUED, CLOSING, CLOSED, SENDER, TLS; 0 is the ordinary case that the hot paths look for.
    """

    sock: SocketType | TlsSocket
    user: str
    flags: int = 0

    @property
    def fd(self) -> int:
        """The socket's descriptor, -1 once closed. Never use one that was kept elsewhere: numbers are reused."""
        return self.sock.fileno()


def plain_socket(sock: socket) -> SocketType | TlsSocket:
    """What is left of a socket when it is parked; ``sock`` is detached. Of one with TLS, all is left."""
    if isinstance(sock, TlsSocket):
        return sock
    family, kind, proto = sock.family, sock.type, sock.proto
    return SocketType(family, kind, proto, fileno=sock.detach())


def has_left(connection: Connection) -> bool:
    """Whether the other end sends nothing any more, or is gone, whatever of it is still to be read."""
    poll = select.poll()
    poll.register(connection.fd, select.POLLRDHUP)
    return bool(poll.poll(0))


class Devices(Struct, gc=False, eq=False, frozen=True):
    """The connections of a user who has more than one here, in the place of the one.

    ``flags`` is never 0, so that a hot path which looks for ordinary connections passes it over with the same test.
    """

    connections: tuple[Connection, ...]
    flags: int = SEVERAL


class ConnectionTable:
    """Connections by descriptor, and what is known of each in arrays indexed by descriptor.

    Attributes:
        by_fd: the connection or None.
        heard_s: when it was last heard of, whole seconds of ``now``.
        ends_s: when its token runs out (leeway included), whole seconds of ``now``.
        device_key: 64-bit hash of its device id.
        allowance_s: the rate limiter's theoretical arrival time, seconds of ``now``.
        now: trio's time when this slice of the loop began, seconds.
        count: connections that are open or closing.
    """

    def __init__(self) -> None:
        self.by_fd: list[Connection | None] = []
        self.heard_s = array("I")
        self.ends_s = array("I")
        self.device_key = array("Q")
        self.allowance_s = array("d")
        self.now = 0.0
        self.count = 0

    def insert(self, connection: Connection, *, ends_s: float, device_key: int) -> None:
        """Enter an open connection; its descriptor's cells are set anew."""
        fd = connection.fd
        self.grow(fd)
        assert self.by_fd[fd] is None, "descriptor entered twice"
        self.by_fd[fd] = connection
        self.heard_s[fd] = int(self.now)
        self.ends_s[fd] = min(int(ends_s), 2**32 - 1)
        self.device_key[fd] = device_key
        self.allowance_s[fd] = 0.0
        self.count += 1

    def grow(self, fd: int) -> None:
        """Make sure that there are cells for a descriptor."""
        missing = fd + 1 - len(self.by_fd)
        if missing > 0:
            self.by_fd.extend([None] * missing)
            for cells in (self.heard_s, self.ends_s, self.device_key, self.allowance_s):
                cells.frombytes(bytes(cells.itemsize * missing))

    def remove(self, connection: Connection) -> None:
        """Forget a connection whose descriptor is about to be closed."""
        assert self.by_fd[connection.fd] is connection, "descriptor of another connection"
        self.by_fd[connection.fd] = None
        self.count -= 1

    def find(self, fd: int) -> Connection | None:
        """The connection with this descriptor, if any."""
        return self.by_fd[fd] if 0 <= fd < len(self.by_fd) else None
