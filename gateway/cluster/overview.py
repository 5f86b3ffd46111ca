"""The cluster as somebody outside sees it: leases and slots from the store, and what each node tells of itself."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import trio
from msgspec import Struct

from gateway.cluster.questions import Asking, AskStatus, Declined, NodeStatus, NotAnswered
from store.coordination import SLOTS, Coordination, LeaseRecord, SlotTable

RENEWAL_MARGIN_S: Final = 1.0
"""Seconds beyond the time from one renewal to the next after which a node that does not answer is looked at again."""


class NodeView(Struct):
    """One incarnation.

    Attributes:
        node: its name.
        incarnation: which life of it.
        state: ``serves``, ``drains``, ``unreached`` (it renews its lease and does not answer), ``silent`` (neither),
            ``unasked`` (there is no secret to ask it with) or ``dead``.
        address: where other nodes reach it.
        owns: whether it takes slots.
        datacenter: of Cassandra, whose replicas alone it asks; empty: those of all, or it does not say.
        slots: that the table says are its.
        going, coming: of these, those that it is handing over, and those that others are handing over to it.
        epochs: lowest and highest of its slots; 0 and 0 without any.
        trouble: why it does not answer; empty if it does.
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
    told: NodeStatus | None


class Overview(Struct):
    """All of it.

    Attributes:
        keyspace: where the cluster keeps its data.
        table_version: changes of the slot table so far.
        slots: that there are.
        nodes: by name, the dead ones last.
        unowned: slots that nobody ever owned.
        concerns: what an operator should know, in sentences; empty: everything is in order.
    """

    keyspace: str
    table_version: int
    slots: int
    nodes: list[NodeView]
    unowned: int
    concerns: list[str]


class Observer:
    """Looks at a cluster from outside."""

    def __init__(self, coordination: Coordination, keyspace: str, key: bytes | None, renew_s: float) -> None:
        """Describe it.

        Args:
            coordination: where leases and slots are.
            keyspace: its name, to be shown.
            key: of the cluster's secret; None: nodes are not asked.
            renew_s: how often nodes renew their leases, seconds.
        """
        self._coordination = coordination
        self._keyspace = keyspace
        self._key = key
        self._renew_s = renew_s

    async def look(self) -> Overview:
        """How things are now. Takes some seconds when a node does not answer. Raises Unavailable."""
        leases = await self._coordination.leases()
        answers: dict[str, NodeStatus | str] = {}
        if self._key is not None:
            async with trio.open_nursery() as nursery:
                for row in leases:
                    if row.alive:
                        nursery.start_soon(self._ask, row, self._key, answers)
        renewing: Collection[str] = ()
        if any(isinstance(answer, str) for answer in answers.values()):
            await trio.sleep(self._renew_s + RENEWAL_MARGIN_S)
            before, leases = {row.incarnation: row.nonce for row in leases}, await self._coordination.leases()
            renewing = [row.incarnation for row in leases if row.nonce != before.get(row.incarnation)]
        return overview(self._keyspace, leases, await self._coordination.slot_table(), answers, renewing)

    @staticmethod
    async def _ask(row: LeaseRecord, key: bytes, answers: dict[str, NodeStatus | str]) -> None:
        try:
            async with Asking(row.address, key, row.incarnation) as asking:
                answer = await asking.ask(AskStatus())
        except NotAnswered as error:
            answers[row.incarnation] = str(error)
        else:
            declined = answer.reason if isinstance(answer, Declined) else "its answer is to another question"
            answers[row.incarnation] = answer if isinstance(answer, NodeStatus) else declined


def overview(
    keyspace: str,
    leases: Sequence[LeaseRecord],
    table: SlotTable,
    answers: Mapping[str, NodeStatus | str],
    renewing: Collection[str],
) -> Overview:
    """Put together what was found.

    Args:
        keyspace: to be shown.
        leases: all of them.
        table: all slots.
        answers: what living nodes tell, or why they do not; empty if none was asked.
        renewing: of those that do not, the incarnations that renew their leases.
    """
    owners = Counter(slot.owner for slot in table.slots)
    going = Counter(slot.owner for slot in table.slots if slot.next_owner)
    coming = Counter(slot.next_owner for slot in table.slots if slot.next_owner)
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
                state=_state(row, answer, renewing),
                address=row.address,
                owns=row.owns,
                datacenter=row.datacenter,
                slots=owners[row.incarnation],
                going=going[row.incarnation],
                coming=coming[row.incarnation],
                epochs=(min(epochs, default=0), max(epochs, default=0)),
                trouble=answer if isinstance(answer, str) else "",
                told=answer if isinstance(answer, NodeStatus) else None,
            )
        )
    found = Overview(keyspace, table.version, SLOTS, nodes, owners[""], [])
    found.concerns = [concern for say in _SAYINGS for concern in say(found)]
    return found


def name_of(incarnation: str) -> str:
    """The node's name in the name of a life of it."""
    return incarnation.rpartition(":")[0] or incarnation


def _state(row: LeaseRecord, answer: NodeStatus | str | None, renewing: Collection[str]) -> str:
    if not row.alive:
        return "dead"
    if isinstance(answer, str):
        return "unreached" if row.incarnation in renewing else "silent"
    if row.draining or (answer is not None and answer.draining):
        return "drains"
    return "serves" if answer is not None else "unasked"


# --- What is to be said -----------------------------------------------------------------------------------------------


def _on_owners(found: Overview) -> list[str]:
    living = [view for view in found.nodes if view.state != "dead"]
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
                "address, and that cluster_secret is the same"
            )
        elif view.state == "silent":
            concerns.append(
                f"{where} and does not renew its lease: the others mark it dead when that has lasted a whole lease, "
                "and take its slots over"
            )
    return concerns


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
    ]


_SAYINGS: Final[Sequence[Callable[[Overview], list[str]]]] = (
    _on_owners,
    _on_the_dead,
    _on_leases,
    _on_datacenters,
    _on_the_unreached,
    _on_redis,
    _on_draining,
    _on_moving_slots,
    _on_versions,
)
