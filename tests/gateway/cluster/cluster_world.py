"""Several nodes' parts of a cluster over one store, coordination and network, on a virtual clock (MockClock)."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import trio

from gateway.cluster.ports import Directory, Transport
from gateway.cluster.slots import slot_of
from gateway.cluster.watch import Watch
from gateway.config import Settings
from gateway.owner.members import direct_id
from protocol.frames import ConversationKind, CreateConversation
from tests.fakes.coordination import MemoryCoordination
from tests.fakes.edge import FakeOrigin, RecordingEdge
from tests.fakes.memory_store import MemoryStore
from tests.fakes.network import Network, NodeConnection
from tests.gateway.cluster.cluster_parts import ClusterPart, conversation_owned_by

SHARED_S = 10.0
"""Seconds of the virtual clock after which slots are claimed and handed over."""


class NodePart(ClusterPart):
    """A node's part of the cluster in a world; cancelling its ``scope`` kills it."""

    def __init__(
        self,
        world: "World[Any]",
        name: str,
        *,
        address: str = "",
        incarnation: str = "",
        edge: RecordingEdge | None = None,
    ) -> None:
        self.world = world
        self.scope = trio.CancelScope()
        super().__init__(
            world.coordination, world.store, name, self.wires,
            settings=world.settings, address=address, incarnation=incarnation, edge=edge,
        )  # fmt: skip

    def wires(self, incarnation: str, _watch: Watch) -> tuple[Transport, Directory]:
        """How this node reaches the others and finds users."""
        self.connection = NodeConnection(self.world.network, incarnation)
        return self.connection, self.connection

    async def begin(self, nursery: trio.Nursery) -> None:
        """Start what else this node consists of, before it takes part in the cluster."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.connection.run)
                await nursery.start(self.cluster.owner.run)
                await self.begin(nursery)
                await nursery.start(self.cluster.run)
                task_status.started()


P = TypeVar("P", bound=NodePart)


class World(Generic[P]):
    """What nodes share, and the nodes."""

    def __init__(
        self,
        make: "Callable[[World[P], str], P]",
        *,
        store: MemoryStore | None = None,
        network: Network | None = None,
    ) -> None:
        """``make`` builds the node of a name, which ``start`` then runs."""
        self.make = make
        self.settings = Settings()
        self.coordination = MemoryCoordination()
        self.network = network or Network()
        self.store = store or MemoryStore()
        self.parts: dict[str, P] = {}
        self.nursery: trio.Nursery

    async def start(self, name: str) -> P:
        part = self.parts[name] = self.make(self, name)
        await self.nursery.start(part.run)
        return part

    def kill(self, part: P) -> None:
        """End a node with its inbox."""
        part.scope.cancel()
        self.network.inboxes.pop(part.lease.incarnation)

    def owner_of(self, conversation_id: str) -> P:
        owner = self.coordination.table.slots[slot_of(conversation_id)].owner
        return next(part for part in self.parts.values() if part.lease.incarnation == owner)

    def conversation_owned_by(self, part: P, user: str) -> tuple[str, str]:
        """A direct conversation of a user that this node owns, and whom it is with."""
        return conversation_owned_by(self.coordination, part.lease.incarnation, user)


@asynccontextmanager
async def running(world: World[P], *names: str) -> AsyncIterator[list[P]]:
    """Nodes of these names that share the slots."""
    async with trio.open_nursery() as nursery:
        world.nursery = nursery
        await nursery.start(world.store.run)
        parts = [await world.start(name) for name in names]
        await trio.sleep(SHARED_S)
        yield parts
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def world(*names: str) -> AsyncIterator[World[NodePart]]:
    """Plain nodes of these names that share the slots."""
    each = World(NodePart)
    async with running(each, *names):
        yield each


async def create(each: World[NodePart], part: NodePart, origin: FakeOrigin, peer: str) -> str:
    """A direct conversation that a user begins at a node; its id."""
    part.submit(origin, CreateConversation(1, ConversationKind.DIRECT, [peer], client_msg_id="create"))
    await trio.sleep(1)
    assert part.edge.replies_to(origin), "created"
    return direct_id(origin.user, peer)
