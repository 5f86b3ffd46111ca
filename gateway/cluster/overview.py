"""The cluster as somebody outside sees it: leases and slots from the store, and what each node tells of itself."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from gateway.cluster.degradation import NO_REDIS_URL
from gateway.cluster.questions import NodeStatus
from store.coordination import SLOTS, LeaseRecord, SlotTable

YOUNG_RENEWALS: Final = 3
"""Renewals of a lease up to which a node that does not answer is said to join: some seconds."""


class NoAnswer(Struct, frozen=True):
    """A node was asked and did not tell how it is.

    Attributes:
        reason: why.
        refused: whether something answers there, and refuses.
    """

    reason: str
    refused: bool = False


class NodeView(Struct):
    """One incarnation.

    Attributes:
        node: its name.
        incarnation: which life of it.
        state: ``serves``; ``drains``; of those that renew their lease ``joins`` (since some seconds, and does not
            answer yet), ``unreached`` (it does not answer), ``refused`` (it answers, but not this command) and
            ``unasked`` (there is no secret to ask it with); ``silent`` (its lease is not renewed in time); ``dead``.
        address: where other nodes reach it.
        owns: whether it takes slots.
        datacenter: of Cassandra, whose replicas alone it asks; empty: those of all, or it does not say.
        slots: that the table says are its.
        going, coming: of these, those that it is handing over, and those that others are handing over to it.
        epochs: lowest and highest of its slots; 0 and 0 without any.
        trouble: why it does not answer; empty if it does, or was not asked.
        unrenewed_s: seconds since its last renewal, at least: since the first of those who tell saw it; None: nobody
            who tells watches it.
        told: what it tells of itself.
    """

    node: str
    incarnation: str
    state: str
    address: str
    owns: bool
    datacenter: str
    slots: int
    going: int
    coming: int
    epochs: tuple[int, int]
    trouble: str
    unrenewed_s: float | None
    told: NodeStatus | None


class Overview(Struct):
    """All of it.

    Attributes:
        keyspace: where the cluster keeps its data.
        table_version: changes of the slot table so far.
        slots: that there are.
        renew_s: after how many seconds leases are renewed.
        nodes: by name, the dead ones last.
        unowned: slots that nobody ever owned.
        concerns: what an operator should know, in sentences; empty: everything is in order.
    """

    keyspace: str
    table_version: int
    slots: int
    renew_s: float
    nodes: list[NodeView]
    unowned: int
    concerns: list[str]


def overview(
    keyspace: str,
    leases: Sequence[LeaseRecord],
    table: SlotTable,
    answers: Mapping[str, NodeStatus | NoAnswer],
    still_s: Mapping[str, float],
    renew_s: float,
) -> Overview:
    """Put together what was found.

    Args:
        keyspace: to be shown.
        leases: all of them.
        table: all slots.
        answers: what living nodes tell, or why they do not; empty if none was asked.
        still_s: who was watched and did not renew, and for how many seconds: longer than it may take.
        renew_s: after how many seconds leases are renewed.
    """
    owners = Counter(slot.owner for slot in table.slots)
    going = Counter(slot.owner for slot in table.slots if slot.next_owner)
    coming = Counter(slot.next_owner for slot in table.slots if slot.next_owner)
    unrenewed_s = _unrenewed_s(answers, still_s)
    known = {row.incarnation for row in leases}
    forgotten = [owner for owner in owners if owner and owner not in known]
    rows = [*leases, *(LeaseRecord(each, name_of(each), 0, False, "", True, False, 0) for each in forgotten)]
    nodes = []
    for row in sorted(rows, key=lambda row: (not row.alive, row.node, row.incarnation)):
        epochs = [slot.epoch for slot in table.slots if slot.owner == row.incarnation]
        answer = answers.get(row.incarnation)
        nodes.append(
            NodeView(
                node=row.node,
                incarnation=row.incarnation,
                state=_state(row, answer, still=row.incarnation in still_s),
                address=row.address,
                owns=row.owns,
                datacenter=row.datacenter,
                slots=owners[row.incarnation],
                going=going[row.incarnation],
                coming=coming[row.incarnation],
                epochs=(min(epochs, default=0), max(epochs, default=0)),
                trouble=answer.reason if isinstance(answer, NoAnswer) else "",
                unrenewed_s=unrenewed_s.get(row.incarnation) if row.alive else None,
                told=answer if isinstance(answer, NodeStatus) else None,
            )
        )
    found = Overview(keyspace, table.version, SLOTS, renew_s, nodes, owners[""], [])
    found.concerns = [concern for say in _SAYINGS for concern in say(found)]
    return found


def name_of(incarnation: str) -> str:
    """The node's name in the name of a life of it."""
    return incarnation.rpartition(":")[0] or incarnation


def _state(row: LeaseRecord, answer: NodeStatus | NoAnswer | None, *, still: bool) -> str:
    if not row.alive:
        return "dead"
    if isinstance(answer, NodeStatus):
        return "drains" if row.draining or answer.draining else "serves"
    if still:
        return "silent"
    if answer is None:
        return "drains" if row.draining else "unasked"
    if answer.refused:
        return "refused"
    return "joins" if row.nonce <= YOUNG_RENEWALS else "unreached"


