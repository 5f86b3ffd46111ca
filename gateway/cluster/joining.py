"""Who may join a cluster: nobody with a living node's name, whom it does not understand, or who asks other replicas.

That is found out before a node takes a lease, so that a mistake disturbs nobody: no slot moves because of it. Two that
begin at the same moment do not see each other there; ``Watch`` goes on looking.
"""

from typing import Final

import structlog
import trio

from gateway.cluster.versions import versions_of
from store.coordination import Coordination, LeaseRecord
from store.interface import Unavailable
from store.recurring import Recurring

RENEWALS_OF_THE_LIVING: Final = 2
"""Renewals to be seen before somebody surely lives. One can be the last of a node that was killed, arriving late; no
second one can, because a renewal names the one before it, which that node would have to know of."""

PATIENCE_RENEWALS: Final = RENEWALS_OF_THE_LIVING + 0.5
"""Renewals' time that somebody who may live is looked at: whoever lives has renewed that often by then."""

LOOK_S: Final = 0.25
"""Seconds between two looks."""

log = structlog.get_logger(__name__)


class CannotJoin(Exception):
    """This node cannot live beside another one; the message says why, and what to do."""


class NameTaken(CannotJoin):
    """Another node with this node's name is running."""


class VersionsApart(CannotJoin):
    """A living node and this one do not understand each other."""


class DatacentersApart(CannotJoin):
    """A living node agrees with the replicas of another datacenter than this one would."""


def asks_elsewhere(own: str, other: str) -> bool:
    """Whether two nodes ask the replicas of different datacenters: those given, empty where nothing is said of it.

    What one of them agrees with its replicas, leases and slots included, the other learns late or not at all.
    """
    return bool(own and other) and own != other


def conflict(own: LeaseRecord, other: LeaseRecord) -> CannotJoin | None:
    """Why two nodes cannot live beside each other, if both are alive."""
    if other.node == own.node:
        return NameTaken(
            f"a node named {own.node!r} is running already at {other.address}: names have to differ; "
            "give this one another with --node-name"
        )
    here, there = versions_of(own.protocol), versions_of(other.protocol)
    if not here.common(there):
        newer = there.newest > here.newest
        remedy = (
            "start this node with a tidegate as new as the others"
            if newer
            else "upgrade the others over a tidegate that speaks both, or stop them all before you start this one"
        )
        return VersionsApart(
            f"node {other.node!r} at {other.address} is of {'a newer' if newer else 'an older'} tidegate: it speaks "
            f"version {there} of the protocol between nodes, this one {here}; {remedy}"
        )
    if asks_elsewhere(own.datacenter, other.datacenter):
        return DatacentersApart(
            f"node {other.node!r} at {other.address} asks Cassandra's datacenter {other.datacenter!r}, this one "
            f"{own.datacenter!r}: both could order one conversation, because what is agreed in one datacenter is not "
            f"known in the other at once; set cassandra_datacenter to {other.datacenter} here, or stop all nodes "
            "before you start them with another one"
        )
    return None


async def wait_for_place(coordination: Coordination, own: LeaseRecord, renew_s: float) -> None:
    """Return as soon as nobody who may live stands in the way of a new node. Cancelling is safe.

    Whoever may be in the way is looked at until it has renewed, or has not for so long that it is dead: a new life of
    a node that was killed waits that long, in which its slots could not be had anyway.

    Args:
        coordination: where the leases are; waited for while it is unavailable.
        own: the lease that this node would take.
        renew_s: how often nodes renew, seconds.

    Raises CannotJoin: somebody who lives stands in the way.
    """
    seen: dict[str, tuple[int, int]] = {}
    ends_s: float | None = None
    absence = Recurring("waiting for the store, to see who is there", "store is there, to see who is")
    while True:
        try:
            rows = await coordination.leases()
        except Unavailable as error:
            absence.came(error=str(error))
            await trio.sleep(renew_s)
            continue
        absence.over()
        now_s = trio.current_time()
        in_the_way = [row for row in rows if row.alive and row.incarnation != own.incarnation and conflict(own, row)]
        for row in in_the_way:
            nonce, renewals = seen.get(row.incarnation, (row.nonce, 0))
            seen[row.incarnation] = row.nonce, renewals + (row.nonce != nonce)
            if seen[row.incarnation][1] >= RENEWALS_OF_THE_LIVING and (reason := conflict(own, row)):
                raise reason
        if not in_the_way or (ends_s is not None and now_s >= ends_s):
            return
        if ends_s is None:
            ends_s = now_s + renew_s * PATIENCE_RENEWALS
            log.info("looking whether a node in the way is alive", incarnations=sorted(seen))
        await trio.sleep(LOOK_S)
