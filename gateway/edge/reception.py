"""Who comes before a node can serve is told so, instead of waiting in the kernel's queue: health checks above all."""

import socket
from collections.abc import Sequence
from typing import Protocol

import trio

from gateway.edge.listener import Listener


class Answers(Protocol):
    """The HTTP server."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None: ...


class Reception:
    """Lends a node's listener and HTTP server for the time in which it waits for what it stands on.

    Health checks and metrics are answered; connections are refused with 503 and when to come again.
    """

    def __init__(self, listener: Listener, http: Answers, sockets: Sequence[socket.socket]) -> None:
        """Describe it; nothing is accepted yet."""
        self._listener = listener
        self._http = http
        self._sockets = sockets
        self._scope = trio.CancelScope()
        self._closed: trio.Event | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until ``close``, or cancelled; the sockets stay open."""
        self._closed = trio.Event()
        self._listener.accepting, self._listener.why_not = False, "the node is starting"
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self._http.run)
                    await nursery.start(self._listener.run, self._sockets)
                    task_status.started()
        finally:
            self._listener.accepting, self._listener.why_not = True, ""
            self._closed.set()

    async def close(self) -> None:
        """Answer what is open, and return when nobody is here any more; at once if it has not run."""
        self._scope.cancel()
        if self._closed is not None:
            await self._closed.wait()
