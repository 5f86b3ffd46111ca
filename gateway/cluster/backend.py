"""What a node of a cluster stands on: Cassandra and Redis, opened before the node and closed after it."""

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from typing import Final, Protocol

import structlog
import trio

from gateway.broker import EdgePort, channel_followed_by, followers_of
from gateway.cassandra_access import cassandra_access
from gateway.clock import clock_us
from gateway.cluster.cluster import Cluster
from gateway.cluster.degradation import NO_REDIS_URL, Degradation
from gateway.cluster.directory import SessionDirectory
from gateway.cluster.following import Following
from gateway.cluster.generation import Generation
from gateway.cluster.heads import RedisHeads
from gateway.cluster.lease import Lease, machine_seconds
from gateway.cluster.peer_address import open_for_peers
from gateway.cluster.peer_handshake import key_of
from gateway.cluster.peers import Peers
from gateway.cluster.ports import Directory, Found, Taken, Transport
from gateway.cluster.redis_client import RedisClient
from gateway.cluster.redis_transport import RedisInbox, RedisTransport
from gateway.cluster.resyncs import Resyncs
from gateway.cluster.succession import Forebear, RedisParts, Succession
from gateway.cluster.two_ways import TwoWays
from gateway.cluster.versions import OWN
from gateway.cluster.watch import Watch
from gateway.config import Settings
from gateway.edge.connection import GONE, JSON, Connection, ConnectionTable
from gateway.edge.hub import Hub
from gateway.edge.outgoing import encode_for
from gateway.edge.writer import Writer
from gateway.observe import cluster_metrics
from gateway.observe.registry import MetricRegistry
from protocol.frames import Resync
from store.cassandra import CassandraStore
from store.cassandra_coordination import CassandraCoordination
from store.cassandra_driver import CassandraTables

THREAD_SWITCH_S: Final = 0.001
"""Seconds after which the loop lets another thread of a cluster's node run. What Cassandra and Redis say is heard by
threads, several one after the other for one message; with Python's 5 ms each of them may wait that long in a busy node.
(With 0.5 ms, the p99 of deliveries across busy nodes was 58 instead of 217 ms, for 5 to 10 % more processor time.)"""

log = structlog.get_logger(__name__)


class NodeParts(Protocol):
    """What of a node its cluster has to know."""

    @property
    def hub(self) -> Hub: ...
    @property
    def writer(self) -> Writer: ...
    @property
    def table(self) -> ConnectionTable: ...


