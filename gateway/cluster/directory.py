"""The session directory in Redis: for each user the set of incarnations where the user is connected.

A node registers its users, and finds those of others, over one connection. What it found it may keep until Redis
reports a change. An entry belongs to an incarnation: when that is dead, its entries are void, and whoever comes across
one removes it. So nothing has to be cleaned up behind a node that was killed; what nobody looks up expires.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import trio

from gateway.cluster.places import Groups, Places, is_group
from gateway.cluster.ports import Command, Found, Generations, Identity, LiveNodes, LocalUsers, RedisPort, Taken
from gateway.cluster.redis_keys import SESSIONS, sessions

CACHED_USERS_MAX: Final = 200_000
"""Users whose place is remembered, in two halves of which the older is dropped: some 30 MB at most."""

SESSIONS_EXPIRE_S: Final = 86_400
"""After which a user's set is gone if nobody renews it: it is that of nodes that were killed."""

RENEW_S: Final = 21_600.0
"""Seconds between two renewals of all of a node's users: several within the time after which they expire."""

SLICE_USERS: Final = 500
"""Users that are registered at once, so that neither the loop nor Redis is held up for more than some milliseconds."""

RETRY_S: Final = 1.0
"""Seconds until a registration that was not taken is tried again, and between two slices of a renewal."""

UNREGISTERED_MAX: Final = 200_000
"""Departures that are remembered while Redis is away; those of more users expire, and cost needless parcels until
then."""

SIGHTINGS_MAX: Final = 10_000
"""Incarnations not known to live whose first sighting is remembered."""


