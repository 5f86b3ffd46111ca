"""Channels in the session directory: at which nodes somebody follows one, as if the channel were a user.

An owner finds the nodes that want a channel's entries as it finds those of a user (``gateway.broker.followers_of``):
one entry however many members there are, and all that ``handing_on.py`` says of users who move holds for it. A Sync
waits until this node is registered before it reads the log, and what was handed on while the registration was under
way is found by the barrier.

Only a user who is added while connected does not sync by itself. If this node was not registered for the channel
before, what came right behind that entry may have passed it by; so that user's connections are told to sync once it
is.
"""

from collections.abc import Callable, Collection
from typing import Final

import trio

from gateway.broker import followers_of
from gateway.cluster.ports import Directory
from gateway.cluster.resyncs import Everybody
from gateway.edge.connection import Connection
from gateway.edge.followers import Followers
from protocol.frames import Resync

JOINS_WAITING_MAX: Final = 100_000
"""Joins that wait for their channel's registration; Redis being slow with more, everybody is told to sync."""


class Following:
    """Keeps the session directory up to date with what is followed here."""

    def __init__(
        self,
        followers: Followers,
        directory: Directory,
        everybody: Everybody,
        connections_of: Callable[[str], Collection[Connection]],
        resync_all: Callable[[], None],
    ) -> None:
        """``connections_of``: a user's connections to this node; ``resync_all``: tells all connections to sync."""
        self._followers = followers
        self._directory = directory
        self._everybody = everybody
        self._connections_of = connections_of
        self._resync_all = resync_all
        self._untold = 0
        self._send, self._joins = trio.open_memory_channel[tuple[str, list[str]]](JOINS_WAITING_MAX)
        followers.on_first = lambda channel: directory.arrive(followers_of(channel))
        followers.on_last = lambda channel: directory.leave(followers_of(channel))
        followers.on_joined = self._joined
        followers.registered = self._registered

    @property
    def pending(self) -> bool:
        """Whether users who joined are still to be told."""
        return self._untold > 0

    async def _registered(self, channel: str) -> None:
        await self._directory.registered(followers_of(channel))

    def _joined(self, channel: str, users: list[str]) -> None:
        try:
            self._send.send_nowait((channel, users))
            self._untold += 1
        except trio.WouldBlock:
            self._followers.joined(channel)
            self._resync_all()

    def lost(self) -> None:
        """Who has left may not have been told here: nobody follows anything until the next Sync.

        Either parcels got lost, or Redis did not know of this node for a while and does again.
        """
        self._followers.end_all()

    async def run(self) -> None:
        """Tell users who joined to sync, until cancelled; who is waiting then is not told."""
        async for channel, users in self._joins:
            await self._registered(channel)
            self._followers.joined(channel)
            connections = [connection for user in users for connection in self._connections_of(user)]
            self._everybody.push_surely(connections, Resync([channel]))
            self._untold -= 1