class Backend:
    """Cassandra, Redis, and what is made of them for one node.

    Attributes:
        store: the cluster's store.
        tables: the statements, for counting them.
        redis: the connection; None without ``redis_url``.
        peers: direct connections to other nodes; None without ``cluster_secret``.
        heads: the heads of conversations in Redis; None without ``redis_url``.
        degradation: whether this node does without Redis just now.
        address: where other nodes reach this one.
        succession: gives this node's part of the cluster to another process, or takes it; made by ``join``.
    """

    succession: Succession

    def __init__(self, settings: Settings, node: str, address: str, forebear: Forebear | None = None) -> None:
        """Describe everything; nothing is connected yet. Raises PeerPortUnusable, UrlError (``redis_url``).

        Args:
            settings: the effective settings.
            node: the node's name.
            address: where it listens, for a lease of nodes that are not reached directly.
            forebear: the process whose incarnation goes on in this one.
        """
        self._settings = settings
        self.tables = CassandraTables(cassandra_access(settings), settings.cassandra_requests_max)
        self.coordination = CassandraCoordination(self.tables)
        self.store = CassandraStore(self.tables, self._may_speak)
        self._joined: Cluster | None = None
        self._resyncs: Resyncs | None = None
        self._following: Following | None = None
        listening = None
        if forebear is not None:
            listening, address = forebear.listening, forebear.address
        elif settings.cluster_secret:
            listening, address = open_for_peers(settings)
        self.address = address
        self._connected = False
        self._lease = Lease(
            self.coordination,
            node=node,
            address=address,
            owns=settings.roles in ("both", "owner"),
            protocol=OWN.packed,
            lease_s=settings.lease_s,
            renew_s=settings.lease_renew_s,
            incarnation=forebear.incarnation if forebear is not None else "",
        )
        self._watch = Watch(self.coordination, self._lease, lease_s=settings.lease_s)
        self._directory: SessionDirectory | None = None
        self.heads: RedisHeads | None = None
        self.degradation = Degradation(
            lambda: self._cluster().transport.away,
            lambda: self._cluster().links.alone,
            self.away_reason,
            directly=bool(settings.cluster_secret),
        )
        self.peers = (
            Peers(self._lease.incarnation, key_of(settings.cluster_secret), listening, lambda: self._watch.live)
            if listening is not None
            else None
        )
        name = f"tidegate-{self._lease.incarnation}".replace(" ", "_")
        self.redis = RedisClient(settings.redis_url, name=name) if settings.redis_url else None
        self._generations = Generation(self.redis) if self.redis is not None else None
        self._inbox = (
            RedisInbox(settings.redis_url, self._lease.incarnation, name=f"{name}-inbox")
            if settings.redis_url
            else None
        )

    @property
    def inherits(self) -> bool:
        """Whether this node goes on in the place of another process, which has accepted its connections until now."""
        return self._lease.taken

    @property
    def incarnation(self) -> str:
        """The name of this life of the node."""
        return self._lease.incarnation

    @property
    def datacenter(self) -> str:
        """Whose replicas alone are asked; empty: those of all are, or nothing is connected yet."""
        return self.tables.datacenter

    @property
    def waiting_for(self) -> str:
        """What keeps it from being connected, in words; empty when nothing does."""
        return self.tables.waiting_for

    @property
    def hints_known(self) -> bool:
        """Whether Redis is there, and known to hold what it held."""
        return self._generations is not None and bool(self._generations.current)

    def _cluster(self) -> Cluster:
        assert self._joined is not None, "a store is asked for nothing before its node has joined"
        return self._joined

    def _may_speak(self, conversation_id: str, epoch: int) -> bool:
        return self._cluster().ownership.may_speak(conversation_id, epoch)

    def join(self, node: NodeParts) -> Cluster:
        """The node's part of the cluster."""
        if self.redis is None or self._generations is None:
            away = Away()
            transport: Transport = away
            directory: Directory = away
        else:
            incarnation = self._lease.incarnation
            transport = RedisTransport(self.redis, self._generations, incarnation)
            directory = self._directory = SessionDirectory(
                self.redis, self._generations, incarnation, HubUsers(node.hub), self._watch, machine_seconds
            )
        if self.peers is not None:
            transport = TwoWays(transport, self.peers)
        edge: EdgePort = node.hub
        self._joined = Cluster(
            self._settings, self.store, self.coordination, transport, directory, edge, self._lease, self._watch,
            clock_us=clock_us,
        )  # fmt: skip
        self._resyncs = Resyncs(AllConnections(node), lambda: self.degradation.now)
        self._following = Following(
            node.hub.followers, directory, AllConnections(node), node.hub.connections_of, self._resyncs.everybody
        )
        self._joined.on_gap = self._may_have_missed
        if self.redis is not None and self._generations is not None:
            self.heads = RedisHeads(
                self.redis, self._generations, self._lease.incarnation, self._joined.own_heads,
                self._joined.links.heads_count_from, int(machine_seconds() * 1000),
            )  # fmt: skip
            self._joined.share_heads(self.heads)
            self._generations.on_new.append(self._begun)
        redis = (
            RedisParts(self.redis, self._generations, self._inbox)
            if self.redis is not None and self._generations is not None and self._inbox is not None
            else None
        )
        self.succession = Succession(
            self._joined, self.store, self._resyncs, redis, self.peers, self._settings.lease_s, self._following
        )
        return self._joined

    def _may_have_missed(self) -> None:
        if self._following is not None and self._resyncs is not None:
            self._following.lost()
            self._resyncs.everybody()

    def _begun(self, new: bool) -> None:
        log.info("redis can be used", new_generation=new)
        self._cluster().elsewhere.everybody()
        self._may_have_missed()
        self._cluster().retelling.soon()

    def away_reason(self) -> str:
        """Why this node does without Redis, where it does."""
        return self.redis.away_reason if self.redis is not None else NO_REDIS_URL

    def add_metrics(self, registry: MetricRegistry) -> None:
        """Tell what the cluster's parts count; call it once, behind ``join``."""
        assert self._resyncs is not None
        cluster_metrics.add_cluster(registry, self._cluster())
        cluster_metrics.add_degradation(registry, self.degradation, self._resyncs)
        cluster_metrics.add_cassandra(registry, self.tables)
        if self.redis is not None and self._inbox is not None and self._generations is not None:
            assert self._directory is not None
            cluster_metrics.add_redis(registry, self.redis, self._inbox, self._generations, self._directory)
        if self.peers is not None:
            cluster_metrics.add_peers(registry, self.peers)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect to Cassandra, for which it waits, and to Redis, for which it does not; serve until cancelled.

        Does nothing when this was begun before.
        """
        if self._connected:
            task_status.started()
            return
        self._connected = True
        sys.setswitchinterval(THREAD_SWITCH_S)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.tables.run)
            self._lease.asks(self.tables.datacenter)
            if self.redis is not None:
                await nursery.start(self.redis.run)
            task_status.started()

    async def take_part(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hear other nodes, and let them find this one, until cancelled; the node has joined by then."""
        async with trio.open_nursery() as nursery:
            if self.peers is not None:
                await nursery.start(self.peers.run)
            if self._inbox is not None and self._generations is not None:
                nursery.start_soon(self._generations.run)
                inbox, transport = self._inbox, self._cluster().transport
                nursery.start_soon(inbox.run, transport.received)
                if self._directory is not None:
                    nursery.start_soon(self._directory.run)
            elif self.peers is not None:
                log.warning("no redis_url: nodes reach each other directly, and clients read the store now and then")
            else:
                log.warning(
                    "neither redis_url nor cluster_secret: nodes of this cluster cannot reach each other; "
                    "run one node only"
                )
            if self.heads is not None:
                nursery.start_soon(self.heads.run)
            if self._resyncs is not None:
                nursery.start_soon(self._resyncs.run)
            if self._following is not None:
                nursery.start_soon(self._following.run)
            nursery.start_soon(self.degradation.run)
            task_status.started()