class SessionDirectory:
    """Implements ``Directory``.

    Attributes:
        on_invalidated: see Directory.
        lookups: users asked for in Redis, ever.
        cache_hits: users found without asking, ever.
        voids: entries of dead incarnations removed, ever.
    """

    def __init__(
        self,
        port: RedisPort,
        generations: Generations,
        incarnation: str,
        local: LocalUsers,
        nodes: LiveNodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock``: the one that ``nodes.looked_s`` is of."""
        self.on_invalidated: Callable[[Collection[str] | None], None] = lambda _users: None
        self.lookups = 0
        self.cache_hits = 0
        self.voids = 0
        self._port = port
        self._incarnation = incarnation
        self._local = local
        self._nodes = nodes
        self._clock = clock
        self._places: dict[str, tuple[str, ...]] = {}
        self._older_places: dict[str, tuple[str, ...]] = {}
        self._groups = Groups()
        self._sightings: dict[str, float] = {}
        # Users whose last change here is not confirmed: the number of that change, and who waits for it.
        self._unconfirmed: dict[str, int] = {}
        self._waiting: dict[str, trio.Event] = {}
        self._retry: set[str] = set()
        self._changes = 0
        self._generations = generations
        port.listeners.append(self)
        generations.on_new.append(self._register_again)

    # --- This node's users ------------------------------------------------------------------------------------------

    def arrive(self, user: str) -> None:
        """See Directory.arrive."""
        self._register([user])

    def leave(self, user: str) -> None:
        """See Directory.leave."""
        self._register([user])

    async def registered(self, user: str) -> None:
        """See Directory.registered."""
        if user in self._unconfirmed and not self._port.away:
            waiting = self._waiting.setdefault(user, trio.Event())
            await waiting.wait()
        else:
            await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        """Try again what was not taken, and renew everything now and then, until cancelled."""
        renewed_s = trio.current_time()
        while True:
            await trio.sleep(RETRY_S)
            if self._retry and not self._port.away:
                users, self._retry = list(self._retry), set()
                self._register_all(users)
            if trio.current_time() - renewed_s >= RENEW_S:
                renewed_s = trio.current_time()
                users = list(self._local.all_here())
                for start in range(0, len(users), SLICE_USERS):
                    self._register(users[start : start + SLICE_USERS])
                    await trio.sleep(RETRY_S)

    def _register(self, users: Sequence[str], then: Taken = lambda _taken: None) -> None:
        """Enter in Redis whether users are here; ``then`` is called with whether that was taken."""
        self._changes += 1
        change = self._changes
        commands: list[Command] = []
        for user in users:
            key = sessions(user)
            self._unconfirmed[user] = change
            if self._local.is_here(user):
                commands.append(("SADD", key, self._incarnation))
                commands.append(("EXPIRE", key, SESSIONS_EXPIRE_S))
            else:
                commands.append(("SREM", key, self._incarnation))

        def answer(replies: Sequence[object] | None) -> None:
            if replies is None:
                self._remember(users)
            else:
                for user in users:
                    if self._unconfirmed.get(user) == change:
                        del self._unconfirmed[user]
                        self._let_go(user)
            then(replies is not None)

        self._port.submit(commands, answer)

    def _remember(self, users: Iterable[str]) -> None:
        """Redis did not take it: for later, and nobody waits for that."""
        for user in users:
            if len(self._unconfirmed) > UNREGISTERED_MAX and not self._local.is_here(user):
                self._unconfirmed.pop(user, None)
            else:
                self._retry.add(user)
            self._let_go(user)

    def _let_go(self, user: str) -> None:
        waiting = self._waiting.pop(user, None)
        if waiting is not None:
            waiting.set()

    def _register_again(self, new: bool) -> None:
        """Redis is there again, or has lost what it knew."""
        users = {*self._retry, *self._local.all_here()} if new else self._retry
        self._retry = set()
        self._register_all(list(users))

    def _register_all(self, users: Sequence[str]) -> None:
        """Register many, slice by slice; meanwhile all of them count as not registered."""
        self._unconfirmed.update(dict.fromkeys(users, 0))
        self._register_from(users, 0)

    def _register_from(self, users: Sequence[str], start: int) -> None:
        rest = start + SLICE_USERS

        def go_on(taken: bool) -> None:
            if taken:
                self._register_from(users, rest)
            else:
                self._remember(users[rest:])

        if start < len(users):
            self._register(users[start:rest], go_on)

    # --- Everybody's users ------------------------------------------------------------------------------------------

    def cached(self, user: str) -> tuple[str, ...] | None:
        """See Directory.cached."""
        places = self._places.get(user)
        if places is None:
            places = self._older_places.get(user)
            if places is not None:
                self._keep(user, places)
        return places

    def lookup(self, users: Collection[str], then: Found) -> None:
        """See Directory.lookup."""
        if is_group(users):
            self._find_group(users, then)
        else:
            self._find(users, then)

    def _find_group(self, users: Collection[str], then: Found) -> None:
        """Look up those of a large group who are not known to be where they were."""
        known, unknown = self._groups.find(users) or (None, users)
        changes = self._groups.changes
        if known is not None:
            self.cache_hits += len(known) - len(unknown)

        def note(news: Mapping[str, tuple[str, ...]] | None) -> None:
            if news is None:
                then(None)
                return
            found = Places(news) if known is None else known.changed(news)
            self._groups.keep(users, found, changes)
            then(found)

        self._find(unknown, note)

    def _find(self, users: Collection[str], then: Found) -> None:
        """Look up users one by one."""
        found: dict[str, tuple[str, ...]] = {}
        missing: list[str] = []
        recent = self._places.get  # asked first by itself: a group may have ten thousand members
        for user in users:
            places = recent(user)
            if places is None:
                places = self.cached(user)
            if places is None:
                missing.append(user)
            else:
                found[user] = places
        self.cache_hits += len(found)
        if not missing:
            # What was cached was dropped when Redis went away, so that this is known.
            then(found if not self._port.away else None)
            return
        self.lookups += len(missing)

        def answer(replies: Sequence[object] | None) -> None:
            if replies is None:
                then(None)
                return
            for user, reply in zip(missing, replies, strict=True):
                found[user] = self._read(user, reply)
            then(found)

        self._port.submit([("SMEMBERS", sessions(user)) for user in missing], answer)

    def is_void(self, incarnation: str) -> bool:
        """See Directory.is_void."""
        if incarnation in self._nodes.live:
            return False
        if len(self._sightings) > SIGHTINGS_MAX:
            self._sightings.clear()
        # A lease is taken before the first user is registered: a look that began later would have found it.
        return self._nodes.looked_s > self._sightings.setdefault(incarnation, self._clock())

    def barrier(self, done: Taken) -> None:
        """See Directory.barrier."""
        self._port.submit([("PING",)], lambda replies: done(replies is not None))

    def _read(self, user: str, reply: object) -> tuple[str, ...]:
        """The living ones of a user's set; the others are taken out."""
        assert isinstance(reply, list | set | tuple), "SMEMBERS gives a set"
        places = tuple(member.decode() for member in reply)
        void = [place for place in places if self.is_void(place)]
        if void:
            self.voids += len(void)
            places = tuple(place for place in places if place not in void)
            self._port.submit([("SREM", sessions(user), *void)], lambda _replies: None)
        self._keep(user, places)
        return places

    def _keep(self, user: str, places: tuple[str, ...]) -> None:
        if len(self._places) >= CACHED_USERS_MAX // 2:
            self._older_places, self._places = self._places, {}
        self._places[user] = places

    # --- RedisListener ----------------------------------------------------------------------------------------------

    def back(self, identity: Identity) -> None:
        """See RedisListener.back. Registering waits until the generation is known."""

    def lost(self) -> None:
        """See RedisListener.lost."""
        self._forget_places()
        for waiting in self._waiting.values():
            waiting.set()
        self._waiting.clear()

    def invalidated(self, keys: Collection[str] | None) -> None:
        """See RedisListener.invalidated."""
        if keys is None:
            self._forget_places()
            self.on_invalidated(None)
            return
        users = [key.removeprefix(SESSIONS) for key in keys if key.startswith(SESSIONS)]
        self._groups.note(users)
        for user in users:
            self._places.pop(user, None)
            self._older_places.pop(user, None)
        if users:
            self.on_invalidated(users)

    def _forget_places(self) -> None:
        self._places, self._older_places = {}, {}
        self._groups.forget()
