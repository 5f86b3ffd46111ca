"""What nodes use to reach and find each other, as interfaces: Redis itself, parcels, the session directory, heads.

Redis is a hint, never the truth. Each interface therefore says what holds while Redis is *away* (not reached, or its
generation not known yet): nothing waits for it, and whoever asked is told that nothing is known.

Everything of one node goes over one connection to Redis, in order; its inbox alone is read over another. That is what
deliveries rely on: a reply proves that every change of the directory that Redis made before it has been reported by
``Directory.on_invalidated``.
"""

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from gateway.broker import Head

Command = Sequence[str | bytes | int]
"""A Redis command and its arguments: ``("SADD", key, member)``."""


Answer = Callable[[Sequence[object] | None], None]
"""Takes the replies of some commands, in order; None: unknown whether they were executed, Redis is away.

There are no errors: nothing that is asked of a sound Redis is ever refused, so a Redis that refuses (it is full, it has
become a replica, it forbids a command) is away.
"""

Taken = Callable[[bool], None]
"""Takes whether a parcel is surely in the receiver's inbox. False: it may be there or not."""

Found = Callable[[Mapping[str, tuple[str, ...]] | None], None]
"""Takes the incarnations where each user asked about is connected; None: not known, because Redis is away."""


class Identity(Struct, frozen=True):
    """Which data set is behind a connection to Redis.

    Attributes:
        run_id: of the Redis process; changes when it restarts.
        replication_id: of the data set's history; changes when a replica is promoted.
        evicts: whether this Redis may drop data to make room.
        evicted: keys it has dropped so far for want of room.
    """

    run_id: str
    replication_id: str
    evicts: bool = False
    evicted: int = 0


class RedisListener(Protocol):
    """Who is told what the connection to Redis does. Called on the trio thread, in order with all answers."""

    def back(self, identity: Identity) -> None:
        """There is a new connection: commands are executed again, and what was read before is not tracked any more."""

    def lost(self) -> None:
        """The connection is gone. What was pending has just been answered with None; so will be what comes."""

    def invalidated(self, keys: Collection[str] | None) -> None:
        """Keys that this connection read have changed since; None: all of them (a flush)."""


class RedisPort(Protocol):
    """One connection to Redis: commands in, replies and invalidations out, all in one order.

    Every key read is tracked, except by the command behind ``("CLIENT", "CACHING", "NO")``: its first change
    afterwards is reported once, before the reply of any command that Redis executed behind that change.

    Attributes:
        listeners: told of connections and invalidations, in this order; added to before ``run``.
    """

    listeners: list[RedisListener]

    @property
    def away(self) -> bool:
        """Whether there is no connection just now."""

    def submit(self, commands: Sequence[Command], answer: Answer) -> None:
        """Execute commands in order, behind all that were submitted before; ``answer`` is called exactly once.

        While Redis is away, or when too much waits already, that is before this returns, with None.
        """


class Inbox(Protocol):
    """The receiving end of this node's stream of parcels."""

    async def run(self, received: Callable[[bytes], None]) -> None:
        """Hand over parcels in the order of the stream until cancelled; ``received`` runs on the trio thread."""


class Transport(Protocol):
    """Parcels to other incarnations, each at most once and in order, perhaps with gaps.

    Attributes:
        received: takes each parcel that arrives for this incarnation; set before ``run``.
    """

    received: Callable[[bytes], None]

    @property
    def away(self) -> bool:
        """Whether parcels are not taken just now; ``send`` then answers False at once."""

    def send(self, incarnation: str, parcel: bytes, taken: Taken) -> None:
        """Put a parcel behind those sent to this incarnation before; ``taken`` is called exactly once.

        It is called with False when the receiver has no inbox: it has ended, or Redis lost it.
        """

    def forget(self, incarnation: str) -> None:
        """Remove what is left of a dead incarnation; for whoever removes its lease. Lost while away: it expires."""


class LiveNodes(Protocol):
    """Who is alive, as of the last look (``Watch``)."""

    @property
    def live(self) -> Container[str]:
        """Living incarnations."""

    @property
    def looked_s(self) -> float:
        """When the last look that succeeded began, seconds of the clock that the directory is given; -1: never."""


