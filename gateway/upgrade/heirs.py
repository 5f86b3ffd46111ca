"""What a successor takes over besides connections, seen from its side; ``ports`` has the other side."""

import socket
from collections.abc import Sequence
from typing import Protocol

import trio

from gateway.auth import Verifier
from gateway.config import Settings
from gateway.node import Node
from gateway.upgrade.channel import HandOverFailed
from gateway.upgrade.messages import Offer
from gateway.upgrade.ports import EmbeddedEstate, Estate
from store.embedded import EmbeddedStore, require_current


class Heir(Protocol):
    """The right to write, on its way to this process."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Get ready, and stay so until cancelled; started when nothing is missing but the estate itself.

        Raises:
            HandOverFailed: it will not come to that.
            StoreError: the store cannot be used.
        """

    def take(
        self, verifier: Verifier, sockets: Sequence[socket.socket], state: bytes, descriptors: Sequence[int]
    ) -> Node:
        """A node that has the estate, not yet serving. A plain call."""

    def taken(self) -> None:
        """The predecessor will do nothing any more, and its connections are the node's."""

    def estate(self) -> Estate:
        """What the node has now, for the next successor."""


class EmbeddedHeir:
    """Of the embedded store's lock."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store: EmbeddedStore | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See Heir.run."""
        require_current(self._settings.data_dir)
        task_status.started()
        await trio.lowlevel.checkpoint()

    def take(
        self, verifier: Verifier, sockets: Sequence[socket.socket], state: bytes, descriptors: Sequence[int]
    ) -> Node:
        """See Heir.take."""
        (lock,) = descriptors
        store = self._store = EmbeddedStore.inherit(self._settings.data_dir, lock)
        node = Node(self._settings, store, verifier, sockets)
        store.observe_commits(node.metrics.observe_commit)
        return node

    def taken(self) -> None:
        """See Heir.taken."""
        self._held.note_holder()

    def estate(self) -> Estate:
        """See Heir.estate."""
        return EmbeddedEstate(self._held)

    @property
    def _held(self) -> EmbeddedStore:
        assert self._store is not None, "taken"
        return self._store


def heir_of(offer: Offer, descriptors: Sequence[int], settings: Settings) -> Heir:
    """What this process takes over of what is offered. Raises HandOverFailed if it is not that which it is made for."""
    if settings.store != offer.store:
        raise HandOverFailed(f"the store is {offer.store} there and {settings.store} here: restart the node instead")
    if str(settings.data_dir.absolute()) != offer.data_dir:
        raise HandOverFailed(
            f"data_dir is {offer.data_dir} there and {settings.data_dir.absolute()} here: restart the node instead"
        )
    if offer.store == "embedded":
        return EmbeddedHeir(settings)
    from gateway.upgrade.in_cluster import ClusterHeir, same  # with the drivers, which others do without

    here = same(settings)
    for name, there in offer.same.items():
        if here.get(name) != there:
            raise HandOverFailed(f"{name} is {there} there and {here.get(name)} here: restart the node instead")
    return ClusterHeir(settings, offer.estate, descriptors)
