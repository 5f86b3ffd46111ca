"""Who is online: users with a connection here or elsewhere, or whose last one ended within the grace period.

Nothing is kept in memory for a user whom nobody watches: whether one is online is a matter of the hub's entry and of
the stored time of leaving, which is written within a second.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Collection
from itertools import islice

import structlog
import trio

from gateway.config import Settings
from gateway.edge.connection import GONE, Connection
from gateway.edge.hub import Hub
from gateway.edge.ports import ElsewherePort
from gateway.edge.watchers import WATCHERS_AT_ONCE_MAX, Watchers
from protocol.errors import ErrorCode
from protocol.frames import ErrorReply, Presence, PresencePush, PresenceReply, WatchPresence
from store.interface import Store, StoreError
from store.recurring import Recurring

LAST_SEEN_BATCH_MAX = 100
"""Users whose last time online is stored with one call; as soon as so many left, lest a crowd pile up in memory. A page
of the store's each, at worst: a longer batch takes more memory and holds up the sends in its commit."""

SAVE_AT_END_S = 2.0
"""Seconds that the end of a node waits for the last times online to be stored: they are worth no more."""

WATCH_COMMANDS_MAX = 256
"""Watch commands being answered at once; more are told to come back."""

WATCH_COMMANDS_EACH_MAX = 4
"""Those of one connection: each replaces the one before, and nobody shall keep the places of all others."""

RETRY_MS_MIN, RETRY_MS_MAX = 1_000, 3_000
"""Milliseconds after which a refused watch command may be repeated; spread, lest a crowd come back as one."""

LEAVERS_PER_SLICE = 500
"""Users who become offline between two checkpoints: about 0.5 ms besides the telling."""

log = structlog.get_logger(__name__)


class Nowhere:
    """Implements ElsewherePort for a node without others."""

    paused = False

    def has(self, user: str) -> bool:
        """See ElsewherePort.has."""
        return False

    async def look(self, users: Collection[str]) -> None:
        """See ElsewherePort.look. Not even a checkpoint: there is nothing to wait for."""

    def follow(self, users: Collection[str]) -> None:
        """See ElsewherePort.follow."""


