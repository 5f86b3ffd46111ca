"""A node: puts the parts together, starts them in order, and ends them in order."""

import gc
import resource
import socket
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from math import inf
from select import epoll
from typing import TYPE_CHECKING

import structlog
import trio

from gateway.addresses import http_url
from gateway.answers import answer
from gateway.api.app import Api
from gateway.api.ports import Check
from gateway.api.server import HTTP_CONNECTIONS_MAX, RESERVED_MAX, HttpServer
from gateway.auth import Identity, Verifier
from gateway.broker import OwnerPort
from gateway.clock import clock_us
from gateway.config import Settings
from gateway.drain import Drain
from gateway.edge.admission import Admission
from gateway.edge.catchup import Catchup
from gateway.edge.commands import Commands
from gateway.edge.connection import Connection, ConnectionTable
from gateway.edge.entrance import Entrance
from gateway.edge.first_frame import FirstFrame
from gateway.edge.hub import Hub, ask
from gateway.edge.keepalive import Keepalive
from gateway.edge.listener import Listener, listen
from gateway.edge.parking import Parking
from gateway.edge.presence import Presences
from gateway.edge.reception import Reception
from gateway.edge.refreshes import Refreshes
from gateway.edge.sessions import Sessions
from gateway.edge.writer import Writer
from gateway.heap import collect_less_often, give_back_large_blocks
from gateway.observe.metrics import Metrics
from gateway.orders import heed_signals, heed_supervisor
from gateway.owner.owner import Owner
from gateway.owner.ports import SingleOwner
from gateway.process_keeper import FENCED
from gateway.process_link import NodeEnd
from gateway.upgrade import systemd
from gateway.upgrade.ports import EmbeddedEstate, Estate
from gateway.upgrade.predecessor import Upgrades
from gateway.upgrade.service import heed_upgrades, obey
from protocol.errors import ErrorCode
from protocol.frames import Command, ErrorReply, Reply
from store.embedded import EmbeddedStore
from store.interface import Store

DESCRIPTORS_RESERVED = 64 + HTTP_CONNECTIONS_MAX + RESERVED_MAX
"""Descriptors kept back from connections, besides those of handshakes: store, logs, epolls; and HTTP connections."""

CALL_TIMEOUT_S = 30.0
"""Seconds that a caller inside this process waits for a reply."""

HANDOVER_SHARE = 0.5
"""Share of the grace period that handing slots over may take: the rest is for the clients."""

FENCED_GRACE_S = 2.0
"""Seconds that a node which was found dead takes to close its connections: nothing they say counts any more."""

LEASE_IN_DOUBT = "Cassandra does not answer renewals of the lease in time: nothing is acknowledged until it does"

if TYPE_CHECKING:
    from gateway.cluster.backend import Backend  # which brings the drivers, that a single node does without

log = structlog.get_logger(__name__)


