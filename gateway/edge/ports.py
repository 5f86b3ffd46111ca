"""What the edge needs of others."""

import socket
from typing import Any, Protocol

from gateway.broker import Origin
from protocol.frames import Command


class HttpPort(Protocol):
    """Takes the sockets whose request is not a WebSocket upgrade."""

    def hand_over(self, sock: socket.socket, head: bytes, peer: tuple[Any, ...]) -> None:
        """Serve HTTP on ``sock`` (non-blocking, owned from now on), of which ``head`` was read already.

        ``peer`` is the client's address, as a socket's ``getpeername`` tells it.
        """


class CatchupPort(Protocol):
    """Answers the commands that concern all of a user's conversations."""

    def submit(self, origin: Origin, command: Command) -> None:
        """Handle a Sync or ListConversations; the reply goes to the hub."""
