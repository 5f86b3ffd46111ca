"""What a node of a cluster answers to its operators (``gateway.cluster.questions``)."""

from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.cluster.questions import Answer, AskDrain, AskStatus, Declined, Drains, NodeStatus, decode_question, encode

if TYPE_CHECKING:
    from gateway.node import Node

log = structlog.get_logger(__name__)


def answer(node: "Node", encoded: bytes) -> bytes:
    """The encoded answer to an encoded question."""
    try:
        question = decode_question(encoded)
    except msgspec.DecodeError as error:
        return encode(Declined(f"the question is not understood, it may be of another version of tidegate ({error})"))
    if type(question) is AskStatus:
        return encode(status(node))
    assert type(question) is AskDrain
    return encode(_drain(node))


def status(node: "Node") -> NodeStatus:
    """How a node of a cluster is."""
    cluster, backend = node.cluster, node.backend
    assert cluster is not None
    assert backend is not None
    return NodeStatus(
        version=version("tidegate"),
        address=node.own_address,
        connections=node.table.count,
        users=len(node.hub.by_user),
        conversations=node.owner.conversations_loaded,
        slots=cluster.ownership.owned,
        lease_s=round(cluster.lease.remaining_s, 1),
        draining=node.draining,
        redis=backend.away_reason() if cluster.transport.away else "",
        waiting=node.owner.backlog.waiting + cluster.router.waiting,
        unrenewed_s={name: round(seconds, 1) for name, seconds in cluster.watch.unrenewed_s().items()},
    )


def _drain(node: "Node") -> Answer:
    cluster = node.cluster
    assert cluster is not None
    if node.draining:
        return Declined(
            f"it drains already: {cluster.ownership.owned} slots and {node.table.count} connections are left "
            "(tidegate cluster status shows more)"
        )
    if cluster.ownership.named and not cluster.has_heirs():
        return Declined(
            f"it is the only node that can own slots, and has {cluster.ownership.owned}: nobody could take its "
            "conversations over. Start another node first; or stop this one by SIGTERM, and the cluster with it"
        )
    log.info("an operator has this node drain")
    node.drain()
    return Drains(node.settings.drain_grace_s)