class LocalUsers(Protocol):
    """Who is connected to this node (the hub)."""

    def is_here(self, user: str) -> bool:
        """Whether the user has a connection here."""

    def all_here(self) -> Iterable[str]:
        """All users with connections here; the caller may iterate over a copy taken at once."""


class Directory(Protocol):
    """Where users are connected: the incarnations of the nodes that registered them.

    Attributes:
        on_invalidated: takes users whose place may have changed; None: everybody's. Called in order with the answers
            of ``lookup`` and ``barrier``, and for users who are not cached, too.
    """

    on_invalidated: Callable[[Collection[str] | None], None]

    def arrive(self, user: str) -> None:
        """The user's first connection to this node is there."""

    def leave(self, user: str) -> None:
        """The user's last connection to this node is gone."""

    async def registered(self, user: str) -> None:
        """Wait until everybody who looks the user up finds this node; at once while away. Cancelling changes nothing.

        If Redis is lost while it waits, it returns: the resync of its return covers the user.
        """

    def cached(self, user: str) -> tuple[str, ...] | None:
        """Where the user is connected, if that is known; None: ``lookup`` has to be asked.

        Some of them may have died since: ``is_void``.
        """

    def lookup(self, users: Collection[str], then: Found) -> None:
        """Find users, the uncached ones in one round trip; ``then`` is called once, perhaps before this returns."""

    def is_void(self, incarnation: str) -> bool:
        """Whether an incarnation is surely dead, so that nothing has to be sent to it.

        One that no look at the leases could have seen yet is not void.
        """

    def barrier(self, done: Taken) -> None:
        """Call ``done(True)`` once all changes that Redis made so far were reported; False: Redis is away."""


class SlotView(Struct, frozen=True, gc=False):
    """Who owns a conversation's slot, as far as this node knows."""

    slot: int
    owner: str
    epoch: int


class HeadsState(Struct, array_like=True):
    """What another process has to know to go on with this node's heads.

    Attributes:
        hashes: number of the hash begun last.
        counts_from: see Heads.
        fields: heads in that hash, about.
        writing: whether heads are written.
    """

    hashes: int
    counts_from: int
    fields: int
    writing: bool


class Heads(Protocol):
    """The heads of conversations, so that a client that comes back need not bother owners and store.

    A head that is given was written by an owner that others could believe, under the epoch asked for. If that owner
    still owns the slot under that epoch when the answer is there, it is at least as high as everything that was
    acknowledged before the question.

    Attributes:
        counts_from: number of the first hash of this node that others may believe; told in every parcel.
        on_void: called when that has risen.
    """

    on_void: Callable[[], None]

    @property
    def counts_from(self) -> int: ...

    def flush(self) -> None:
        """Submit what changed since: once per tick, before the parcels of that tick are sent."""

    def begin(self) -> None:
        """Other nodes may read heads from now on; until then, and while nobody else lives, nothing is written."""

    def end(self) -> None:
        """No other node lives: void all heads that this node wrote, and write no more."""

    def state(self) -> HeadsState:
        """What a process has to know that goes on with these heads; call it when nothing is left to ``flush``."""

    def restore(self, state: HeadsState) -> None:
        """Go on with the heads of a process that writes none any more: what others believe stays believed."""

    async def heads(self, views: Mapping[str, SlotView]) -> Mapping[str, Head]:
        """Those that are known, in one round trip; the others have to be asked of their owners. Empty while away."""


class Generations(Protocol):
    """Which generation of hints Redis holds: a new one begins when data may have been lost.

    Attributes:
        on_new: called when a generation begins or Redis is back, with whether it is a new one: caches are dropped by
            then, this node's users are being registered anew, and connections that were here have to resync.
        on_away: called when Redis cannot be used any more.
    """

    on_new: list[Callable[[bool], None]]
    on_away: list[Callable[[], None]]

    @property
    def current(self) -> str:
        """Name of the generation; empty while away."""
