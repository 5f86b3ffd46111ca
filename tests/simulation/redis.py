"""A simulated Redis, and one node's connections to it.

The real client works in threads of its own, which no virtual clock reaches; what stands here in its place keeps to the
same interface, ``gateway.cluster.ports``: ``RedisLink`` is a ``RedisPort``, ``RedisInbox`` an ``Inbox``. Everything
above it is the product's: transport, session directory, generations of hints.
"""

import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

import trio

from gateway.cluster.ports import Answer, Command, Identity, RedisListener
from gateway.cluster.redis_keys import inbox as inbox_key
from gateway.cluster.redis_transport import FIELD, RENEW_S, TOUCH_FIELD
from tests.simulation.place import Line, Place
from tests.simulation.timeline import Timeline

Stream = list[tuple[tuple[int, int], bytes, bytes]]
"""Items in order: id, field, value."""


class Redis:
    """The server.

    Attributes:
        up: whether it can be reached at all.
        lossy: share of parcels that get lost in it.
        links, inboxes: connections to it.
    """

    def __init__(self, rng: random.Random, timeline: Timeline) -> None:
        self.rng = rng
        self.timeline = timeline
        self.up = True
        self.lossy = 0.0
        self.links: list[RedisLink] = []
        self.inboxes: list[RedisInbox] = []
        self._data: dict[str, Any] = {}
        self._ends_s: dict[str, float] = {}
        self._readers: dict[str, dict[RedisLink, None]] = {}
        self._runs = 1
        self._histories = 1
        self._last_id = (0, 0)
        self._saved: tuple[dict[str, Any], dict[str, float]] = ({}, {})
        self._commands = {
            "CLIENT": self._client, "DEL": self._unlink, "EXEC": self._nothing, "EXPIRE": self._expire,
            "GET": self._get, "HMGET": self._hmget, "HSET": self._hset, "HSETNX": self._hsetnx, "INFO": self._info,
            "MULTI": self._nothing, "PING": self._nothing, "SADD": self._sadd, "SET": self._set,
            "SMEMBERS": self._smembers, "SREM": self._srem, "UNLINK": self._unlink, "XADD": self._xadd,
        }  # fmt: skip

    @property
    def identity(self) -> Identity:
        """What it says of itself."""
        return Identity(f"run-{self._runs}", f"history-{self._histories}")

    # --- What happens to it -----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """It ends, or cannot be reached by anybody."""
        self.up = False
        self.break_all()

    def start(self, remembers: str) -> None:
        """It is back with "all" it knew, "nothing" of it, or what it had ``save``d ("old")."""
        if remembers == "nothing":
            self._data, self._ends_s = {}, {}
        elif remembers == "old":
            self._data, self._ends_s = _copy(self._saved[0]), dict(self._saved[1])
        self._runs += 1
        self._histories += remembers != "all"
        self.up = True

    def save(self) -> None:
        """Take the snapshot that it comes back with after a restart."""
        self._saved = _copy(self._data), dict(self._ends_s)

    def flush(self) -> None:
        """All is gone."""
        self._data, self._ends_s = {}, {}
        self._readers = {}
        for link in self.links:
            link.report(None)

    def trim(self) -> None:
        """Of each stream only the newest item is left."""
        for value in self._data.values():
            if isinstance(value, list):
                del value[:-1]

    def break_all(self) -> None:
        """Every connection is lost."""
        for link in self.links:
            link.lose()
        for each in self.inboxes:
            each.lose()

    # --- Commands ---------------------------------------------------------------------------------------------------

    def execute(self, link: "RedisLink | None", command: Command) -> object:
        """Execute one command of a connection, which is told when what it read changes."""
        name, *args = command
        key = args[0] if args else ""
        if isinstance(key, str) and self._ends_s.get(key, trio.current_time()) < trio.current_time():
            self._drop(key)
        return self._commands[str(name)](link, *args)

    def stream(self, key: str) -> Stream:
        """The items of a stream."""
        found = self._data.get(key, [])
        assert isinstance(found, list)
        return found

    def forget(self, link: "RedisLink") -> None:
        """It is closed: nothing that it read is tracked any more."""
        for readers in self._readers.values():
            readers.pop(link, None)

    def _track(self, link: "RedisLink | None", key: str) -> None:
        if link is not None and link.tracks_next:
            self._readers.setdefault(key, {})[link] = None

    def _changed(self, key: str) -> None:
        for link in self._readers.pop(key, {}):
            link.report({key})

    def _drop(self, key: str) -> bool:
        self._ends_s.pop(key, None)
        if self._data.pop(key, None) is None:
            return False
        self._changed(key)
        return True

    def _nothing(self, *_: Any) -> bytes:
        return b"OK"

    def _client(self, link: "RedisLink", *args: str) -> bytes:
        assert args == ("CACHING", "NO"), args
        link.tracks_next = False
        return b"OK"

    def _info(self, *_: Any) -> bytes:
        return b"evicted_keys:0\r\n"

    def _get(self, link: "RedisLink | None", key: str) -> bytes | None:
        self._track(link, key)
        return self._data.get(key)

    def _set(self, _link: Any, key: str, value: str, *flags: str) -> bytes | None:
        if "NX" in flags and key in self._data:
            return None
        self._data[key] = value.encode()
        self._changed(key)
        return b"OK"

    def _expire(self, _link: Any, key: str, seconds: int) -> int:
        if key not in self._data:
            return 0
        self._ends_s[key] = trio.current_time() + seconds
        return 1

    def _unlink(self, _link: Any, *keys: str) -> int:
        return sum([self._drop(key) for key in keys])

    def _sadd(self, _link: Any, key: str, *members: str) -> int:
        held = self._data.setdefault(key, {})
        new = [member for member in members if member not in held]
        held.update(dict.fromkeys(new))
        if new:
            self._changed(key)
        return len(new)

    def _srem(self, _link: Any, key: str, *members: str) -> int:
        held = self._data.get(key, {})
        old = [member for member in members if member in held]
        for member in old:
            del held[member]
        if old and not held:
            self._drop(key)
        elif old:
            self._changed(key)
        return len(old)

    def _smembers(self, link: "RedisLink | None", key: str) -> list[bytes]:
        self._track(link, key)
        return [member.encode() for member in self._data.get(key, ())]

    def _hset(self, _link: Any, key: str, *fields: str) -> int:
        self._data.setdefault(key, {}).update(zip(fields[::2], fields[1::2], strict=True))
        self._changed(key)
        return len(fields) // 2

    def _hsetnx(self, _link: Any, key: str, field: str, value: str) -> int:
        held = self._data.setdefault(key, {})
        if field in held:
            return 0
        held[field] = value
        self._changed(key)
        return 1

    def _hmget(self, link: "RedisLink | None", key: str, *fields: str) -> list[bytes | None]:
        self._track(link, key)
        held = self._data.get(key, {})
        return [held[field].encode() if field in held else None for field in fields]

    def _xadd(self, _link: Any, key: str, *args: Any) -> bytes | None:
        *flags, field, value = args
        if "NOMKSTREAM" in flags and key not in self._data:
            return None
        self._last_id = max((int(trio.current_time() * 1000), 0), (self._last_id[0], self._last_id[1] + 1))
        if field == FIELD and self.rng.random() < self.lossy:
            self._data.setdefault(key, [])
        else:
            self._data.setdefault(key, []).append((self._last_id, field, value))
            for each in self.inboxes:
                if each.key == key:
                    each.wake()
        return b"%d-%d" % self._last_id


