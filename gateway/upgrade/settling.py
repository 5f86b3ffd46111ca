"""How a node comes to rest, so that what it knows is in its connections, its store and nowhere else; and goes on."""

import time
from typing import TYPE_CHECKING, Final

import trio

from gateway.edge.connection import TLS
from gateway.upgrade.channel import HandOverFailed
from gateway.upgrade.ports import Estate
from protocol.errors import CloseCode

if TYPE_CHECKING:
    from gateway.node import Node

SETTLE_S: Final = 1.0
"""Seconds that HTTP requests and handshakes in progress get to be finished. Connections are served meanwhile; only who
connects has to wait so long, unnoticed."""

QUIET_TIMEOUT_S: Final = 5.0
"""Seconds from the end of reading until all that was read must be answered. A few milliseconds are normal: a commit."""

BEGIN_S: Final = 0.05
"""Seconds that an HTTP request gets to be begun: hypercorn takes a connection whose first request was not parsed yet
for idle, and would close it without an answer."""

LOOK_S: Final = 0.001
"""Seconds between two looks at whether all is quiet."""


class Rest:
    """First ``settle``, then ``wait_until_quiet``; ``resume`` in any case, unless another process has taken over."""

    def __init__(self, node: "Node", estate: Estate) -> None:
        self._node = node
        self._estate = estate

    def resume(self) -> None:
        """Go on as before, whatever of the rest was reached."""
        node = self._node
        node.catchup.resume()
        self._estate.resume()
        node.parking.reading.resume()
        node.listener.accept_loop.resume()

    async def settle(self) -> None:
        """Stop accepting and finish what is not a connection: HTTP requests and handshakes. Cancelling is safe."""
        node = self._node
        await node.listener.accept_loop.pause()
        await trio.sleep(BEGIN_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.http.finish_open, SETTLE_S)
            nursery.start_soon(node.listener.put_off_handshakes, SETTLE_S)
        if node.http.connections:  # requests whose heads were not complete when the others were told to end
            await trio.sleep(BEGIN_S)
            await node.http.finish_open(SETTLE_S)
        self._close_unmovable()
        with trio.move_on_after(SETTLE_S):
            await node.owner.save_receipts()
            while self._estate.busy:  # noqa: ASYNC110 - once per upgrade
                await trio.sleep(LOOK_S)

    async def wait_until_quiet(self) -> None:
        """Stop reading, and return when nothing is under way any more: from then on until the next checkpoint.

        Raises HandOverFailed when that takes too long. Cancelling is safe.
        """
        node = self._node
        until_s = time.monotonic() + QUIET_TIMEOUT_S
        await node.parking.reading.pause()
        node.catchup.pause()
        while True:
            node.refreshes.put_off_all()
            node.presences.save_soon()
            if not node.owner.backlog.waiting:
                with trio.move_on_after(max(0.0, until_s - time.monotonic())):
                    await node.owner.save_receipts()
            if node.catchup.idle:
                node.writer.release_waiting()
            self._estate.rest()
            busy = self._busy()
            if not busy:
                return
            if time.monotonic() > until_s:
                raise HandOverFailed(f"{busy} took longer than {QUIET_TIMEOUT_S:g} s: try again")
            await trio.sleep(LOOK_S)

    def _busy(self) -> str:
        """What is still under way, in words; empty for nothing."""
        node = self._node
        for busy, what in (
            (node.http.connections, "HTTP requests"),
            (node.listener.handshakes, "handshakes"),
            (not node.owner.idle, "commands that wait for the store"),
            (node.hub.fanout.jobs_waiting, "deliveries"),
            (not node.catchup.idle, "syncs"),
            (not node.presences.idle, "presence"),
        ):
            if busy:
                return what
        return self._estate.busy

    def _close_unmovable(self) -> None:
        """Send away whose connection lives in this process and not in the kernel alone (TLS that ends here)."""
        node = self._node
        for connection in list(filter(None, node.table.by_fd)):
            if connection.flags & TLS:
                node.writer.close(connection, CloseCode.SERVICE_RESTART, "the node is being upgraded: come back")
