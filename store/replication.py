"""Whether a keyspace's copies suffice for the consistency asked, with all of Cassandra alive and with a node away."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

LOCAL: Final = "LOCAL_QUORUM"
"""The consistency that asks one datacenter only."""


class Replication(Struct, frozen=True):
    """What is known of a keyspace's copies.

    Attributes:
        keyspace: its name.
        copies: replication factor by datacenter; the name is empty for SimpleStrategy, which knows no datacenters.
        nodes: Cassandra nodes by datacenter, alive or not.
    """

    keyspace: str
    copies: Mapping[str, int]
    nodes: Mapping[str, int]


class _Quorum(Struct, frozen=True):
    """Copies that are counted together: how many there are to be, there can be, and have to answer."""

    place: str
    factor: int
    nodes: int
    needed: int

    @property
    def spare(self) -> int:
        """Copies that may be away; negative when it cannot work at all."""
        return min(self.factor, self.nodes) - self.needed


def refusal(replication: Replication, consistency: str, datacenter: str) -> str:
    """Why this cannot work, and what to do; empty when it can.

    Args:
        replication: of the keyspace.
        consistency: LOCAL_QUORUM, QUORUM, EACH_QUORUM or ALL.
        datacenter: whose replicas are asked, as configured; empty: not configured.
    """
    copies, keyspace = replication.copies, f"keyspace {replication.keyspace!r}"
    if "" in copies and len(replication.nodes) > 1:
        return (
            f"{keyspace} has SimpleStrategy, which knows no datacenters, and Cassandra has several "
            f"({_listed(replication.nodes)}): give it NetworkTopologyStrategy with ALTER KEYSPACE"
        )
    if datacenter and "" not in copies and datacenter not in copies:
        return (
            f"{keyspace} has no replicas in datacenter {datacenter!r}: "
            "give it some with ALTER KEYSPACE, or set cassandra_datacenter"
        )
    if consistency == LOCAL and not datacenter and len(replication.nodes) > 1:
        return (
            f"cassandra_consistency is {LOCAL} and Cassandra has several datacenters ({_listed(replication.nodes)}): "
            "set cassandra_datacenter to one of them, the same on all nodes of tidegate, because what is agreed in one "
            "datacenter is not known in another at once; or set cassandra_consistency to QUORUM"
        )
    for quorum in _quorums(replication, consistency, datacenter):
        if quorum.spare < 0:
            return (
                f"{keyspace} has replication factor {quorum.factor} in {quorum.place}, which has {quorum.nodes} nodes; "
                f"{consistency} needs {quorum.needed}: add nodes, or lower the factor by ALTER KEYSPACE"
            )
    return ""


def doubts(replication: Replication, consistency: str, datacenter: str) -> list[str]:
    """What works and may be regretted; for a replication that is not refused."""
    found = [
        f"replication factor {quorum.factor} in {quorum.place} with {quorum.nodes} nodes; {consistency} needs "
        f"{quorum.needed} copies, so nothing can be sent while one Cassandra node is away: "
        "have three nodes and three copies, and ask for a quorum"
        for quorum in _quorums(replication, consistency, datacenter)
        if quorum.spare == 0
    ]
    elsewhere = sorted(set(replication.copies) - {datacenter})
    if consistency == LOCAL and datacenter and elsewhere and "" not in elsewhere:
        found.append(
            f"copies in other datacenters too ({', '.join(elsewhere)}): all nodes of tidegate have to have "
            f"cassandra_datacenter = {datacenter}; one that asks another datacenter is refused while one of these lives"
        )
    return found


def _quorums(replication: Replication, consistency: str, datacenter: str) -> list[_Quorum]:
    """Each of these has to be reached."""
    each = {
        place: (factor, replication.nodes.get(place, 0) if place else sum(replication.nodes.values()))
        for place, factor in replication.copies.items()
    }
    if consistency in (LOCAL, "EACH_QUORUM"):
        return [
            _Quorum(_named(place), factor, nodes, factor // 2 + 1)
            for place, (factor, nodes) in each.items()
            if consistency != LOCAL or not datacenter or place in ("", datacenter)
        ]
    factor = sum(factor for factor, _ in each.values())
    usable = sum(min(factor, nodes) for factor, nodes in each.values())
    place = _named(next(iter(each))) if len(each) == 1 else "all datacenters together"
    return [_Quorum(place, factor, usable, factor if consistency == "ALL" else factor // 2 + 1)]


def _named(place: str) -> str:
    return f"datacenter {place!r}" if place else "the whole cluster"


def _listed(names: Mapping[str, int]) -> str:
    return ", ".join(sorted(names))
