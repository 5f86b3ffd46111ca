"""Having a node of a cluster drain, from outside, and following it until it has left."""

from collections.abc import Callable
from typing import Final

import trio

from gateway.cluster.overview import name_of
from gateway.cluster.questions import AskDrain, Asking, AskStatus, Declined, Drains, NodeStatus, NotAnswered
from store.coordination import Coordination, LeaseRecord

LOOK_S: Final = 0.5
"""Seconds between two looks at a node that drains."""

SAY_S: Final = 2.0
"""Seconds between two lines about its progress."""

MARGIN_S: Final = 15.0
"""Seconds beyond its grace period after which it should have ended: a lease, and giving it up."""


class NotDrained(Exception):
    """A node was not drained, or not to its end; the message says why, and what to do."""


async def drain_node(
    coordination: Coordination, key: bytes, name: str, keyspace: str, say: Callable[[str], None]
) -> None:
    """Have a node drain; returns when it has left the cluster.

    Args:
        coordination: where leases and slots are.
        key: of the cluster's secret.
        name: the node's name, or that of its incarnation.
        keyspace: where the cluster is, to be shown.
        say: told in sentences what goes on.

    Raises:
        NotDrained: the node is unknown, cannot be asked, declines, or does not end.
        Unavailable: leases cannot be read.

    A cancellation changes nothing: a node that was told to drain does so.
    """
    row = await _find(coordination, name, keyspace)
    try:
        async with Asking(row.address, key, row.incarnation) as asking:
            answer = await asking.ask(AskDrain())
            if not isinstance(answer, Drains):
                raise NotDrained(f"{row.node} does not drain: {_why(answer)}")
            say(f"{row.node} drains: it hands its slots over, closes its connections, and ends within "
                f"{answer.within_s:g} s")  # fmt: skip
            with trio.move_on_after(answer.within_s + MARGIN_S) as patience:
                await _follow(asking, row.node, say)
                await _wait_for_end(coordination, row)
    except NotAnswered as error:
        raise NotDrained(
            f"{row.node} cannot be asked at {row.address} ({error}): see that this machine reaches it and has the same "
            "cluster_secret; or send it SIGTERM where it runs, which does the same"
        ) from None
    if patience.cancelled_caught:
        raise NotDrained(
            f"{row.node} has not ended {MARGIN_S:g} s after its grace period of {answer.within_s:g} s: its log says "
            "more; kill -9 is safe, the others take over after a lease"
        )
    await _sum_up(coordination, row, say)


async def _find(coordination: Coordination, name: str, keyspace: str) -> LeaseRecord:
    """The living incarnation that is meant. Raises NotDrained, Unavailable."""
    rows = await coordination.leases()
    living = [row for row in rows if row.alive]
    found = [row for row in living if name in (row.node, row.incarnation)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(row.incarnation for row in found))
        raise NotDrained(f"{name} lives more than once: {names}; give one of these, or wait until one is marked dead")
    if any(name in (row.node, row.incarnation) for row in rows):
        raise NotDrained(f"{name} is dead already: there is nothing to drain")
    names = ", ".join(sorted(row.node for row in living)) or "none"
    raise NotDrained(f"there is no node {name} in the cluster in keyspace {keyspace}; alive: {names}")


def _why(answer: NodeStatus | Declined) -> str:
    return answer.reason if isinstance(answer, Declined) else "its answer is to another question"


async def _follow(asking: Asking, node: str, say: Callable[[str], None]) -> None:
    """Tell how far it is until it does not answer any more, which is at its end."""
    said, said_s = "", -SAY_S
    while True:
        try:
            status = await asking.ask(AskStatus())
        except NotAnswered:
            return
        if isinstance(status, NodeStatus):
            left = f"{node}: {status.slots:,} slots and {status.connections:,} connections are left"
            if left != said and trio.current_time() - said_s >= SAY_S:
                say(left)
                said, said_s = left, trio.current_time()
        await trio.sleep(LOOK_S)


async def _wait_for_end(coordination: Coordination, row: LeaseRecord) -> None:
    """Return when its lease is given up, or marked dead by others."""
    while any(row.incarnation == each.incarnation and each.alive for each in await coordination.leases()):  # noqa: ASYNC110
        await trio.sleep(LOOK_S)


async def _sum_up(coordination: Coordination, row: LeaseRecord, say: Callable[[str], None]) -> None:
    table = await coordination.slot_table()
    rest = sum(slot.owner == row.incarnation for slot in table.slots)
    if rest:
        say(f"{row.node} has left; {rest} slots that it could not hand over in time are taken over by the others now")
    else:
        owners = sorted({name_of(slot.owner) for slot in table.slots if slot.owner})
        say(f"{row.node} has left; all slots are owned by {', '.join(owners)}")