def _copy(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value.copy() if isinstance(value, dict | list) else value for key, value in data.items()}


class _Session:
    """One TCP connection."""

    def __init__(self, timeline: Timeline) -> None:
        self.there = Line(timeline)
        self.back = Line(timeline)
        self.unanswered: list[Answer] = []
        self.broken = False


class RedisLink:
    """Implements ``RedisPort``, as ``gateway.cluster.redis_client.RedisClient`` does.

    Attributes:
        tracks_next: whether what the next command reads is tracked.
        back_s: when it was connected last.
    """

    def __init__(self, redis: Redis, place: Place) -> None:
        self.listeners: list[RedisListener] = []
        self.tracks_next = True
        self.back_s = 0.0
        self._redis = redis
        self._place = place
        self._session: _Session | None = None
        redis.links.append(self)

    @property
    def away(self) -> bool:
        """See RedisPort.away."""
        return self._session is None

    def start(self) -> None:
        """Connect, and again whenever the connection is lost."""
        self._redis.timeline.after(self._place.held_s() + self._place.delay_s(), self._connect)

    def close(self) -> None:
        """The node has ended."""
        self._redis.links.remove(self)
        self._redis.forget(self)

    def submit(self, commands: Sequence[Command], answer: Answer) -> None:
        """See RedisPort.submit."""
        session, place = self._session, self._place
        if session is None:
            answer(None)
            return
        session.unanswered.append(answer)
        session.there.put(place.held_s() + place.delay_s(), lambda: self._arrive(session, commands, answer))

    def _arrive(self, session: _Session, commands: Sequence[Command], answer: Answer) -> None:
        # What was on its way when the connection broke is executed or not, but not behind what the next one brings.
        if session is not self._session or not self._redis.up or (session.broken and self._redis.rng.random() < 0.5):
            return
        replies = []
        for command in commands:
            caching = command[0] == "CLIENT"
            replies.append(self._redis.execute(self, command))
            if not caching:
                self.tracks_next = True

        def told() -> None:
            if answer in session.unanswered and not session.broken:
                session.unanswered.remove(answer)
                answer(replies)

        self._return(session, told)

    def _return(self, session: _Session, call: Callable[[], object]) -> None:
        place = self._place
        session.back.put(place.late_s() + place.delay_s(), lambda: place.hear(call))

    def report(self, keys: Collection[str] | None) -> None:
        """Keys that were read have changed."""
        session = self._session
        if session is None:
            return

        def told() -> None:
            if session is self._session and not session.broken:
                for listener in self.listeners:
                    listener.invalidated(keys)

        self._return(session, told)

    def lose(self) -> None:
        """The connection breaks; the node finds out some time later."""
        session = self._session
        if session is None or session.broken:
            return
        session.broken = True
        self._redis.forget(self)
        after_s = self._redis.rng.random() * 2.0
        self._redis.timeline.after(after_s, lambda: self._place.hear(lambda: self._lost(session)))

    def _lost(self, session: _Session) -> None:
        self._session = None
        unanswered, session.unanswered = session.unanswered, []
        for answer in unanswered:
            answer(None)
        for listener in self.listeners:
            listener.lost()
        self._retry()

    def _retry(self) -> None:
        self._redis.timeline.after(0.1 + self._redis.rng.random(), lambda: self._place.hear(self._connect))

    def _connect(self) -> None:
        if not self._redis.up or self._place.redis_cut:
            self._retry()
            return
        self._session = _Session(self._redis.timeline)
        self.back_s = trio.current_time()
        identity = self._redis.identity
        for listener in self.listeners:
            listener.back(identity)


