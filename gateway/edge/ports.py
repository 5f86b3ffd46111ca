"""What the edge needs of others."""

import socket
from collections.abc import Collection
from typing import Any, Protocol

from gateway.broker import Origin
from protocol.frames import Command


class HttpPort(Protocol):
    """Takes the sockets whose request is not a WebSocket upgrade."""

    def hand_over(self, sock: socket.socket, head: bytes, peer: tuple[Any, ...]) -> None:
        """Serve HTTP on ``sock`` (non-blocking, owned from now on), of which ``head`` was read already.

        ``peer`` is the client's address, as a socket's ``getpeername`` tells it.
        """


class ElsewherePort(Protocol):
    """Which users are connected to other nodes."""

    @property
    def paused(self) -> bool:
        """Whether that is not known just now: nobody is to be called offline then."""

    def has(self, user: str) -> bool:
        """Whether the user is connected to another node, as last known; not of users nobody looked up."""

    async def look(self, users: Collection[str]) -> None:
        """Find out about users; at once while that cannot be known. Cancelling changes nothing."""

    def follow(self, users: Collection[str]) -> None:
        """These users are watched from now on: what has changed since they were looked up is told soon."""


class CatchupPort(Protocol):
    """Answers the commands that concern all of a user's conversations."""

    def submit(self, origin: Origin, command: Command) -> None:
        """Handle a Sync or ListConversations; the reply goes to the hub."""
