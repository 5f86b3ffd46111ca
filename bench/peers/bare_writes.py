"""The limit of a fan-out: a loop of os.write of one frame to every socket, and nothing else.

Connections are accepted and read until the first blank line, answered as if upgraded, and never parsed. The one that
asked for /sender triggers: each ws frame it sends (all of one size) is cut out of its masked frame and written to
all others; one frame of one byte goes back after each.
"""

import os
import select
import socket
import sys

from bench.load.wire import server_frame_bytes
from bench.peers.process import BACKLOG, say_address

_UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
_DONE = b"\x82\x01+"


class _Server:
    def __init__(self, frame_bytes: int, trigger_bytes: int) -> None:
        self._frame_bytes, self._trigger_bytes = frame_bytes, trigger_bytes
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self._connections: dict[int, socket.socket] = {}
        self._members: dict[int, None] = {}
        self._sender = -1
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._untriggered = 0

    def run(self) -> None:
        say_address(*self._listener.getsockname())
        while True:
            for fd, _events in self._epoll.poll():
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == self._sender:
                    self._fan_out()
                else:
                    self._first_read(fd)

    def _accept(self) -> None:
        connection, _address = self._listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._connections[connection.fileno()] = connection
        self._epoll.register(connection, select.EPOLLIN)

    def _first_read(self, fd: int) -> None:
        data = os.read(fd, 65_536)
        if not data or fd in self._members:
            self._epoll.unregister(fd)
            self._connections.pop(fd).close()
            return
        os.write(fd, _UPGRADED)
        if b" /sender " in data:
            self._sender = fd
        else:
            self._members[fd] = None

    def _fan_out(self) -> None:
        data = os.read(self._sender, 65_536)
        if not data:
            sys.exit(0)
        self._untriggered += len(data)
        times, self._untriggered = divmod(self._untriggered, self._trigger_bytes)
        payload = bytes(self._frame_bytes)
        payload = b"\x82\x7e" + (self._frame_bytes - 4).to_bytes(2, "big") + payload[4:]
        assert len(payload) == server_frame_bytes(self._frame_bytes - 4)
        joined = payload * times
        write = os.write
        for fd in self._members:
            write(fd, joined)
        os.write(self._sender, _DONE * times)


if __name__ == "__main__":
    _Server(int(sys.argv[1]), int(sys.argv[2])).run()
