"""Who watches whose presence, and telling them: few at once, many in slices."""

from collections import OrderedDict
from collections.abc import Collection

import trio

from gateway.edge.connection import Connection
from gateway.edge.hub import Hub
from protocol.frames import PresencePush

WATCHERS_AT_ONCE_MAX = 64
"""Watchers who are told at once of somebody's coming or going: about 0.2 ms of writes."""

WATCHERS_PER_SLICE = 128
"""Watchers told between two checkpoints where there are more: about 0.4 ms."""


class Watchers:
    """Who watches whom, and the pushes that are on their way to many."""

    def __init__(self, hub: Hub) -> None:
        self.by_user: dict[str, set[Connection]] = {}
        self._hub = hub
        self._lists: dict[Connection, tuple[str, ...]] = {}
        # User -> the newest push and who is still to get it. A newer one takes the place of the older: what waits is
        # never older than what a watch command is answered with, and is one push per user at the most.
        self._untold: OrderedDict[str, tuple[PresencePush, list[Connection]]] = OrderedDict()
        self._wake = trio.Event()

    def replace(self, connection: Connection, users: tuple[str, ...]) -> None:
        """Set the watch list of an open connection."""
        self.forget(connection)
        if users:
            self._lists[connection] = users
        for user in users:
            self.by_user.setdefault(user, set()).add(connection)

    def forget(self, connection: Connection) -> None:
        """Drop the watch list of a connection."""
        for user in self._lists.pop(connection, ()):
            watchers = self.by_user[user]
            watchers.discard(connection)
            if not watchers:
                del self.by_user[user]

    @property
    def telling(self) -> bool:
        """Whether a push is on its way to many."""
        return bool(self._untold)

    def connections(self) -> Collection[Connection]:
        """Those that watch anybody."""
        return self._lists.keys()

    def list_of(self, connection: Connection) -> tuple[str, ...]:
        """Whom a connection watches."""
        return self._lists.get(connection, ())

    def tell(self, push: PresencePush, at_once_max: int = WATCHERS_AT_ONCE_MAX) -> int:
        """Push to all who watch the user: at once, which returns their number, or in slices, which returns 0."""
        # A copy, because a write that finds a broken socket makes that connection forgotten.
        audience = list(self.by_user.get(push.user, ()))
        if len(audience) > at_once_max or push.user in self._untold:
            self._untold[push.user] = (push, audience)
            self._wake.set()
            return 0
        self._hub.signal_connections(audience, push)
        return len(audience)

    async def run(self) -> None:
        """Tell large audiences in slices, for ever. A cancellation leaves the rest untold."""
        while True:
            await self._wake.wait()
            while self._untold:
                self._tell_slice()
                await trio.lowlevel.checkpoint()
            self._wake = trio.Event()

    def _tell_slice(self) -> None:
        room = WATCHERS_PER_SLICE
        while room > 0 and self._untold:
            user, (push, audience) = next(iter(self._untold.items()))
            part = audience[-room:]
            del audience[-room:]
            if not audience:
                del self._untold[user]
            room -= len(part)
            watchers = self.by_user.get(user, set())  # some may have stopped watching in the meantime
            self._hub.signal_connections([connection for connection in part if connection in watchers], push)