def derive_connections_max(settings: Settings) -> int:
    """Connections that this process can hold: by its settings, and by its file limit (raised as far as it goes)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    possible = hard - settings.handshakes_max - DESCRIPTORS_RESERVED
    limit = max(min(settings.connections_max or possible, possible), 1)
    told = {"connections_max": limit, "configured": settings.connections_max, "descriptors": hard}
    if possible < max(settings.connections_max, 1):
        advice = "this process may have too few descriptors: raise its file limit (ulimit -n, LimitNOFILE=)"
        log.warning("connection limit", **told, advice=advice)
    else:
        log.info("connection limit", **told)
    return limit


class Node:
    """One gateway process. Implements ``gateway.api.ports.NodePort``.

    Attributes:
        started: whether it has connections to look after: it has accepted some, or another process has left it its own.
        listening: whether it has begun to accept connections.
        cluster: its part of the cluster; None when it is alone with its store.
        fenced: whether other nodes found this one dead and took its slots over: it has to end, and may begin anew.
        before_serving: called once its parts run and nobody has given them work yet.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        verifier: Verifier,
        sockets: Sequence[socket.socket],
        backend: "Backend | None" = None,
    ) -> None:
        self.settings = settings
        self.name = settings.node_name or socket.gethostname()
        self._store = store
        self._verifier = verifier
        self._sockets = sockets
        self._epoll = epoll()
        self.table = ConnectionTable()
        self.writer = Writer(
            self.table,
            self._epoll,
            queue_bytes_max=settings.send_queue_bytes_max,
            queue_age_max_s=settings.send_queue_age_max_s,
        )
        self.hub = Hub(self.table, self.writer, devices_per_user_max=settings.devices_per_user_max)
        self.admission = Admission(settings, self.table)
        self.fenced = False
        self._backend = backend
        self.cluster = backend.join(self) if backend is not None else None
        self.owner, owners = self._owners()
        self.catchup = Catchup(settings, store, self.owner, self.hub)
        self.catchup.followers = self.hub.followers
        self.presences = Presences(settings, store, self.hub)
        self._take_part()
        self.keepalive = Keepalive(settings, self.table, self.writer)
        self.keepalive.on_tick += [self.presences.tick, self._watch_store]
        self.parking = Parking(self.table, self._epoll, self.writer, self.admission, self._handle)
        self.sessions = Sessions(settings, self.table, self.writer, self.hub, self.parking, self.name)
        self.refreshes = Refreshes(verifier, self.sessions, self.keepalive, self.hub)
        self.commands = Commands(
            self.writer,
            self.hub,
            self.admission,
            owner=owners,
            catchup=self.catchup,
            presences=self.presences,
            refreshes=self.refreshes,
        )
        self.writer.on_gone = self._gone
        self._trouble = ""
        self._draining = trio.Event()
        self.before_serving: Callable[[], None] = lambda: None
        self._drain_ends_s = 0.0
        self._life = trio.CancelScope()
        self.started = False
        self.listening = False
        self.metrics = Metrics(self)
        self._face_operators()
        self.hub.fanout.on_written = self.metrics.observe_delivery
        self.api = Api(self, version("tidegate"))
        self.http = HttpServer(self.api, settings)
        self.entrance = Entrance.from_settings(settings)
        self.listener = self._listener()
        self._reception = Reception(self.listener, self.http, sockets)

    def _owners(self) -> tuple[Owner, OwnerPort]:
        """The owner of this node's conversations, and whom the edge submits commands to."""
        if self.cluster is None:
            owner = Owner(self.settings, self._store, self.hub, SingleOwner(), clock_us)
            return owner, owner
        return self.cluster.owner, self.cluster.router

    def _take_part(self) -> None:
        """Tell the cluster, if there is one, what its nodes want to know of each other."""
        if self.cluster is not None:
            self.cluster.on_fenced = self._fence
            self.cluster.follow(self.hub)
            self.catchup.before_reading = self.cluster.directory.registered
            self.cluster.elsewhere.listener = self.presences
            self.presences.elsewhere = self.cluster.elsewhere
            self.catchup.heads = self.cluster.standing

    def _face_operators(self) -> None:
        """Let operators see and steer this node's part of the cluster, if there is one."""
        if self._backend is not None:
            self._backend.add_metrics(self.metrics.registry)
            if self._backend.peers is not None:
                self._backend.peers.answer = partial(answer, self)

    def _listener(self) -> Listener:
        return Listener(
            self.settings,
            self._verifier,
            self.sessions,
            self.table,
            FirstFrame(self._verifier, self.sessions, self.parking),
            self.http,
            connections_max=derive_connections_max(self.settings),
            entrance=self.entrance,
        )

    def _handle(self, connection: Connection, payload: bytes) -> None:
        self.commands.handle(connection, payload)

    def _watch_store(self, _now: float) -> None:
        """Log what is wrong with the store, once, and once when it is over."""
        trouble = self._store.trouble
        if trouble and not self._trouble:
            log.error("store in trouble", trouble=trouble, writable=self._store.writable)
        elif self._trouble and not trouble:
            log.warning("store well again", was=self._trouble)
        self._trouble = trouble

    def _gone(self, connection: Connection) -> None:
        """A connection has left the open state: nobody may keep it."""
        for forget in (self.hub.remove, self.parking.forget, self.presences.forget, self.keepalive.forget):
            try:
                forget(connection)
            except Exception:
                # One connection's end must not be everybody's: it is our bug, logged whole.
                log.exception("connection not forgotten", user=connection.user)

    @property
    def address(self) -> str:
        """Where the node listens: ``http://HOST:PORT``, or ``https://`` when it ends TLS."""
        return http_url(*self._sockets[0].getsockname()[:2], tls=bool(self.settings.tls_cert))

    @property
    def own_address(self) -> str:
        """Where this node alone listens, if it shares its port with others; else the same."""
        return http_url(*self._sockets[-1].getsockname()[:2], tls=bool(self.settings.tls_cert))

    # --- NodePort -----------------------------------------------------------------------------------------------

    async def call(self, user: str, command: Command) -> Reply:
        """See NodePort.call."""
        with trio.move_on_after(CALL_TIMEOUT_S):
            return await ask(self.commands.submit, user, command)
        message = f"no outcome within {CALL_TIMEOUT_S:g} s: repeat with the same client_msg_id"
        return ErrorReply(command.id, ErrorCode.OUTCOME_UNKNOWN, message, 1000)

    async def verify(self, token: str) -> Identity:
        """See NodePort.verify."""
        return await self._verifier.verify_fresh(token)

    def admit(self, user: str) -> None:
        """See NodePort.admit."""
        self.admission.admit_user(user)

    def readiness(self) -> list[Check]:
        """See NodePort.readiness."""
        waiting_for = self._backend.waiting_for if self._backend is not None and not self.started else ""
        trouble = waiting_for or ("" if self._store.writable else self._store.trouble)
        why_not = "the node drains" if self._draining.is_set() else "" if self.started else "the node is starting"
        checks = [Check("store", not trouble, trouble), Check("accepting", not why_not, why_not)]
        if self.cluster is not None and self.started:
            sure = self.cluster.lease.valid()  # known without a write: renewals are not answered
            checks.append(Check("lease", sure, "" if sure else LEASE_IN_DOUBT))
        return checks

    def render_metrics(self) -> bytes:
        """See NodePort.render_metrics."""
        return self.metrics.render()

    # --- Life ---------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until ``drain`` is through, or cancelled.

        The store is started first and ended last: what the owner accepted before its end is stored, and its senders
        are answered as long as they are connected. A drain may be through before it is ``listening``.
        """
        with self._life:
            await self._run(task_status)
        if not self.listening:
            task_status.started()  # whoever waits for that is not to take it for a fault

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as foundations:
            if self._backend is not None:
                if not self._backend.inherits:
                    await foundations.start(self._reception.run)
                await foundations.start(self._backend.run)
            await foundations.start(self._store.run)
            await foundations.start(self._verifier.run)
            async with trio.open_nursery() as parts:
                for part in (self.owner, self.catchup, self.presences, self.refreshes):
                    await parts.start(part.run)
                self.before_serving()
                if self._backend is not None:
                    await foundations.start(self._backend.take_part)
                for loop in (self.parking.run, self.hub.fanout.run, self.keepalive.run):
                    parts.start_soon(loop)
                async with trio.open_nursery() as serving:
                    if self.cluster is not None:
                        await serving.start(self.cluster.run)
                    await self._reception.close()
                    await serving.start(self.http.run)
                    await self._accept(parts, task_status)
                    await self._hand_over()
                    await self._close_connections()
                    serving.cancel_scope.cancel()
                parts.cancel_scope.cancel()
            if self.cluster is not None and not self.fenced:
                await self.cluster.release()
            foundations.cancel_scope.cancel()

    async def _hand_over(self) -> None:
        """Give the slots of this node to others, if there are any, while its connections go on."""
        if self.cluster is not None and not self.fenced:
            left_s = max(0.0, self._drain_ends_s - trio.current_time())
            with trio.move_on_after(left_s * HANDOVER_SHARE) as patience:
                await self.cluster.leave()
            if patience.cancelled_caught:
                log.warning("not all slots handed over in time", slots=self.cluster.ownership.owned)

    def _fence(self) -> None:
        """Other nodes have taken over: let everybody go at once, and end."""
        self.fenced = True
        self.drain()
        self._drain_ends_s = trio.current_time() + FENCED_GRACE_S
        if not self.listening:
            self._life.cancel()

    async def _accept(self, parts: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        """Accept connections until ``drain``."""
        async with trio.open_nursery() as accepting:
            await accepting.start(self.listener.run, self._sockets)
            # All that lives as long as the node is made by now: the collector need not look at it again.
            gc.collect()
            gc.freeze()
            await parts.start(self.metrics.run)  # behind that pause, which disturbs nobody
            log.info("listening", address=self.address, node=self.name, version=version("tidegate"))
            self.started = self.listening = True
            self._life.deadline = inf
            task_status.started()
            await self._draining.wait()
            await trio.sleep(0 if self.fenced else self.settings.drain_lead_s)
            self.listener.accepting = False
            accepting.cancel_scope.cancel()
        for sock in self._sockets:
            sock.close()

    def drain(self) -> None:
        """Stop taking work: ``run`` finishes what was accepted, closes the connections and returns.

        From now on the node is not ready; new connections are accepted for ``drain_lead_s`` more, so that a load
        balancer which has not noticed yet causes no errors. All is over within ``drain_grace_s``.
        """
        if not self._draining.is_set():
            settings = self.settings
            self._drain_ends_s = trio.current_time() + settings.drain_grace_s
            lead_s, grace_s = settings.drain_lead_s, settings.drain_grace_s
            log.info("draining", connections=self.table.count, lead_s=lead_s, grace_s=grace_s)
            self._draining.set()
            if self.listening:
                return
            # What it waits for may never come.
            if self.started:
                self._life.deadline = self._drain_ends_s
            elif self.cluster is not None:
                self._life.cancel()

    @property
    def draining(self) -> bool:
        """Whether it was told to stop taking work."""
        return self._draining.is_set()

    @property
    def store(self) -> Store:
        """Where its conversations are."""
        return self._store

    @property
    def backend(self) -> "Backend | None":
        """What it stands on as a node of a cluster."""
        return self._backend

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """What it listens on."""
        return self._sockets

    def _answered(self) -> bool:
        """Whether everything that was accepted is answered, and the answers are written."""
        cluster = self.cluster
        elsewhere = cluster is not None and (cluster.router.waiting or cluster.handing_on.held)
        return not self.owner.backlog.waiting and not self.hub.fanout.jobs_waiting and not elsewhere

    async def _close_connections(self) -> None:
        """Let everybody go in what is left of the grace."""
        elsewhere = self.settings.store != "embedded"  # whose one directory only a successor of this node can open
        drain = Drain(self.table, self.hub, self.writer, self._answered, elsewhere=elsewhere)
        cut = await drain.run(max(0.0, self._drain_ends_s - trio.current_time()))
        log.info("drained", connections_cut=cut)


def main(settings: Settings, announce: Callable[[Node], None], link: NodeEnd | None = None) -> None:
    """Run a node until SIGTERM or SIGINT, then drain it; a second signal ends it at once.

    Args:
        settings: the effective settings.
        announce: called once the node accepts connections.
        link: to the supervisor, of a node that shares its port with others; it gives the orders then.

    Raises:
        OSError: the address cannot be listened on.
        StoreError: the data directory cannot be used; the subclass says why.
        AuthMisconfigured, SecretUnusable: tokens cannot be verified with these settings.
        TlsMisconfigured: the certificate or its key cannot be used.
    """
    give_back_large_blocks()
    collect_less_often()
    sockets = listen(settings.host, settings.port, shared=link is not None)
    try:
        if link is not None:
            sockets += listen(settings.host, settings.process_port)
        verifier = Verifier.from_settings(settings)
        node = (
            _embedded(settings, verifier, sockets)
            if settings.store == "embedded"
            else _clustered(settings, verifier, sockets)
        )
        trio.run(serve, node, announce, Upgrades(node, _estate(node), supervised=link is not None), link)
        if node.fenced:
            raise SystemExit(FENCED)
    finally:
        for sock in sockets:
            sock.close()


def _embedded(settings: Settings, verifier: Verifier, sockets: Sequence[socket.socket]) -> Node:
    """A node that is alone with its store."""
    store = EmbeddedStore.open(settings.data_dir)
    node = Node(settings, store, verifier, sockets)
    store.observe_commits(node.metrics.observe_commit)
    return node


def _clustered(settings: Settings, verifier: Verifier, sockets: Sequence[socket.socket]) -> Node:
    """A node of a cluster."""
    from gateway.cluster.backend import Backend

    host, port = sockets[-1].getsockname()[:2]
    backend = Backend(settings, settings.node_name or socket.gethostname(), f"{host}:{port}")
    return Node(settings, backend.store, verifier, sockets, backend)


def _estate(node: Node) -> Estate:
    """What a node that is upgraded live hands over besides its connections."""
    if isinstance(node.store, EmbeddedStore):
        return EmbeddedEstate(node.store)
    from gateway.upgrade.in_cluster import ClusterEstate

    assert node.backend is not None, "it is of a cluster"
    return ClusterEstate(node.settings, node.backend)


async def serve(node: Node, announce: Callable[[Node], None], upgrades: Upgrades, link: NodeEnd | None = None) -> None:
    """Run a node and heed what it is told from outside, until it has drained or is ended."""
    async with trio.open_nursery() as nursery:
        scope = nursery.cancel_scope
        await nursery.start(partial(heed_signals, node, scope, supervised=link is not None))
        if link is not None:
            nursery.start_soon(heed_supervisor, node, link, scope, partial(obey, upgrades, link))
        async with trio.open_nursery() as running:
            await running.start(node.run)
            if node.listening:
                await nursery.start(heed_upgrades, lambda asker: upgrades.upgrade(asker.reached, asker.leave))
                announce(node)
                systemd.notify("READY=1")
                if link is not None:
                    link.say_ready(node.own_address)
        scope.cancel()