class RedisInbox:
    """Implements ``Inbox``: reads a node's stream over a connection of its own, one read after the other."""

    def __init__(self, redis: Redis, place: Place, incarnation: str, parcels_max: int) -> None:
        self.key = inbox_key(incarnation)
        self._redis = redis
        self._place = place
        self._parcels_max = parcels_max
        self._received: Callable[[bytes], None] = lambda _parcel: None
        self._cursor = (0, 0)
        self._reads = 0
        self._reading = False
        redis.inboxes.append(self)

    async def run(self, received: Callable[[bytes], None]) -> None:
        """See Inbox.run."""
        self._received = received
        while await self._place.wait(self._place.delay_s()):
            if self._reached:
                self._renew()
            await self._place.wait(RENEW_S)

    def close(self) -> None:
        """The node has ended; its stream expires."""
        self._redis.inboxes.remove(self)

    @property
    def _reached(self) -> bool:
        return self._redis.up and not self._place.redis_cut

    def _renew(self) -> None:
        made = self._redis.execute(None, ("XADD", self.key, "MAXLEN", "~", self._parcels_max, "*", TOUCH_FIELD, b""))
        assert isinstance(made, bytes)
        self._redis.execute(None, ("EXPIRE", self.key, 60))
        self.wake()

    def lose(self) -> None:
        """The connection breaks: what was being read is read again over the next one."""
        self._reads += 1
        self._reading = False
        self._redis.timeline.after(0.2 + self._redis.rng.random(), self.wake)

    def wake(self) -> None:
        """There is something in the stream, or may be."""
        if not self._reading and self._reached and not self._place.dead:
            self._reading = True
            reads = self._reads
            self._redis.timeline.after(self._place.held_s() + self._place.delay_s(), lambda: self._read(reads))

    def _read(self, reads: int) -> None:
        if reads != self._reads or not self._reached:
            return
        items = [item for item in self._redis.stream(self.key) if item[0] > self._cursor]
        if not items:
            self._reading = False
            return
        delay_s = self._place.late_s(inbox=True) + self._place.delay_s()
        self._redis.timeline.after(delay_s, lambda: self._place.hear(lambda: self._take(reads, items)))

    def _take(self, reads: int, items: Stream) -> None:
        if reads != self._reads:
            return
        self._reading = False
        self._cursor = items[-1][0]
        for _, field, value in items:
            if field == FIELD:
                self._received(value)
        self.wake()