def _unrenewed_s(answers: Mapping[str, NodeStatus | NoAnswer], still_s: Mapping[str, float]) -> dict[str, float]:
    """Who watched longest saw the last renewal soonest."""
    longest = dict(still_s)
    for answer in answers.values():
        if isinstance(answer, NodeStatus):
            for incarnation, seconds in answer.unrenewed_s.items():
                longest[incarnation] = max(seconds, longest.get(incarnation, 0.0))
    return longest


GONE: Final = frozenset(("silent", "dead"))
"""States of nodes that nothing can be expected of."""


# --- What is to be said -----------------------------------------------------------------------------------------------


def _on_owners(found: Overview) -> list[str]:
    living = [view for view in found.nodes if view.state not in GONE]
    if not living:
        return ["no node is alive: start one; nothing that was acknowledged is lost"]
    if not any(view.owns for view in living):
        return ["no living node has the owner role: nothing can be sent; start one with --roles owner or both"]
    if found.unowned:
        return [f"{found.unowned} slots were never owned: the next look of a node that owns takes them, within seconds"]
    return []


def _on_the_dead(found: Overview) -> list[str]:
    return [
        f"{view.slots} slots are still those of {view.node}, which is dead: living nodes take them over within two "
        "seconds; if this stays so, their logs say why they do not"
        for view in found.nodes
        if view.state == "dead" and view.slots
    ]


def _on_moving_slots(found: Overview) -> list[str]:
    return [
        f"{view.node} is handing over {view.going} slots: that takes seconds; their commands wait meanwhile"
        for view in found.nodes
        if view.going
    ]


def _on_draining(found: Overview) -> list[str]:
    return [
        f"{view.node} drains: {view.slots} slots"
        + (f" and {view.told.connections} connections are left" if view.told else " are left")
        for view in found.nodes
        if view.state == "drains"
    ]


def _on_the_unreached(found: Overview) -> list[str]:
    concerns = []
    for view in found.nodes:
        where = f"{view.node} does not answer at {view.address} ({view.trouble})"
        if view.state == "unreached":
            concerns.append(
                f"{where}, but renews its lease: it lives; see that this machine, and the other nodes, reach that "
                "address"
            )
        elif view.state == "joins":
            concerns.append(f"{where}, and has joined just now: look again in some seconds")
        elif view.state == "refused":
            concerns.append(
                f"{view.node} refuses at {view.address} to tell how it is ({view.trouble}), and renews its lease: it "
                "lives; give this command the cluster_secret that the nodes have, and use the tidegate of their version"
            )
    return concerns


def _on_the_silent(found: Overview) -> list[str]:
    return [
        f"{view.node} "
        + (f"does not answer at {view.address} ({view.trouble}) and " if view.trouble else "")
        + f"does not renew its lease: it did so at least {view.unrenewed_s:.1f} s ago, and should every "
        f"{found.renew_s:g} s; the others mark it dead when that has lasted a whole lease, and take its slots over"
        for view in found.nodes
        if view.state == "silent"
    ]


def _on_leases(found: Overview) -> list[str]:
    return [
        f"{view.node} is not sure of its lease and acknowledges nothing: see whether it reaches Cassandra"
        for view in found.nodes
        if view.told is not None and view.owns and not view.told.lease_s
    ]


def _on_versions(found: Overview) -> list[str]:
    told = [f"{view.node} {view.told.version}" for view in found.nodes if view.told is not None]
    if len({each.rpartition(" ")[2] for each in told}) <= 1:
        return []
    return [f"nodes are of different versions ({', '.join(told)}): as it is in the midst of an upgrade, and only then"]


def _on_datacenters(found: Overview) -> list[str]:
    asking = [view for view in found.nodes if view.state != "dead" and view.datacenter]
    if len({view.datacenter for view in asking}) <= 1:
        return []
    each = ", ".join(f"{view.node} {view.datacenter}" for view in asking)
    return [
        f"nodes ask different datacenters of Cassandra ({each}): two of them could order one conversation; stop those "
        "that should not, and give all the same cassandra_datacenter"
    ]


def _on_redis(found: Overview) -> list[str]:
    several = sum(view.state != "dead" for view in found.nodes) > 1
    return [
        f"{view.node} does without Redis ({view.told.redis}): deliveries between nodes are slower, presence and "
        "typing pause, nothing is lost"
        for view in found.nodes
        if several and view.told is not None and view.told.redis
    ] or [
        f"{view.node} is alone and does not reach Redis ({view.told.redis}): that costs nothing as long as no other "
        "node comes; bring Redis back before you start one"
        for view in found.nodes
        if view.told is not None and view.told.redis not in ("", NO_REDIS_URL)
    ]


_SAYINGS: Final[Sequence[Callable[[Overview], list[str]]]] = (
    _on_owners,
    _on_the_dead,
    _on_leases,
    _on_datacenters,
    _on_the_unreached,
    _on_the_silent,
    _on_redis,
    _on_draining,
    _on_moving_slots,
    _on_versions,
)
