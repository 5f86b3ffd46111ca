"""A node's part of the cluster: lease, slots, links, and the two ends of the broker, put together.

A command goes ``Router`` -> owner, here or elsewhere; what the owner says goes ``HandingOn`` -> hub, here or elsewhere.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final

import structlog
import trio
from msgspec import DecodeError

from gateway.broker import Delivery, EdgePort
from gateway.check.witness import witnessed
from gateway.cluster.elsewhere import Elsewhere
from gateway.cluster.handing_on import HandingOn
from gateway.cluster.joining import CannotJoin, wait_for_place
from gateway.cluster.lease import Fenced, Lease
from gateway.cluster.links import Links
from gateway.cluster.own_heads import OwnHeads
from gateway.cluster.ownership import SlotOwnership
from gateway.cluster.parcels import (
    NOT_UNDERSTOOD,
    Answered,
    Delivered,
    Forwarded,
    GivenBack,
    Item,
    LinkBroken,
    Signalled,
    TableChanged,
    decode_push,
)
from gateway.cluster.ports import Directory, Heads, Transport
from gateway.cluster.retelling import Retelling
from gateway.cluster.routing import Router
from gateway.cluster.slots import slot_of
from gateway.cluster.standing import Standing
from gateway.cluster.table_looks import TableLooks
from gateway.cluster.versions import OWN, understood, versions_of
from gateway.cluster.watch import Watch
from gateway.config import Settings
from gateway.edge.hub import Hub
from gateway.owner.owner import Owner
from store.coordination import Coordination
from store.interface import Store, Unavailable

LEAVE_CHECK_S: Final = 0.05
"""Seconds between two looks at whether all slots are handed over while draining."""

LEASE_RELEASE_MAX_S: Final = 5.0
"""Seconds that giving the lease up may take at the end; if it takes longer the others find out by watching."""

log = structlog.get_logger(__name__)


class Slots:
    """Implements ``gateway.cluster.ownership.SlotHolder`` with an owner, what hands on what it says, and the links."""

    def __init__(
        self,
        owner: Callable[[], Owner],
        handing_on: Callable[[], HandingOn],
        links: Callable[[], Links],
        on_gap: Callable[[], None],
    ) -> None:
        """``on_gap``: called when parcels count as lost."""
        self._owner = owner
        self._handing_on = handing_on
        self._links = links
        self._on_gap = on_gap

    async def release(self, slots: Collection[int]) -> None:
        """See SlotHolder.release. The next owner's deliveries and acknowledgements come behind all of this one's."""
        chosen = frozenset(slots)
        await self._owner().release(lambda conversation_id: slot_of(conversation_id) in chosen)
        await self._handing_on().handed_on(lambda conversation_id: slot_of(conversation_id) in chosen)

    async def reach(self, heirs: Collection[str]) -> Collection[str]:
        """See SlotHolder.reach. So what an heir says comes behind at its own connections, too.

        At those of other nodes it does because each of these reads one inbox. The heir may find itself named in the
        table before it has read in its own what was delivered last.
        """
        return await self._links().reach(heirs)

    async def read_up(self) -> None:
        """See SlotHolder.read_up."""
        if not await self._links().read_up():
            self._on_gap()

    def drop_all(self) -> None:
        """See SlotHolder.drop_all."""
        self._owner().drop_all()


class Cluster:
    """What a node has besides when it is one of several.

    Attributes:
        owner: the owner for the slots of this node.
        router: what the edge submits commands to.
        own_heads: the heads of the conversations that this node owns.
        retelling: tells receipts again that other nodes may have missed.
        standing: says how conversations stand, whoever owns them.
        items_dropped: items of parcels that this program did not understand, ever.
        on_gap: called when parcels got lost, or heads turned out not to count, so that sessions have to resync.
        on_fenced: called once this incarnation was found dead.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        coordination: Coordination,
        transport: Transport,
        directory: Directory,
        edge: EdgePort,
        lease: Lease,
        watch: Watch,
        *,
        clock_us: Callable[[], int],
    ) -> None:
        self.own_heads = OwnHeads()
        self.lease = lease
        self.watch = watch
        self.directory = directory
        self.transport = transport
        self.items_dropped = 0
        self.on_gap: Callable[[], None] = lambda: None
        self.on_fenced: Callable[[], None] = lambda: None
        self._edge = edge
        self._coordination = coordination
        self._renew_s = settings.lease_renew_s
        self._strangers: set[str] = set()
        holder = Slots(lambda: self.owner, lambda: self.handing_on, lambda: self.links, self._may_have_missed)
        self.ownership = SlotOwnership(coordination, lease, watch, holder)
        self.links = Links(lease.incarnation, transport, watch)
        self.handing_on = HandingOn(lease.incarnation, edge, self.links, directory, watch)
        self.elsewhere = Elsewhere(
            lease.incarnation, directory, watch, alone=lambda: self.links.alone, away=lambda: transport.away
        )
        speaking = witnessed(self.ownership, lease.incarnation, settings.history_file)
        self.owner = Owner(settings, store, self.handing_on, speaking, clock_us)
        self.retelling = Retelling(self.owner.tell_receipt_again, lambda: transport.away)
        self.handing_on.on_receipt = self.retelling.note
        self.handing_on.receipts_everywhere = lambda: self.retelling.everywhere
        self.router = Router(
            lease.incarnation, self.ownership, self.links, self.owner, edge, settings.pending_sends_max
        )
        self.standing = Standing(self.own_heads, self.ownership, TableLooks(coordination.slot_table), self.router)
        self.owner.on_loaded = self.handing_on.on_delivery = self._note_head
        self.links.on_heads_void = lambda _sender: self.on_gap()
        self.handing_on.owner = self.owner
        self.handing_on.give_back = self.router.take_back
        self.handing_on.refusal = self.router.refusal
        self.links.received = self._received
        self.links.on_gap.append(lambda _sender: self.on_gap())
        self.links.on_standstill = lambda _seconds: self.on_gap()
        self.ownership.on_change.append(self._tell_others)
        self.ownership.on_removed.append(transport.forget)
        watch.on_change.append(self._tell_of_strangers)
        watch.on_change.append(self.elsewhere.nodes_changed)
        watch.on_change += [self.router.reroute, lambda: self.handing_on.rounds.forget(watch.live.keys())]

    @property
    def incarnation(self) -> str:
        """The name of this life of the node."""
        return self.lease.incarnation

    def share_heads(self, heads: Heads) -> None:
        """Let other nodes know the heads of this one's conversations, and this one theirs; call it before ``run``."""
        self.standing.shared = heads
        self.links.before_flush.append(heads.flush)
        self.links.heads_from = lambda: heads.counts_from
        heads.on_void = self.links.send_empty

        def somebody_came_or_went() -> None:
            if len(self.watch.live) > 1:
                heads.begin()
            else:
                heads.end()

        self.watch.on_change.append(somebody_came_or_went)

    def _note_head(self, conversation_id: str) -> None:
        known = self.owner.head(conversation_id)
        if known is not None:
            self.own_heads.note(conversation_id, *known)

    def follow(self, hub: Hub) -> None:
        """Keep the session directory up to date with who is connected here."""
        arrived, departed = hub.on_arrival, hub.on_departure

        def arrive(user: str) -> None:
            self.directory.arrive(user)
            arrived(user)

        def leave(user: str) -> None:
            self.directory.leave(user)
            departed(user)

        hub.on_arrival, hub.on_departure = arrive, leave

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled, or until this incarnation is found dead; started when clients may come.

        The owner, which lives longer, and the transport and directory, which have to be there before, are not run here.

        Raises:
            CannotJoin: a node that lives is in the way of this one.

        A cancellation leaves the lease to be watched: call ``leave`` and ``release`` before.
        """
        if not self.lease.taken:
            await wait_for_place(self._coordination, self.lease.record, self._renew_s)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._keep_lease, nursery.cancel_scope)
            await nursery.start(self._look_out)
            await nursery.start(self.ownership.run)
            nursery.start_soon(self.links.run)
            nursery.start_soon(self.router.run)
            nursery.start_soon(self.elsewhere.run)
            nursery.start_soon(self.retelling.run)
            await self.links.introduce()
            task_status.started()

    async def _keep_lease(
        self, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            await self.lease.run(task_status=task_status)
        except Fenced:
            self.ownership.fence()
            self.on_fenced()
            scope.cancel()

    async def _look_out(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch the others; if this node turns out to be in their way, it owns nothing any more, and they know."""
        try:
            await self.watch.run(task_status=task_status)
        except CannotJoin:
            self.ownership.fence()
            await self.release()
            raise

    def _tell_of_strangers(self) -> None:
        """Log who lives here and is not understood, once."""
        for incarnation, row in self.watch.live.items():
            if incarnation not in self._strangers and not understood(row.protocol):
                self._strangers.add(incarnation)
                log.error(
                    "a node of a tidegate that this one does not understand has joined: it gets no slots; stop it",
                    node=row.node, address=row.address, speaks=str(versions_of(row.protocol)), here=str(OWN),
                )  # fmt: skip

    async def leave(self) -> None:
        """Hand all slots over while everything else goes on; returns when that is done, or nobody can take them.

        Give it a deadline. Cancelling leaves some handed over.
        """
        self.lease.drain()
        self.ownership.wake()
        asked_s = self.watch.now_s()
        self.watch.wake()  # an heir may have come since the last look
        while self.watch.looked_s < asked_s or (self.ownership.named and self.has_heirs()):  # noqa: ASYNC110 - looked at while draining only
            await trio.sleep(LEAVE_CHECK_S)

    def has_heirs(self) -> bool:
        """Whether other nodes could take this one's slots."""
        return any(
            row.incarnation != self.incarnation and self.ownership.may_own(row) for row in self.watch.live.values()
        )

    async def release(self) -> None:
        """Give the lease up, so that others need not wait for it. For a node that acknowledges nothing any more."""
        with trio.move_on_after(LEASE_RELEASE_MAX_S, shield=True) as patience:
            try:
                await self.lease.release()
            except Unavailable as error:
                log.warning("lease not given up: the others wait for its end", error=str(error))
        if patience.cancelled_caught:
            log.warning(
                "lease not given up: the others wait for its end", error=f"no answer within {LEASE_RELEASE_MAX_S:g} s"
            )

    def _tell_others(self) -> None:
        """What this node has written into the slot table, the others want to know before they look again."""
        version = self.ownership.table.version
        if self.ownership.wrote_version == version:
            self.links.send_all(TableChanged(version))

    def _may_have_missed(self) -> None:
        """What the dead delivered here last is not read, or not in time."""
        self.on_gap()

    def _received(self, sender: str, items: Sequence[Item]) -> None:
        with self._edge.together():
            for item in items:
                try:
                    self._take(sender, item)
                except NOT_UNDERSTOOD as error:
                    self.items_dropped += 1
                    log.error(
                        "item of a parcel not understood", sender=sender, item=type(item).__name__, error=str(error)
                    )
                    if type(item) is not Forwarded:  # which nobody here was to hear of
                        self.on_gap()

    def _take(self, sender: str, item: Item) -> None:
        """Do what an item asks for. Raises NOT_UNDERSTOOD."""
        match item:
            case Forwarded():
                self.handing_on.forwarded(sender, item)
            case Answered():
                self.router.answered(item)
            case GivenBack():
                self.router.gave_back(item)
            case Delivered():
                if not 0 < len(item.entries) == len(item.sessions):
                    raise DecodeError(f"{len(item.entries)} entries of {len(item.sessions)} sessions")
                self._edge.deliver(
                    Delivery(
                        item.conversation_id,
                        item.recipients,
                        item.entries,
                        [self.router.origin_of(session) if session else None for session in item.sessions],
                    )
                )
            case Signalled():
                skip = self.router.origin_of(item.skip) if item.skip else None
                self._edge.signal(item.recipients, decode_push(item.push), item.conversation_id, skip)
            case LinkBroken():
                self.router.repeat(sender)
                self.retelling.soon()
            case TableChanged():
                if item.version > self.ownership.table.version:
                    self.ownership.wake()
            case _:
                raise AssertionError(f"{type(item).__name__} is for Links")
