"""Who is online: users with a connection here, or whose last one ended within the grace period.

Nothing is kept for a user who is online and watched by nobody, besides the hub's own entry.
"""

import time
from collections.abc import Callable

import structlog
import trio

from gateway.config import Settings
from gateway.edge.connection import Connection
from gateway.edge.hub import Hub
from protocol.errors import ErrorCode
from protocol.frames import ErrorReply, Presence, PresencePush, PresenceReply, WatchPresence
from store.interface import Store, StoreError

LAST_SEEN_BATCH_MAX = 1_000
"""Users whose last time online is stored with one call."""

WATCH_REPLIES_MAX = 256
"""Watch commands answered at once; more are told to come back."""

log = structlog.get_logger(__name__)


class Presences:
    """Tells watchers who comes and goes. Times are kept to the second."""

    def __init__(
        self, settings: Settings, store: Store, hub: Hub, wall_ms: Callable[[], int] = lambda: time.time_ns() // 10**6
    ) -> None:
        self._grace_s = settings.presence_grace_s
        self._store = store
        self._hub = hub
        self._wall_ms = wall_ms
        # User -> when the last connection ended, in order of leaving. All who leave between two ticks share one object
        # for the time: a crowd that leaves at once costs a slot each and nothing more.
        self._leaving: dict[str, float] = {}
        self._tick_s = 0.0
        self._unsaved: dict[str, int] = {}
        self._watchers: dict[str, set[Connection]] = {}
        self._watches: dict[Connection, tuple[str, ...]] = {}
        self._wake = trio.Event()
        self._nursery: trio.Nursery
        self._replies_open = 0
        hub.on_arrival = self._arrived
        hub.on_departure = self._departed

    @property
    def leaving(self) -> int:
        """Users who are within the grace period after their last connection."""
        return len(self._leaving)

    @property
    def watched(self) -> int:
        """Users whom somebody here watches."""
        return len(self._watchers)

    def is_online(self, user: str) -> bool:
        """Whether the user has a connection here or had one within the grace period."""
        return user in self._hub.by_user or user in self._leaving

    def _arrived(self, user: str) -> None:
        if self._leaving.pop(user, None) is None and user in self._watchers:
            self._tell(user, PresencePush(user, online=True))

    def _departed(self, user: str) -> None:
        self._leaving.pop(user, None)
        self._leaving[user] = self._tick_s

    def _tell(self, user: str, push: PresencePush) -> None:
        self._hub.signal_connections(self._watchers.get(user, ()), push)

    def tick(self, now: float) -> None:
        """Once a second: users whose grace period is over are offline."""
        self._tick_s = now
        ended: list[tuple[str, int]] = []
        for user, left_s in self._leaving.items():
            if left_s + self._grace_s > now:
                break
            ended.append((user, self._left_ms(now - left_s)))
        for user, left_ms in ended:
            del self._leaving[user]
            self._unsaved[user] = left_ms
            if user in self._watchers:
                self._tell(user, PresencePush(user, online=False, last_seen_ms=left_ms))
        if ended:
            self._wake.set()

    def _left_ms(self, ago_s: float) -> int:
        return self._wall_ms() - int(ago_s * 1000)

    def watch(self, connection: Connection, command: WatchPresence) -> None:
        """Replace the watch list of a connection; the reply tells how things stand."""
        if self._replies_open >= WATCH_REPLIES_MAX:
            message = "too many watch commands at once: repeat it in a second"
            self._hub.reply(connection, ErrorReply(command.id, ErrorCode.OVERLOADED, message, 1000))
            return
        self._replies_open += 1
        self._nursery.start_soon(self._watch, connection, command)

    async def _watch(self, connection: Connection, command: WatchPresence) -> None:
        try:
            known = await self._store.acquainted(connection.user, command.users)
            users = tuple(user for user in dict.fromkeys(command.users) if user in known)
            seen_ms = await self._store.last_seen(users)
        except StoreError as error:
            log.warning("presence not read", error=str(error))
            message = "presence cannot be read now: repeat it in a second"
            self._hub.reply(connection, ErrorReply(command.id, ErrorCode.UNAVAILABLE, message, 1000))
            return
        finally:
            self._replies_open -= 1
        if connection.fd < 0:
            return
        self.forget(connection)
        if users:
            self._watches[connection] = users
        for user in users:
            self._watchers.setdefault(user, set()).add(connection)
        self._hub.reply(connection, PresenceReply(command.id, [self._presence(user, seen_ms) for user in users]))

    def _presence(self, user: str, seen_ms: dict[str, int]) -> Presence:
        return Presence(user, self.is_online(user), self._unsaved.get(user, seen_ms.get(user, 0)))

    def forget(self, connection: Connection) -> None:
        """Drop the watch list of a connection that is open no more."""
        for user in self._watches.pop(connection, ()):
            watchers = self._watchers[user]
            watchers.discard(connection)
            if not watchers:
                del self._watchers[user]

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Answer watch commands and store when users were last seen, for ever.

        A cancellation stores, for users who are leaving or not stored yet, what is known so far.
        """
        self._tick_s = trio.current_time()
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                while True:
                    await self._wake.wait()
                    self._wake = trio.Event()
                    await self._save()
        finally:
            with trio.CancelScope(shield=True):
                now = trio.current_time()
                self._unsaved |= {user: self._left_ms(now - left_s) for user, left_s in self._leaving.items()}
                await self._save()

    async def _save(self) -> None:
        while self._unsaved:
            batch = [self._unsaved.popitem() for _ in range(min(len(self._unsaved), LAST_SEEN_BATCH_MAX))]
            try:
                await self._store.save_last_seen(batch)
            except StoreError as error:
                # Best effort, and worth no retry loop: it is stored again when the user next leaves.
                log.warning("last seen not stored", users=len(batch), error=str(error))
                return
