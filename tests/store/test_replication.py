"""What is refused before a node starts on copies that cannot do, and what is only said."""

import re

import pytest

from store.replication import Replication, doubts, refusal

THREE = {"dc1": 3}
TWO_PLACES = {"dc1": 3, "dc2": 3}


def of(copies: dict[str, int], nodes: dict[str, int]) -> Replication:
    return Replication("chat", copies, nodes)


@pytest.mark.parametrize(
    ("copies", "nodes", "consistency", "datacenter", "says"),
    [
        (THREE, {"dc1": 1}, "LOCAL_QUORUM", "dc1", "in datacenter 'dc1', which has 1 nodes; LOCAL_QUORUM needs 2"),
        (THREE, {"dc1": 1}, "LOCAL_QUORUM", "", "needs 2"),
        (THREE, {"dc1": 2}, "ALL", "dc1", "ALL needs 3"),
        ({"dc1": 5}, {"dc1": 2}, "QUORUM", "", "QUORUM needs 3"),
        ({"": 3}, {"dc1": 1}, "LOCAL_QUORUM", "", "in the whole cluster, which has 1 nodes"),
        ({"": 3}, TWO_PLACES, "QUORUM", "", "SimpleStrategy, which knows no datacenters.*several \\(dc1, dc2\\)"),
        (THREE, TWO_PLACES, "LOCAL_QUORUM", "dc2", "no replicas in datacenter 'dc2'"),
        (THREE, TWO_PLACES, "LOCAL_QUORUM", "", "several datacenters \\(dc1, dc2\\): set cassandra_datacenter"),
        (TWO_PLACES, {"dc1": 3, "dc2": 1}, "EACH_QUORUM", "dc1", "in datacenter 'dc2', which has 1 nodes"),
        ({"dc1": 1, "dc2": 5}, {"dc1": 3, "dc2": 2}, "QUORUM", "", "all datacenters together.*3 nodes.*needs 4"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(
    copies: dict[str, int], nodes: dict[str, int], consistency: str, datacenter: str, says: str
) -> None:
    assert re.search(says, refusal(of(copies, nodes), consistency, datacenter))


@pytest.mark.parametrize(
    ("copies", "nodes", "consistency", "datacenter", "says"),
    [
        ({"dc1": 1}, {"dc1": 1}, "LOCAL_QUORUM", "", "factor 1 in datacenter 'dc1' with 1 nodes"),
        ({"dc1": 2}, {"dc1": 9}, "LOCAL_QUORUM", "dc1", "needs 2 copies"),
        (THREE, {"dc1": 2}, "LOCAL_QUORUM", "dc1", "while one Cassandra node is away"),
        (THREE, THREE, "ALL", "dc1", "ALL needs 3 copies"),
        (TWO_PLACES, TWO_PLACES, "LOCAL_QUORUM", "dc1", r"other datacenters too \(dc2\).*cassandra_datacenter = dc1"),
    ],
)
def test_what_works_and_may_be_regretted_is_said(
    copies: dict[str, int], nodes: dict[str, int], consistency: str, datacenter: str, says: str
) -> None:
    assert refusal(of(copies, nodes), consistency, datacenter) == ""
    (doubt,) = doubts(of(copies, nodes), consistency, datacenter)
    assert re.search(says, doubt)


@pytest.mark.parametrize(
    ("copies", "nodes", "consistency", "datacenter"),
    [
        (THREE, THREE, "LOCAL_QUORUM", ""),
        (THREE, {"dc1": 9}, "QUORUM", "dc1"),
        (THREE, TWO_PLACES, "LOCAL_QUORUM", "dc1"),
        (TWO_PLACES, TWO_PLACES, "QUORUM", ""),
        (TWO_PLACES, TWO_PLACES, "EACH_QUORUM", "dc2"),
        ({"": 3}, THREE, "LOCAL_QUORUM", "dc1"),
    ],
)
def test_what_survives_the_loss_of_a_node_is_fine(
    copies: dict[str, int], nodes: dict[str, int], consistency: str, datacenter: str
) -> None:
    assert refusal(of(copies, nodes), consistency, datacenter) == ""
    assert doubts(of(copies, nodes), consistency, datacenter) == []