class Presences:
    """Tells watchers who comes and goes. Times are kept to the second.

    Attributes:
        elsewhere: tells of other nodes' users; what it finds new goes to ``came_elsewhere`` and ``left_elsewhere``.
    """

    def __init__(
        self, settings: Settings, store: Store, hub: Hub, wall_ms: Callable[[], int] = lambda: time.time_ns() // 10**6
    ) -> None:
        self.elsewhere: ElsewherePort = Nowhere()
        self._grace_s = settings.presence_grace_s
        self._store = store
        self._hub = hub
        self._wall_ms = wall_ms
        # Watched user -> when the last connection ended: who has to be told when the grace period is over.
        self._leaving: dict[str, float] = {}
        self._tick_s = 0.0
        # A crowd that leaves between two ticks shares one object for the time.
        self._tick_ms = wall_ms()
        self._overdue = trio.Event()
        self._unsaved: dict[str, int] = {}
        self._saving: dict[str, int] = {}
        self._not_read = Recurring("presence not read", "presence read again")
        self._not_stored = Recurring("last seen not stored", "last seen stored again")
        self._unsaved_came = trio.Event()
        self._watchers = Watchers(hub)
        # Connection -> its watch commands that are not answered yet, in order of arrival.
        self._asked: dict[Connection, deque[WatchPresence]] = {}
        self._asked_count = 0
        self._nursery: trio.Nursery
        hub.on_arrival = self._arrived
        hub.on_departure = self._departed

    @property
    def leaving(self) -> int:
        """Watched users who are within the grace period after their last connection."""
        return len(self._leaving)

    @property
    def watched(self) -> int:
        """Users whom somebody here watches."""
        return len(self._watchers.by_user)

    # --- Coming and going ---------------------------------------------------------------------------------------

    def _arrived(self, user: str) -> None:
        if user in self._watchers.by_user and not self.elsewhere.has(user):
            self._appear(user)

    def _appear(self, user: str) -> None:
        if self._leaving.pop(user, None) is None:
            self._watchers.tell(PresencePush(user, online=True))

    def _departed(self, user: str) -> None:
        self._unsaved[user] = self._tick_ms
        if len(self._unsaved) >= LAST_SEEN_BATCH_MAX:
            self._unsaved_came.set()
        if user in self._watchers.by_user and not self.elsewhere.has(user):
            self._leaving[user] = self._tick_s

    def watches(self, user: str) -> bool:
        """Whether anybody here watches the user."""
        return user in self._watchers.by_user

    def watched_users(self) -> Collection[str]:
        """All whom anybody here watches."""
        return self._watchers.by_user.keys()

    def came_elsewhere(self, user: str) -> None:
        """The user has a connection to another node, and had none there a moment ago."""
        if user in self._watchers.by_user and user not in self._hub.by_user:
            self._appear(user)

    def left_elsewhere(self, user: str, *, with_node: bool) -> None:
        """The user has none to other nodes any more; ``with_node``: they have ended and stored no time of leaving."""
        if user in self._hub.by_user:
            return
        if user in self._watchers.by_user:
            self._leaving[user] = self._tick_s
        if with_node:
            self._unsaved[user] = self._tick_ms

    def tick(self, now: float) -> None:
        """Once a second: store who left, and tell of whose grace period is over; a crowd of them in slices."""
        self._tick_s = now
        self._tick_ms = self._wall_ms()
        if self._unsaved:
            self._unsaved_came.set()
        if self._end_graces():
            self._overdue.set()

    def _end_graces(self) -> bool:
        """Do a bounded part of a tick; True if there may be more. None while they may be connected elsewhere unseen."""
        if self.elsewhere.paused:
            return False
        due = (user for user, left_s in self._leaving.items() if left_s + self._grace_s <= self._tick_s)
        ended = list(islice(due, LEAVERS_PER_SLICE))
        at_once = WATCHERS_AT_ONCE_MAX
        for user in ended:
            left_ms = self._tick_ms - int((self._tick_s - self._leaving.pop(user)) * 1000)
            at_once -= self._watchers.tell(PresencePush(user, online=False, last_seen_ms=left_ms), at_once)
        return len(ended) == LEAVERS_PER_SLICE

    # --- Watch commands -----------------------------------------------------------------------------------------

    def watch(self, connection: Connection, command: WatchPresence) -> None:
        """Replace the watch list of a connection; the reply tells how things stand."""
        if self._asked_count >= WATCH_COMMANDS_MAX:
            self._refuse(connection, command, ErrorCode.OVERLOADED, "too many watch commands at once")
            return
        waiting = self._asked.get(connection)
        if waiting is not None and len(waiting) >= WATCH_COMMANDS_EACH_MAX:
            self._refuse(connection, command, ErrorCode.RATE_LIMITED, "the watch commands before this one still wait")
            return
        self._asked_count += 1
        if waiting is None:
            waiting = self._asked[connection] = deque()
            self._nursery.start_soon(self._answer_all, connection, waiting)
        waiting.append(command)

    async def _answer_all(self, connection: Connection, waiting: deque[WatchPresence]) -> None:
        """Answer the commands of one connection one after the other: the newest list is the one that stays."""
        while waiting:
            if _is_open(connection):
                await self._answer(connection, waiting[0])
            waiting.popleft()
            self._asked_count -= 1
        del self._asked[connection]

    async def _answer(self, connection: Connection, command: WatchPresence) -> None:
        try:
            known = await self._store.acquainted(connection.user, command.users)
            users = tuple(user for user in dict.fromkeys(command.users) if user in known)
            await self.elsewhere.look(users)
            seen_ms = await self._store.last_seen(users)
        except StoreError as error:
            self._not_read.came(error=str(error))
            self._refuse(connection, command, ErrorCode.UNAVAILABLE, "presence cannot be read now")
            return
        self._not_read.over()
        if not _is_open(connection):
            return  # it was forgotten while the store was read, and will not be again
        self._watchers.replace(connection, users)
        self.elsewhere.follow(users)
        self._hub.reply(connection, PresenceReply(command.id, [self._presence(user, seen_ms) for user in users]))

    def _refuse(self, connection: Connection, command: WatchPresence, code: ErrorCode, reason: str) -> None:
        retry_ms = random.randint(RETRY_MS_MIN, RETRY_MS_MAX)
        message = f"{reason}: repeat it in {retry_ms} ms"
        self._hub.reply(connection, ErrorReply(command.id, code, message, retry_ms))

    def _presence(self, user: str, seen_ms: dict[str, int]) -> Presence:
        """How things stand with a user who is watched as of now."""
        left_ms = self._unsaved.get(user) or self._saving.get(user) or seen_ms.get(user, 0)
        if user in self._hub.by_user or self.elsewhere.has(user):
            return Presence(user, True, left_ms)
        ago_s = max(0, self._tick_ms - left_ms) / 1000
        if ago_s >= self._grace_s:
            return Presence(user, False, left_ms)
        self._leaving.setdefault(user, self._tick_s - ago_s)
        return Presence(user, True, left_ms)

    def forget(self, connection: Connection) -> None:
        """Drop the watch list of a connection that is open no more."""
        self._watchers.forget(connection)

    # --- Upgrade ------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing waits: no command for its answer, no push for its turn, no time of leaving for the store."""
        return not (
            self._asked_count or self._watchers.telling or self._overdue.is_set() or self._unsaved or self._saving
        )

    def save_soon(self) -> None:
        """Store who left without waiting for the next tick."""
        if self._unsaved:
            self._unsaved_came.set()

    def watching(self) -> Collection[Connection]:
        """Connections with a watch list."""
        return self._watchers.connections()

    def watched_by(self, connection: Connection) -> tuple[str, ...]:
        """Whom a connection watches."""
        return self._watchers.list_of(connection)

    def left_ago_s(self, now: float) -> dict[str, float]:
        """Watched users within the grace period, and how many seconds ago the last connection of each ended."""
        return {user: now - left_s for user, left_s in self._leaving.items()}

    def restore(self, lists: list[tuple[Connection, tuple[str, ...]]], left_ago_s: dict[str, float]) -> None:
        """Go on for another process: who watches whom there, and ``left_ago_s`` as it gave it."""
        for connection, users in lists:
            self._watchers.replace(connection, users)
        now = trio.current_time()
        self._leaving = {user: now - ago_s for user, ago_s in left_ago_s.items()}

    # --- Life ---------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Answer watch commands, tell watchers and store when users were last seen, for ever.

        A cancellation stores what is not stored yet; it takes SAVE_AT_END_S at the most.
        """
        self._tick_s = trio.current_time()
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._watchers.run)
                self._nursery.start_soon(self._end_overdue_graces)
                task_status.started()
                while True:
                    await self._unsaved_came.wait()
                    self._unsaved_came = trio.Event()
                    await self._save()
        finally:
            with trio.move_on_after(SAVE_AT_END_S, shield=True) as patience:
                await self._save()
            if patience.cancelled_caught:
                log.warning("last seen not stored in time", users=len(self._unsaved), waited_s=SAVE_AT_END_S)

    async def _end_overdue_graces(self) -> None:
        while True:
            await self._overdue.wait()
            while self._end_graces():
                await trio.lowlevel.checkpoint()
            self._overdue = trio.Event()

    async def _save(self) -> None:
        """Store what is not stored yet. A cancellation leaves it among the unsaved.

        Sorted, so that a crowd's rows lie beside each other in the store's pages; and out of a dictionary that is
        given up afterwards, because one that has held a crowd stays as large as that.
        """
        while self._unsaved:
            self._saving, self._unsaved = self._unsaved, {}
            users = sorted(self._saving)
            try:
                for start in range(0, len(users), LAST_SEEN_BATCH_MAX):
                    batch = [(user, self._saving[user]) for user in users[start : start + LAST_SEEN_BATCH_MAX]]
                    await self._store.save_last_seen(batch)
                self._not_stored.over()
            except StoreError as error:
                # Best effort, and worth no retry loop: it is stored again when the user next leaves.
                self._not_stored.came(users=len(self._saving), error=str(error))
                return
            except trio.Cancelled:
                self._unsaved = self._saving | self._unsaved
                raise
            finally:
                self._saving = {}


def _is_open(connection: Connection) -> bool:
    return not connection.flags & GONE
