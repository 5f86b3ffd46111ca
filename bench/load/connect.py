"""Opening very many connections from one process, a bounded number of handshakes at once."""

import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator

from bench.errors import BenchError
from bench.load.wire import server_frames

HANDSHAKES_AT_ONCE = 64
"""Connects in progress: enough to keep a server busy, fewer than the smallest listen backlog among the peers."""

CONNECTIONS_PER_ADDRESS = 4_000
"""Connections from one 127.x address before the next is used: far from the 28,000 ports that an address has."""

HANDSHAKE_TIMEOUT_S = 30.0
"""Silence of a server, with handshakes waiting, that ends a benchmark, seconds."""

_IP_BIND_ADDRESS_NO_PORT = 24  # of <linux/in.h>: let connect() choose the port, knowing the destination


def open_connections(
    host: str, port: int, requests: Iterable[bytes], *, frames: int = 0, first_address: int = 0
) -> list[socket.socket]:
    """Connect once per request and shake hands; returns non-blocking sockets in the order of the requests.

    Args:
        host: loopback address of the server.
        port: its port.
        requests: the upgrade request of each connection.
        frames: WebSocket frames that the server sends right behind its 101; they are read and dropped.
        first_address: which of the 127.x addresses the first connections come from, so that a second wave does not
            meet the first one's lingering ports.

    Raises BenchError when the server refuses one, sends more than expected, or falls silent.
    """
    return _Opening(host, port, frames, first_address).run(requests)


def source_address(index: int, first_address: int = 0) -> str:
    """Which 127.x address connection number ``index`` comes from."""
    return f"127.0.0.{2 + (first_address + index // CONNECTIONS_PER_ADDRESS) % 250}"


def connect_from(source: str, host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket."""
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.bind((source, 0))
    connection.settimeout(HANDSHAKE_TIMEOUT_S)
    connection.connect((host, port))
    connection.setblocking(False)
    return connection


def close_politely(connections: Iterable[socket.socket], close_frame: bytes) -> None:
    """Leave as a client does: a close frame, then the end of the stream."""
    for connection in connections:
        connection.send(close_frame)
        connection.close()


class _Opening:
    def __init__(self, host: str, port: int, frames: int, first_address: int) -> None:
        self._host, self._port, self._frames = host, port, frames
        self._first_address = first_address
        self._epoll = select.epoll()
        self._opening: dict[int, tuple[socket.socket, bytearray]] = {}
        self._open: list[socket.socket] = []

    def run(self, requests: Iterable[bytes]) -> list[socket.socket]:
        waiting = iter(requests)
        try:
            while self._start(waiting) or self._opening:
                self._read_some()
        except BaseException:
            for connection in [*self._open, *(pair[0] for pair in self._opening.values())]:
                connection.close()
            raise
        finally:
            self._epoll.close()
        return self._open

    def _start(self, waiting: Iterator[bytes]) -> bool:
        """Begin handshakes up to the limit; False when there is nothing left to begin."""
        while len(self._opening) < HANDSHAKES_AT_ONCE:
            request = next(waiting, None)
            if request is None:
                return False
            connection = connect_from(source_address(len(self._open), self._first_address), self._host, self._port)
            self._open.append(connection)
            connection.send(request)
            self._opening[connection.fileno()] = (connection, bytearray())
            self._epoll.register(connection, select.EPOLLIN)
        return True

    def _read_some(self) -> None:
        ready = self._epoll.poll(HANDSHAKE_TIMEOUT_S)
        if not ready:
            raise BenchError(
                f"no answer to {len(self._opening)} handshakes for {HANDSHAKE_TIMEOUT_S:g} s,"
                f" after {len(self._open) - len(self._opening)} were made"
            )
        for fd, _events in ready:
            connection, data = self._opening[fd]
            chunk = connection.recv(65_536)
            data += chunk
            if not chunk:
                raise BenchError(f"a handshake was cut off after {bytes(data[:200])!r}")
            if self._complete(data):
                self._epoll.unregister(fd)
                del self._opening[fd]

    def _complete(self, data: bytearray) -> bool:
        head, blank, rest = bytes(data).partition(b"\r\n\r\n")
        if not blank:
            return False
        if not head.startswith(b"HTTP/1.1 101 "):
            raise BenchError(f"a handshake was refused: {bytes(data[:300])!r}")
        ends = [end for _opcode, _start, end in server_frames(rest)]
        if len(ends) > self._frames or (len(ends) == self._frames and len(rest) > (ends[-1] if ends else 0)):
            raise BenchError(f"more than {self._frames} frames came right behind a handshake: {rest[:200]!r}")
        return len(ends) == self._frames


def wait_until(condition_met: Callable[[], bool], *, timeout_s: float, what: str, every_s: float = 0.02) -> None:
    """Wait for something only another process can tell; raises BenchError, naming it, after ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition_met():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {timeout_s:g} s")
        time.sleep(every_s)
