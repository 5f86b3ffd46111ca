"""A node's part of a cluster without its sockets, for tests of several nodes in one process on a virtual clock."""

from collections.abc import Callable

import trio

from gateway.cluster.cluster import Cluster
from gateway.cluster.lease import Lease
from gateway.cluster.ports import Directory, Transport
from gateway.cluster.slots import slot_of
from gateway.cluster.versions import OWN
from gateway.cluster.watch import Watch
from gateway.config import Settings
from gateway.owner.members import direct_id
from protocol.codec import decode_entry
from protocol.frames import Command, SendAck
from tests.fakes.coordination import MemoryCoordination
from tests.fakes.edge import FakeOrigin, RecordingEdge
from tests.fakes.memory_store import MemoryStore

LEASE_S = 10.0

Wires = Callable[[str, Watch], tuple[Transport, Directory]]
"""How an incarnation, given with its watch, reaches the others and finds users."""


def clock_us() -> int:
    """A time of day that goes with the virtual clock."""
    return 1_700_000_000_000_000 + int(trio.current_time() * 1_000_000)


def lease_of(
    coordination: MemoryCoordination,
    node: str,
    *,
    address: str = "",
    owns: bool = True,
    protocol: int = OWN.packed,
    incarnation: str = "",
    datacenter: str = "",
) -> Lease:
    """A lease of a new incarnation, as a node takes it, or of one that lived in another process."""
    lease = Lease(
        coordination, node=node, address=address or f"{node}:1", owns=owns, protocol=protocol, lease_s=LEASE_S,
        renew_s=2.0, clock=trio.current_time, incarnation=incarnation,
    )  # fmt: skip
    lease.asks(datacenter)
    return lease


def watch_of(coordination: MemoryCoordination, lease: Lease) -> Watch:
    """The look of that incarnation at the others."""
    return Watch(coordination, lease, lease_s=LEASE_S, clock=trio.current_time)


class ClusterPart:
    """A node's part of a cluster, with an edge that records."""

    def __init__(
        self,
        coordination: MemoryCoordination,
        store: MemoryStore,
        name: str,
        wires: Wires,
        *,
        settings: Settings | None = None,
        address: str = "",
        incarnation: str = "",
        edge: RecordingEdge | None = None,
    ) -> None:
        self.edge = edge or RecordingEdge()
        self.lease = lease_of(coordination, name, address=address, incarnation=incarnation)
        watch = watch_of(coordination, self.lease)
        transport, directory = wires(self.lease.incarnation, watch)
        self.cluster = Cluster(
            settings or Settings(), store, coordination, transport, directory, self.edge, self.lease, watch,
            clock_us=clock_us,
        )  # fmt: skip

    def submit(self, origin: FakeOrigin, command: Command) -> None:
        self.cluster.router.submit(origin, command)

    def acks(self, origin: FakeOrigin) -> list[int]:
        return [reply.id for reply in self.edge.replies_to(origin) if isinstance(reply, SendAck)]

    def bodies(self, user: str) -> list[str]:
        """The messages delivered here for a user, in order."""
        entries = [
            decode_entry(encoded)
            for delivery in self.edge.deliveries
            if user in delivery.recipients
            for encoded in delivery.entries
        ]
        return [entry.body for entry in entries if entry.client_msg_id.startswith("m")]


def conversation_owned_by(coordination: MemoryCoordination, incarnation: str, user: str) -> tuple[str, str]:
    """The direct conversation of ``user`` with somebody whose slot that incarnation owns; and who that is."""
    for number in range(10_000):
        peer = f"peer{number}"
        conversation_id = direct_id(user, peer)
        if coordination.table.slots[slot_of(conversation_id)].owner == incarnation:
            return conversation_id, peer
    raise AssertionError("no such conversation")