class HubUsers:
    """Implements ``gateway.cluster.ports.LocalUsers`` with a hub."""

    def __init__(self, hub: Hub) -> None:
        self._by_user = hub.by_user
        self._followers = hub.followers

    def is_here(self, user: str) -> bool:
        """See LocalUsers.is_here; a user may have the name that stands for a channel's followers."""
        return user in self._by_user or channel_followed_by(user) in self._followers

    def all_here(self) -> Iterable[str]:
        """See LocalUsers.all_here."""
        return chain(self._by_user.keys(), map(followers_of, self._followers))


class AllConnections:
    """Implements ``gateway.cluster.resyncs.Everybody`` with a node's connections."""

    def __init__(self, node: NodeParts) -> None:
        self._node = node

    def connections(self) -> Collection[Connection]:
        """See Everybody.connections."""
        return [each for each in self._node.table.by_fd if each is not None and not each.flags & GONE]

    def push_surely(self, connections: Collection[Connection], push: Resync) -> None:
        """See Everybody.push_surely. A full send queue takes it, or its connection is closed and comes back."""
        plain, json = encode_for(push, json=False), encode_for(push, json=True)
        for connection in connections:
            if not connection.flags & GONE:
                self._node.writer.write(connection, json if connection.flags & JSON else plain)


class Away:
    """Transport and Directory of a node without Redis: nothing is known and nothing is taken."""

    def __init__(self) -> None:
        self.received: Callable[[bytes], None] = lambda _parcel: None
        self.on_invalidated: Callable[[Collection[str] | None], None] = lambda _users: None

    @property
    def away(self) -> bool:
        """Always."""
        return True

    def send(self, incarnation: str, parcel: bytes, taken: Taken) -> None:
        """See Transport.send."""
        taken(False)

    def forget(self, incarnation: str) -> None:
        """See Transport.forget."""

    def arrive(self, user: str) -> None:
        """See Directory.arrive."""

    def leave(self, user: str) -> None:
        """See Directory.leave."""

    async def registered(self, user: str) -> None:
        """See Directory.registered."""
        await trio.lowlevel.checkpoint()

    def cached(self, user: str) -> tuple[str, ...] | None:
        """See Directory.cached."""
        return None

    def lookup(self, users: Collection[str], then: Found) -> None:
        """See Directory.lookup."""
        nothing: Mapping[str, tuple[str, ...]] | None = None
        then(nothing)

    def is_void(self, incarnation: str) -> bool:
        """See Directory.is_void."""
        return True

    def barrier(self, done: Taken) -> None:
        """See Directory.barrier."""
        done(False)
