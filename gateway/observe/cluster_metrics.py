"""What a node tells of its part in the cluster: lease, slots, links, Redis, Cassandra. See docs/operations.md.

Each part counts for itself; here is only where to find it, and under what name it is told.
"""

from typing import TYPE_CHECKING

from gateway.observe.registry import MetricRegistry
from store.coordination import SLOTS

if TYPE_CHECKING:  # these bring the drivers, that a single node does without
    from gateway.cluster.cluster import Cluster
    from gateway.cluster.degradation import Degradation
    from gateway.cluster.directory import SessionDirectory
    from gateway.cluster.generation import Generation
    from gateway.cluster.peers import Peers
    from gateway.cluster.redis_client import RedisClient
    from gateway.cluster.redis_transport import RedisInbox
    from gateway.cluster.resyncs import Resyncs
    from store.cassandra_driver import CassandraTables


def add_cluster(registry: MetricRegistry, cluster: "Cluster") -> None:
    """What a node of any cluster has."""
    _add_ownership(registry, cluster)
    _add_links(registry, cluster)
    _add_broker(registry, cluster)
    _add_heads(registry, cluster)


def _add_ownership(registry: MetricRegistry, cluster: "Cluster") -> None:
    gauge, counter = registry.gauge, registry.counter
    lease, watch, ownership = cluster.lease, cluster.watch, cluster.ownership
    gauge("nodes_alive", "Nodes whose lease is alive, this one included.", lambda: len(watch.live))
    gauge("lease_valid", "1 while this node may acknowledge: nobody can have taken its slots.", lease.valid)
    gauge("lease_remaining_seconds", "For how long the lease is valid without a renewal.", lambda: lease.remaining_s)
    counter("lease_renewals", "Renewals of this node's lease that were applied.", lambda: lease.renewals)
    counter("nodes_marked_dead", "Nodes that this one marked dead.", lambda: watch.marked_dead)
    gauge("slots_owned", f"Slots that this node owns, of {SLOTS}.", lambda: ownership.owned)
    gauge("slot_table_version", "Version of the slot table that this node knows.", lambda: ownership.table.version)
    counter("slots_claimed", "Slots taken over from dead nodes.", lambda: ownership.claims)
    counter("slots_handed_over", "Slots handed over to living nodes.", lambda: ownership.handovers)


def _add_links(registry: MetricRegistry, cluster: "Cluster") -> None:
    links = cluster.links
    registry.counter("parcels_sent", "Parcels sent to other nodes, empty ones included.", lambda: links.parcels)
    registry.counter(
        "link_gaps", "Times that parcels of another node were missed, its silence included.", lambda: links.gaps
    )
    registry.counter(
        "parcel_items_dropped",
        "Items of other nodes' parcels that were not understood.",
        lambda: cluster.items_dropped,
    )


def _add_broker(registry: MetricRegistry, cluster: "Cluster") -> None:
    gauge, counter = registry.gauge, registry.counter
    router, handing_on = cluster.router, cluster.handing_on
    gauge("commands_routed_waiting", "Commands that wait for an owner on another node.", lambda: router.waiting)
    counter("commands_forwarded", "Commands sent to owners on other nodes.", lambda: router.forwarded)
    counter("commands_repeated", "Commands sent to an owner once more.", lambda: router.repeated)
    counter("commands_given_back", "Commands that somebody who was not the owner gave back.", lambda: router.given_back)
    counter("commands_unanswered", "Commands that no owner answered in time.", lambda: router.unanswered)
    gauge("deliveries_held", "Deliveries and replies held back until they are handed on.", lambda: handing_on.held)
    counter("deliveries_elsewhere", "Deliveries sent to other nodes.", lambda: handing_on.delivered_elsewhere)
    counter(
        "deliveries_looked_again",
        "Deliveries whose recipients moved while they were under way.",
        lambda: handing_on.looked_again,
    )
    gauge("users_elsewhere", "Watched users who are online on other nodes.", lambda: cluster.elsewhere.count)


def _add_heads(registry: MetricRegistry, cluster: "Cluster") -> None:
    counter, standing = registry.counter, cluster.standing
    counter("heads_own", "Heads that clients who came back were told from memory.", lambda: standing.own_known)
    counter("heads_shared", "Heads that they were told from Redis.", lambda: standing.shared_known)
    counter("heads_asked", "Heads that owners had to be asked for, for them.", lambda: standing.asked)


def add_degradation(registry: MetricRegistry, degradation: "Degradation", resyncs: "Resyncs") -> None:
    """How things are without Redis."""
    registry.gauge("degraded", "1 while this node is not alone and does without Redis.", lambda: degradation.now)
    registry.counter("degradations", "Times that this began.", lambda: degradation.begun)
    registry.counter("resync_rounds", "Times that all connections were told to resync.", lambda: resyncs.rounds)


def add_cassandra(registry: MetricRegistry, tables: "CassandraTables") -> None:
    """Use of the store."""
    registry.counter(
        "cassandra_statements", "Statements sent to Cassandra, each of a batch counted.", lambda: tables.statements
    )
    registry.counter("cassandra_reads", "Statements sent to Cassandra that read.", lambda: tables.reads)
    registry.counter("cassandra_requests", "Requests sent to Cassandra; a batch is one.", lambda: tables.requests)


def add_redis(
    registry: MetricRegistry,
    redis: "RedisClient",
    inbox: "RedisInbox",
    generations: "Generation",
    directory: "SessionDirectory",
) -> None:
    """Use of Redis: of the connection, of the inbox, which has one of its own, and of the session directory."""
    gauge, counter = registry.gauge, registry.counter
    gauge("redis_up", "1 while there is a connection to Redis.", lambda: not redis.away)
    counter(
        "redis_commands",
        "Commands carried out by Redis; reads of the inbox count if they brought something.",
        lambda: redis.commands + inbox.reads,
    )
    counter("redis_round_trips", "Round trips that those took.", lambda: redis.batches + inbox.reads)
    counter("redis_connects", "Connections made to Redis.", lambda: redis.connects)
    counter("redis_unanswered", "Commands whose outcome is not known.", lambda: redis.unanswered)
    counter("redis_invalidations", "Keys reported as changed.", lambda: redis.invalidations)
    counter("hint_generations", "Generations of hints that began.", lambda: generations.begun)
    counter("inbox_parcels", "Parcels read from this node's inbox.", lambda: inbox.parcels)
    counter("directory_lookups", "Users looked up in Redis.", lambda: directory.lookups)
    counter("directory_cache_hits", "Users found without asking Redis.", lambda: directory.cache_hits)
    counter("directory_voids", "Entries of dead nodes that were removed.", lambda: directory.voids)


def add_peers(registry: MetricRegistry, peers: "Peers") -> None:
    """Direct connections to other nodes."""
    registry.gauge("peer_connections", "Direct connections to other nodes.", lambda: peers.connections)
    registry.counter("peer_parcels_sent", "Parcels sent straight to other nodes.", lambda: peers.sent)
    registry.counter(
        "peer_parcels_not_taken", "Those of them that surely or perhaps got lost.", lambda: peers.not_taken
    )
    registry.counter("peer_parcels_received", "Parcels that came straight from other nodes.", lambda: peers.arrived)
    registry.counter("peer_refused", "Direct connections refused: not of this cluster.", lambda: peers.refused)
