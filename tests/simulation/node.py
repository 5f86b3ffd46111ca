"""One life of a node: what gateway/node.py and gateway/cluster/backend.py put together, without sockets and threads.

Its own code is the product's: lease, watch, ownership, links, both ends of the broker, transport, session directory,
generations, heads, the two ways of parcels, resyncs, who follows channels, owner, catching up, and the store.
Simulated are Cassandra, the connections to Redis and between nodes, and the edge's sockets: a session here is an
object, not a descriptor.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, Any

import trio

from gateway.broker import Delivery, Origin, channel_followed_by, followers_of, is_channel
from gateway.cluster.cluster import Cluster
from gateway.cluster.directory import SessionDirectory
from gateway.cluster.following import Following
from gateway.cluster.generation import Generation
from gateway.cluster.heads import RedisHeads
from gateway.cluster.joining import CannotJoin
from gateway.cluster.lease import Lease
from gateway.cluster.redis_transport import INBOX_PARCELS_MAX, RedisTransport
from gateway.cluster.resyncs import Resyncs
from gateway.cluster.two_ways import TwoWays
from gateway.cluster.versions import OWN
from gateway.cluster.watch import Watch
from gateway.config import Settings
from gateway.edge.catchup import Catchup
from gateway.edge.followers import Followers
from gateway.edge.hub import Caller
from protocol.codec import decode_entry
from protocol.frames import Command, ListConversations, Reply, Resync, Sync
from store.cassandra import CassandraStore
from store.cassandra_coordination import CassandraCoordination
from tests.simulation.cassandra import NodeTables
from tests.simulation.peers import SimulatedPeers
from tests.simulation.place import Place
from tests.simulation.redis import RedisInbox, RedisLink

if TYPE_CHECKING:
    from tests.simulation.device import Device
    from tests.simulation.world import World

DRAIN_MAX_S = 30.0
"""Seconds that a node takes to hand its slots over at most."""

SETTLE_MAX_S = 10.0
"""Seconds that it takes to answer what it accepted."""


class Session:
    """A connection of a device.

    Attributes:
        user: whose it is.
        receive: takes replies.
        device: None once the device has left it without the node's knowing.
        gone: it ended.
    """

    def __init__(self, user: str, receive: Callable[[Reply], None], device: "Device | None") -> None:
        self.user = user
        self.receive = receive
        self.device = device
        self.gone = False


class Node:
    """One life of a node.

    Attributes:
        ready: clients may come.
        gap_s: when it noticed last that parcels got lost.
        ended: it runs no more.
    """

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.sessions: list[Session] = []
        self.present: Counter[str] = Counter()  # sessions by user
        self.ready = False
        self.ended = False
        self.gap_s = -inf
        self.scope = trio.CancelScope()
        self.place = Place(world.timeline, world.rng)
        coordination = CassandraCoordination(NodeTables(world.cassandra, self.place))
        self.lease = Lease(
            coordination, node=name, address=f"{name}:1", owns=True, protocol=OWN.packed, lease_s=10.0, renew_s=2.0,
            clock=trio.current_time,
        )  # fmt: skip
        watch = Watch(coordination, self.lease, lease_s=10.0, clock=trio.current_time)
        self.incarnation = self.lease.incarnation
        self.redis = RedisLink(world.redis, self.place)
        self.generations = Generation(self.redis)
        self.inbox = RedisInbox(world.redis, self.place, self.incarnation, INBOX_PARCELS_MAX)
        by_redis = RedisTransport(self.redis, self.generations, self.incarnation)
        self.directory = SessionDirectory(
            self.redis, self.generations, self.incarnation, self, watch, trio.current_time
        )
        self.peers = SimulatedPeers(world.streets, self.place, self.incarnation)
        transport = TwoWays(by_redis, self.peers)  # type: ignore[arg-type]
        self.store = CassandraStore(NodeTables(world.cassandra, self.place), self._may_speak)
        settings = Settings()
        self.cluster = Cluster(
            settings, self.store, coordination, transport, self.directory, self, self.lease, watch,
            clock_us=world.clock_us,
        )  # fmt: skip
        self.catchup = Catchup(settings, self.store, self.cluster.owner, self)
        self.catchup.before_reading = self.directory.registered
        self.catchup.heads = self.cluster.standing
        self.heads = RedisHeads(
            self.redis, self.generations, self.incarnation, self.cluster.own_heads,
            self.cluster.links.heads_count_from, int(trio.current_time() * 1000),
        )  # fmt: skip
        self.cluster.share_heads(self.heads)
        self.resyncs = Resyncs(self, lambda: transport.away and not self.cluster.links.alone)  # type: ignore[arg-type]
        self.followers = Followers(self.present)
        self.following = Following(
            self.followers, self.directory, self, self._connections_of, self.resyncs.everybody  # type: ignore[arg-type]
        )  # fmt: skip
        self.catchup.followers = self.followers
        self.cluster.links.sleep = self._sleep
        self.cluster.on_gap = self._on_gap
        self.cluster.on_fenced = self._fenced
        self.generations.on_new.append(self._on_generation)

    # --- Life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live until ended."""
        try:
            with self.scope:
                await self._run()
        except* CannotJoin:
            # A renewal of the life before came late: the supervisor tries again.
            self.world.count("cannot join")
            self.end()

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            self.redis.start()
            nursery.start_soon(self.generations.run)
            nursery.start_soon(self.inbox.run, self.cluster.transport.received)
            nursery.start_soon(self.directory.run)
            nursery.start_soon(self.heads.run)
            nursery.start_soon(self.resyncs.run)
            nursery.start_soon(self.following.run)
            await nursery.start(self.store.run)
            await nursery.start(self.cluster.owner.run)
            await nursery.start(self.catchup.run)
            await nursery.start(self.cluster.run)
            self.ready = True
            await trio.sleep_forever()

    def end(self) -> None:
        """Killed, whatever it was doing."""
        if self.ended:
            return
        self.ended, self.ready = True, False
        self.place.kill()
        self.redis.close()
        self.inbox.close()
        self.peers.close()
        self.scope.cancel()
        sessions, self.sessions = self.sessions, []
        for session in sessions:
            session.gone = True
            if session.device is not None:
                session.device.gone(session)
        self.world.nodes.pop(self.name)

    async def drain(self) -> None:
        """End as SIGTERM makes a node end."""
        self.ready = False
        with trio.move_on_after(DRAIN_MAX_S):
            await self.cluster.leave()
        for session in list(self.sessions):
            if session.device is not None:
                session.device.go_away(session)
        with trio.move_on_after(SETTLE_MAX_S):
            cluster = self.cluster
            while cluster.owner.backlog.waiting or cluster.router.waiting or cluster.handing_on.held:  # noqa: ASYNC110
                await trio.sleep(0.05)
        if not self.ended:
            await self.cluster.release()
        self.end()

    def _may_speak(self, conversation_id: str, epoch: int) -> bool:
        return self.cluster.ownership.may_speak(conversation_id, epoch)

    def _fenced(self) -> None:
        self.world.count("fenced")
        self.end()

    async def _sleep(self, seconds: float) -> None:
        """Longer if it is paused then."""
        if not await self.place.wait(seconds):
            await trio.sleep_forever()

    def _on_gap(self) -> None:
        self.world.count("gap")
        self.gap_s = trio.current_time()
        self.following.lost()
        self.resyncs.everybody()

    def _on_generation(self, new: bool) -> None:
        self.world.count("new generation" if new else "redis back")
        self.following.lost()
        self.resyncs.everybody()
        self.cluster.retelling.soon()

    # --- Sessions ---------------------------------------------------------------------------------------------------

    def open(self, session: Session) -> None:
        """A device is connected."""
        self.sessions.append(session)
        self.present[session.user] += 1
        if self.present[session.user] == 1:
            self.directory.arrive(session.user)

    def close(self, session: Session) -> None:
        """It is not any more."""
        session.gone = True
        if session in self.sessions:
            self.sessions.remove(session)
            self.present[session.user] -= 1
            if not self.present[session.user]:
                del self.present[session.user]
                self.followers.departed(session.user)
                self.directory.leave(session.user)

    def _connections_of(self, user: str) -> list[Session]:
        return [session for session in self.sessions if session.user == user]

    def submit(self, origin: Session | Caller, command: Command) -> None:
        """A command comes from outside."""
        handler = self.catchup.submit if isinstance(command, Sync | ListConversations) else self.cluster.router.submit
        self.place.hear(lambda: handler(origin, command))

    def _say(self, call: Callable[[], object]) -> None:
        """Something reaches a device, once this node is awake."""
        held_s = self.place.held_s()
        if held_s:
            self.world.timeline.after(held_s, lambda: None if self.ended else call())
        else:
            call()

    # gateway.cluster.ports.LocalUsers

    def is_here(self, user: str) -> bool:
        return user in self.present or channel_followed_by(user) in self.followers

    def all_here(self) -> Iterable[str]:
        return chain(self.present, map(followers_of, self.followers))

    # gateway.cluster.resyncs.Everybody

    def connections(self) -> Collection[Session]:
        return self.sessions

    def push_surely(self, connections: Collection[Session], push: Resync) -> None:
        for session in connections:
            if session.device is not None and not session.gone:
                self._say(session.device.resync)

    # gateway.broker.EdgePort

    def reply(self, origin: Session | Caller, reply: Reply, conversation_id: str = "") -> None:
        if not self.is_gone(origin):
            self._say(lambda: None if self.is_gone(origin) else origin.receive(reply))

    def not_owner(self, origin: Origin, command: Command) -> None:
        raise AssertionError("the router takes these")

    def is_gone(self, origin: Session | Caller) -> bool:
        return self.ended or (isinstance(origin, Session) and origin.gone)

    def when_room(self, origin: Origin, then: Callable[[], None]) -> None:
        then()

    def together(self) -> AbstractContextManager[object]:
        return nullcontext()

    def deliver(self, delivery: Delivery) -> None:
        recipients = delivery.recipients
        if is_channel(delivery.conversation_id):
            recipients = self.followers.recipients(delivery)
        for encoded, origin in zip(delivery.entries, delivery.origins, strict=True):
            entry = decode_entry(encoded)
            for session in self.sessions:
                device = session.device
                if device is not None and session is not origin and session.user in recipients:
                    self._say(lambda s=session, d=device, e=entry: None if s.gone else d.pushed(e))

    def signal(self, *_signal: Any) -> None:
        """Receipts and typing are not judged here."""
