"""Which of the users who are watched here are connected to other nodes: presence across the cluster.

The session directory knows it already, and Redis reports changes of what was read from it. So nodes tell each other
nothing: who watches a user reads the user's place, and reads it again when it is said to have changed. A node that dies
takes its users with it. A node that is alone asks nobody.

While Redis is away nothing is known of the others: whoever was online stays so (``paused``), until all watched users
have been looked up again.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, Protocol

import trio

from gateway.cluster.links import LiveIncarnations
from gateway.cluster.ports import Directory

LOOK_S: Final = 1.0
"""Seconds between two looks at what has changed: a change is told within two of them, where 30 s are promised."""

SLICE_USERS: Final = 500
"""Users looked up, or gone through, at once: about a millisecond."""

Places = Mapping[str, tuple[str, ...]]


class PresenceListener(Protocol):
    """Who watches users (``gateway.edge.presence.Presences``)."""

    def watches(self, user: str) -> bool:
        """Whether anybody here watches the user."""

    def watched_users(self) -> Collection[str]:
        """All whom anybody here watches."""

    def came_elsewhere(self, user: str) -> None:
        """The user has a connection to another node, and had none a moment ago."""

    def left_elsewhere(self, user: str, *, with_node: bool) -> None:
        """The user has none to other nodes any more; ``with_node``: because they have ended."""


class Nobody:
    """Implements PresenceListener: watches no user."""

    def watches(self, user: str) -> bool:
        """See PresenceListener.watches."""
        return False

    def watched_users(self) -> Collection[str]:
        """See PresenceListener.watched_users."""
        return ()

    def came_elsewhere(self, user: str) -> None:
        """See PresenceListener.came_elsewhere."""

    def left_elsewhere(self, user: str, *, with_node: bool) -> None:
        """See PresenceListener.left_elsewhere."""


class Elsewhere:
    """Implements ``gateway.edge.ports.ElsewherePort``.

    Attributes:
        listener: who is told; set before ``run``.
    """

    def __init__(
        self,
        incarnation: str,
        directory: Directory,
        watch: LiveIncarnations,
        *,
        alone: Callable[[], bool],
        away: Callable[[], bool],
    ) -> None:
        """Describe whom to ask.

        Args:
            incarnation: this node's own.
            directory: where users are; its ``on_invalidated`` is listened to, besides whoever does already.
            watch: who lives.
            alone: whether there is no other node.
            away: whether Redis is.
        """
        self.listener: PresenceListener = Nobody()
        self._incarnation = incarnation
        self._directory = directory
        self._watch = watch
        self._alone = alone
        self._away = away
        self._places: dict[str, tuple[str, ...]] = {}  # of users who are online elsewhere
        self._changed: set[str] = set()
        self._doubts = 1  # times that all had to be looked up again, and how many of them that has been done for
        self._settled = 0
        self._nodes_changed = False
        invalidated = directory.on_invalidated

        def on_invalidated(users: Collection[str] | None) -> None:
            invalidated(users)
            self._invalidated(users)

        directory.on_invalidated = on_invalidated

    @property
    def count(self) -> int:
        """Users known to be online elsewhere."""
        return len(self._places)

    def everybody(self) -> None:
        """Look all up again: what was reported may have got lost."""
        self._doubts += 1

    def nodes_changed(self) -> None:
        """Somebody has come or gone."""
        self._nodes_changed = True

    def state(self) -> Places:
        """Where users are who are known to be online elsewhere, for a process that goes on with this node's name."""
        return dict(self._places)

    def restore(self, places: Places) -> None:
        """Begin with what such a process knew; all are looked up again, and what is new is told."""
        self._places = dict(places)

    # --- gateway.edge.ports.ElsewherePort ---------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """See ElsewherePort.paused."""
        return self._settled != self._doubts and not self._alone()

    def has(self, user: str) -> bool:
        """See ElsewherePort.has."""
        return user in self._places

    async def look(self, users: Collection[str]) -> None:
        """See ElsewherePort.look."""
        if not self._alone() and not self._away():
            await self._find(users)

    def follow(self, users: Iterable[str]) -> None:
        """See ElsewherePort.follow."""
        if not self._alone():
            self._changed.update(users)

    # --- Life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow what changes until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            if self._alone():
                self.everybody()
                self._changed.clear()
                await self._in_slices(list(self._places), self._gone)
            elif self._away():
                self.everybody()
            elif self._settled == self._doubts:
                await self._follow_changes()
            else:
                await self._look_all_up()

    async def _look_all_up(self) -> None:
        doubts, self._nodes_changed = self._doubts, False
        self._changed.clear()  # before it begins: what happens meanwhile has to count
        users = [*self._places, *(user for user in self.listener.watched_users() if user not in self._places)]
        for start in range(0, len(users), SLICE_USERS):
            if not await self._find(users[start : start + SLICE_USERS]):
                return
        self._settled = doubts

    async def _follow_changes(self) -> None:
        if self._nodes_changed:
            self._nodes_changed = False
            await self._in_slices(list(self._places), self._note_dead_places)
        users, self._changed = list(self._changed), set()
        for start in range(0, len(users), SLICE_USERS):
            if not await self._find(users[start : start + SLICE_USERS]):
                return

    @staticmethod
    async def _in_slices(users: list[str], do: Callable[[str], None]) -> None:
        for start in range(0, len(users), SLICE_USERS):
            for user in users[start : start + SLICE_USERS]:
                do(user)
            await trio.lowlevel.checkpoint()

    def _note_dead_places(self, user: str) -> None:
        if any(place not in self._watch.live for place in self._places.get(user, ())):
            self._changed.add(user)

    def _invalidated(self, users: Collection[str] | None) -> None:
        if users is None:
            self.everybody()
        else:
            self._changed.update(user for user in users if user in self._places or self.listener.watches(user))

    # --- Looking up -------------------------------------------------------------------------------------------------

    async def _find(self, users: Collection[str]) -> bool:
        """Look users up and tell what is new; False if Redis is away. A cancellation leaves them as they were known."""
        answers: list[Places | None] = []
        answered = trio.Event()

        def then(places: Places | None) -> None:
            answers.append(places)
            answered.set()

        self._directory.lookup(users, then)
        await answered.wait()
        places = answers[0]
        if places is None:
            self.everybody()
            return False
        for user in users:
            self._note(user, places[user])
        return True

    def _note(self, user: str, found: tuple[str, ...]) -> None:
        places = tuple(place for place in found if place != self._incarnation and not self._directory.is_void(place))
        if not places:
            self._gone(user)
            return
        if any(place not in self._watch.live for place in places):
            self._changed.add(user)  # it has just come, or just died: the next look tells
        came = user not in self._places
        self._places[user] = places
        if came:
            self.listener.came_elsewhere(user)

    def _gone(self, user: str) -> None:
        places = self._places.pop(user, ())
        if places:
            with_node = not any(place in self._watch.live for place in places)
            self.listener.left_elsewhere(user, with_node=with_node)
