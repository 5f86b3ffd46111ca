"""A node's part of the cluster passing to another process of the same machine: nobody else notices.

The successor goes on under the same incarnation: with its lease, slots, epochs, links, inbox and directory entries.
So there is nothing to take over and nothing to wait for: the store, Redis and the other nodes know incarnations, not
processes. What makes that safe is that at any moment only one of the two processes says anything (``gateway.upgrade``),
and that the one which goes first rests before: nothing of it is under way that could arrive behind its end, but for
renewals of the lease, which count for both.

What other nodes send meanwhile waits in the stream in Redis, or goes along unread.
"""

import socket
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from gateway.cluster.cluster import Cluster
from gateway.cluster.following import Following
from gateway.cluster.generation import Generation
from gateway.cluster.lease import LeaseState
from gateway.cluster.links import LinksState
from gateway.cluster.peers import Peers
from gateway.cluster.ports import HeadsState
from gateway.cluster.redis_client import RedisClient
from gateway.cluster.redis_transport import RedisInbox
from gateway.cluster.resyncs import Resyncs
from gateway.cluster.rounds import RoundsState

if TYPE_CHECKING:
    from store.cassandra import CassandraStore

STAND_STILL_SHARE: Final = 0.5
"""Share of a lease that a hand-over may stand still at most: it is renewed before that and right after it, and no other
node may see it stand still for a whole one."""


class Forebear(Struct):
    """The process in whose place another one begins, as far as that one has to know before it has anything.

    Attributes:
        incarnation: whose life goes on.
        address: where other nodes reach it.
        listening: the socket they reach it at; None: they do not.
    """

    incarnation: str
    address: str
    listening: socket.socket | None


class Inheritance(Struct, array_like=True):
    """What goes over when all rests.

    Attributes:
        lease, links, rounds: see there.
        counts: requests, sessions and rounds that the router has numbered.
        inbox: the last item of the stream in Redis that was read.
        generation: of the hints that this node has relied on; empty: none, Redis is away.
        resync: whether connections are still to be told to resync.
        heads: state of the heads in Redis; None without Redis.
        elsewhere: where watched users are online besides here.
    """

    lease: LeaseState
    links: LinksState
    rounds: RoundsState
    counts: tuple[int, int, int]
    inbox: bytes
    generation: str
    resync: bool
    heads: HeadsState | None
    elsewhere: dict[str, tuple[str, ...]]


class RedisParts(Struct):
    """What of Redis has a state."""

    client: RedisClient
    generations: Generation
    inbox: RedisInbox


class Succession:
    """Brings a node's part of the cluster to rest, and gives or takes it."""

    def __init__(
        self,
        cluster: Cluster,
        store: "CassandraStore",
        resyncs: Resyncs,
        redis: RedisParts | None,
        peers: Peers | None,
        lease_s: float,
        following: Following | None = None,
    ) -> None:
        self.stand_still_max_s = lease_s * STAND_STILL_SHARE
        self._cluster = cluster
        self._store = store
        self._resyncs = resyncs
        self._redis = redis
        self._peers = peers
        self._following = following
        self._resting = False
        self._generation = ""

    def objection(self) -> str:
        """Why now is no moment to begin, in words for an operator; empty where there is no reason."""
        if not self._store.writable:
            return f"the store is in trouble ({self._store.trouble}): put that right first"
        if not self._cluster.lease.valid():
            return "this node's lease is in doubt: see that it reaches the store, then try again"
        return ""

    def rest(self) -> None:
        """Once what this node asked of others is answered, take nothing new from them. Call it again and again."""
        self._resting = True
        if self._cluster.router.idle:
            self._cluster.ownership.pause()
            self._cluster.links.pause()
        if self._cluster.own_heads.changed:
            self._cluster.links.flush_soon()
        if self._cluster.lease.remaining_s < self.stand_still_max_s:
            self._cluster.lease.renew_soon()

    def resume(self) -> None:
        """Go on as before, whatever of the rest was reached."""
        self._resting = False
        self._cluster.ownership.resume()
        self._cluster.links.resume()

    @property
    def busy(self) -> str:
        """What is still under way, in words; empty for nothing, from the first ``rest`` on."""
        if not self._resting:
            return ""
        cluster, redis, peers = self._cluster, self._redis, self._peers
        for busy, what in (
            (not cluster.router.idle, "commands that wait for other nodes"),
            (not cluster.ownership.resting, "the slot table"),
            (cluster.handing_on.held, "deliveries to other nodes"),
            (not cluster.links.idle, "parcels for other nodes"),
            (cluster.own_heads.changed, "heads for other nodes"),
            (redis is not None and not redis.client.idle, "answers of Redis"),
            (peers is not None and not peers.idle, "confirmations of other nodes"),
            (cluster.lease.remaining_s < self.stand_still_max_s, "the renewal of the lease"),
        ):
            if busy:
                return what
        return "" if self._store.quiet else "writes of the store"

    def state(self) -> Inheritance:
        """What the successor has to know; call it when nothing is ``busy``."""
        cluster, redis = self._cluster, self._redis
        heads = cluster.standing.shared
        return Inheritance(
            cluster.lease.state(),
            cluster.links.state(),
            cluster.handing_on.rounds.state(),
            cluster.router.counts,
            redis.inbox.handed_over if redis is not None else b"",
            redis.generations.current if redis is not None else "",
            self._resyncs.pending or (self._following is not None and self._following.pending),
            heads.state() if heads is not None else None,
            dict(cluster.elsewhere.state()),
        )

    def restore(self, state: Inheritance) -> None:
        """Go on with what a forebear gave; call it before anything runs but what connects, and then ``go_on``."""
        cluster, redis = self._cluster, self._redis
        cluster.lease.resume(state.lease)
        cluster.links.restore(state.links)
        cluster.handing_on.rounds.restore(state.rounds)
        cluster.router.counts = state.counts
        cluster.elsewhere.restore(state.elsewhere)
        if cluster.standing.shared is not None and state.heads is not None:
            cluster.standing.shared.restore(state.heads)
        if redis is not None:
            redis.inbox.handed_over = state.inbox or redis.inbox.handed_over
        self._generation = state.generation
        if state.resync:
            self._resyncs.everybody()

    def go_on(self) -> None:
        """The connections are here, too: whatever hints were lost meanwhile can be made up for."""
        if self._redis is not None:
            self._redis.generations.resume(self._generation)
