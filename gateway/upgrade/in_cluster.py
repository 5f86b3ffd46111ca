"""A node of a cluster as an estate: one incarnation, which lives on in another process. See ``cluster.succession``."""

import socket
from collections.abc import Sequence
from typing import Final

import trio
from msgspec import DecodeError, Struct
from msgspec.msgpack import Decoder, Encoder

from gateway.auth import Verifier
from gateway.cluster.backend import Backend
from gateway.cluster.joining import asks_elsewhere
from gateway.cluster.parcels import NODE_PROTOCOL
from gateway.cluster.succession import Forebear, Inheritance
from gateway.config import Settings
from gateway.node import Node
from gateway.upgrade.channel import HandOverFailed
from gateway.upgrade.ports import HAND_OVER_TIMEOUT_S, Estate

STORE_TIMEOUT_S: Final = 40.0
"""Seconds in which a successor must have reached Cassandra: below those that its predecessor waits for it."""

HINTS_TIMEOUT_S: Final = 5.0
"""Seconds after that in which it must have reached Redis, if its predecessor reaches it."""

LOOK_S: Final = 0.01
"""Seconds between two looks whether it has."""


class Told(Struct, array_like=True):
    """What a successor is told with the offer.

    Attributes:
        incarnation, address: whose life goes on, and where other nodes reach it.
        reached: whether other nodes reach it directly, by the socket that comes along.
        hints: whether Redis is there.
        datacenter: whose replicas alone are asked; empty: those of all, or a program that does not say.
    """

    incarnation: str
    address: str
    reached: bool
    hints: bool
    datacenter: str = ""


_encode: Final = Encoder().encode
_decode_told: Final = Decoder(Told).decode
_decode_inheritance: Final = Decoder(Inheritance).decode


def same(settings: Settings) -> dict[str, str]:
    """What must not differ between two processes that live under one incarnation."""
    return {
        "node_name": settings.node_name or socket.gethostname(),
        "roles": settings.roles,
        "cassandra_keyspace": settings.cassandra_keyspace,
        "lease_s": f"{settings.lease_s:g}",
        "advertise": settings.advertise or "(empty)",
        "redis_url": "given" if settings.redis_url else "(empty)",
        "cluster_secret": "given" if settings.cluster_secret else "(empty)",
        "the version of what nodes send each other": str(NODE_PROTOCOL),
    }


class ClusterEstate:
    """Implements ``gateway.upgrade.ports.Estate``."""

    kind = "cassandra"

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend
        self.stand_still_max_s = min(HAND_OVER_TIMEOUT_S, backend.succession.stand_still_max_s)

    def objection(self) -> str:
        """See Estate.objection."""
        return self._backend.succession.objection()

    def same(self) -> dict[str, str]:
        """See Estate.same."""
        return same(self._settings)

    def offer(self) -> tuple[bytes, list[int]]:
        """See Estate.offer."""
        backend = self._backend
        listening = [backend.peers.listening.fileno()] if backend.peers is not None else []
        told = Told(backend.incarnation, backend.address, bool(listening), backend.hints_known, backend.datacenter)
        return _encode(told), listening

    @property
    def busy(self) -> str:
        """See Estate.busy."""
        return self._backend.succession.busy

    def rest(self) -> None:
        """See Estate.rest."""
        self._backend.succession.rest()

    def resume(self) -> None:
        """See Estate.resume."""
        self._backend.succession.resume()

    def descriptors(self) -> list[int]:
        """None: they went with the offer."""
        return []

    def state(self) -> bytes:
        """See Estate.state."""
        return _encode(self._backend.succession.state())


class ClusterHeir:
    """Implements ``gateway.upgrade.heirs.Heir``: reaches the store and Redis before it has anything.

    Attributes:
        backend: what the node will stand on.
    """

    def __init__(self, settings: Settings, estate: bytes, descriptors: Sequence[int]) -> None:
        """Args: ``estate``, ``descriptors``: of the offer. Raises HandOverFailed if they cannot be understood."""
        try:
            self._told = _decode_told(estate)
        except DecodeError as error:
            raise HandOverFailed(f"what the node says of itself cannot be read ({error})") from None
        if len(descriptors) != self._told.reached:
            raise HandOverFailed(f"{len(descriptors)} descriptors came with the offer, not {int(self._told.reached)}")
        self._settings = settings
        self.backend = self._make_backend(descriptors)

    def _make_backend(self, descriptors: Sequence[int]) -> Backend:
        listening = None
        if descriptors:
            listening = socket.socket(fileno=descriptors[0])
            listening.setblocking(False)
        told = self._told
        name = self._settings.node_name or socket.gethostname()
        return Backend(self._settings, name, told.address, Forebear(told.incarnation, told.address, listening))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See Heir.run."""
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(STORE_TIMEOUT_S) as patience:
                await nursery.start(self.backend.run)
            if patience.cancelled_caught:
                raise HandOverFailed(f"Cassandra was not reached within {STORE_TIMEOUT_S:g} s; the log says why")
            self._check_datacenter()
            if self._told.hints:
                await self._reach_redis()
            task_status.started()

    def _check_datacenter(self) -> None:
        """Other replicas may not know yet what was agreed with those that the node has asked until now."""
        there, here = self._told.datacenter, self.backend.datacenter
        if asks_elsewhere(here, there):
            raise HandOverFailed(
                f"the node asks Cassandra's datacenter {there!r}, and this process would ask {here!r}: "
                f"set cassandra_datacenter to {there}, or stop all nodes and start them with another one"
            )

    async def _reach_redis(self) -> None:
        """Wait for it: what is sent from the first moment on must get to the other nodes as it did before."""
        with trio.move_on_after(HINTS_TIMEOUT_S) as patience:
            while not self.backend.hints_known:  # noqa: ASYNC110 - once in the life of a process
                await trio.sleep(LOOK_S)
        if patience.cancelled_caught:
            raise HandOverFailed(
                f"Redis, which the node reaches, was not reached within {HINTS_TIMEOUT_S:g} s: see redis_url"
            )

    def take(
        self, verifier: Verifier, sockets: Sequence[socket.socket], state: bytes, descriptors: Sequence[int]
    ) -> Node:
        """See Heir.take."""
        node = Node(self._settings, self.backend.store, verifier, sockets, self.backend)
        try:
            self.backend.succession.restore(_decode_inheritance(state))
        except DecodeError as error:
            raise HandOverFailed(f"what the node leaves cannot be read ({error})") from None
        return node

    def taken(self) -> None:
        """See Heir.taken. Nothing names a process."""
        self.backend.succession.go_on()

    def estate(self) -> Estate:
        """See Heir.estate."""
        return ClusterEstate(self._settings, self.backend)
