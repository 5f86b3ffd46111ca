"""What an operator is shown of a cluster, in good and in bad days."""

from collections.abc import Collection, Mapping

import pytest
import trio
from msgspec.structs import replace

from gateway.cluster.overview import RENEWAL_MARGIN_S, Observer, Overview, name_of, overview
from gateway.cluster.overview_text import as_text
from gateway.cluster.peer_handshake import key_of
from gateway.cluster.peers import Peers, listen_for_peers
from gateway.cluster.questions import NodeStatus, encode
from store.coordination import SLOTS, LeaseRecord, Slot, SlotTable
from tests.fakes.coordination import MemoryCoordination

KEY = key_of("a secret that all nodes of this cluster have")
A, B = "first:x", "second:y"


def row(incarnation: str, **changes: object) -> LeaseRecord:
    record = LeaseRecord(incarnation, name_of(incarnation), 5, True, f"{incarnation[0]}:1", True, False, 1)
    return replace(record, **changes)


def told(**changes: object) -> NodeStatus:
    return replace(NodeStatus("0.1.0", "http://x:1", 1234, 1000, 77, 512, 7.5, False, "", 0), **changes)


def table(*runs: tuple[int, Slot], version: int = 14) -> SlotTable:
    slots = [slot for count, slot in runs for _ in range(count)]
    return SlotTable(version, (*slots, *[Slot()] * (SLOTS - len(slots))))


HALVES = table((500, Slot(A, 1)), (12, Slot(A, 3)), (512, Slot(B, 2)))
BOTH = [row(A), row(B)]


def found(
    leases: list[LeaseRecord], slots: SlotTable, answers: Mapping[str, NodeStatus | str], renewing: Collection[str] = ()
) -> Overview:
    return overview("tidegate", leases, slots, answers, renewing)


def test_everything_in_order() -> None:
    text = as_text(found(BOTH, HALVES, {A: told(), B: told(conversations=8)}))
    assert text.splitlines() == [
        "cluster in keyspace tidegate: 2 nodes alive, 1024 slots, their table at version 14",
        "",
        "node    state   slots  epochs  conversations  connections  lease            reached at",
        "first   serves    512  1 to 3             77        1,234  valid for 7.5 s  f:1",
        "second  serves    512  2                   8        1,234  valid for 7.5 s  s:1",
        "",
        "Everything is in order.",
    ]


@pytest.mark.parametrize(
    ("leases", "slots", "answers", "renewing", "states", "concern"),
    [
        ([], table(), {}, (), [], "no node is alive"),
        ([row(A, owns=False)], table(), {A: told()}, (), ["serves"], "no living node has the owner role"),
        ([row(A)], table(), {A: told()}, (), ["serves"], "1024 slots were never owned"),
        (
            [row(A), row(B, alive=False)], HALVES, {A: told()}, (), ["serves", "dead"],
            "512 slots are still those of second",
        ),
        ([row(A)], HALVES, {A: told()}, (), ["serves", "dead"], "512 slots are still those of second"),
        (BOTH, HALVES, {A: told(), B: "Connection refused"}, (B,), ["serves", "unreached"], "but renews its lease"),
        (BOTH, HALVES, {A: told(), B: "nothing answers"}, (), ["serves", "silent"], "does not renew its lease"),
        (BOTH, HALVES, {A: told(), B: told(lease_s=0.0)}, (), ["serves"] * 2, "second is not sure of its lease"),
        (
            BOTH, HALVES, {A: told(), B: told(version="0.2.0")}, (), ["serves"] * 2,
            "nodes are of different versions (first 0.1.0, second 0.2.0)",
        ),
        (
            [row(A, datacenter="east"), row(B, datacenter="west"), row("third:z", datacenter="far", alive=False)],
            HALVES, {A: told(), B: told()}, (), ["serves", "serves", "dead"],
            "nodes ask different datacenters of Cassandra (first east, second west)",
        ),
        (BOTH, HALVES, {A: told(), B: told(redis="Away")}, (), ["serves"] * 2, "second does without Redis (Away)"),
        (
            [row(A), row(B, draining=True)], HALVES, {A: told(), B: told(draining=True)}, (), ["serves", "drains"],
            "second drains: 512 slots and 1234 connections are left",
        ),
        (
            BOTH, table((1000, Slot(A, 1)), (24, Slot(A, 1, B))), {A: told(), B: told()}, (), ["serves"] * 2,
            "first is handing over 24 slots",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    leases: list[LeaseRecord],
    slots: SlotTable,
    answers: dict[str, NodeStatus | str],
    renewing: Collection[str],
    states: list[str],
    concern: str,
) -> None:
    seen = found(leases, slots, answers, renewing)
    assert [view.state for view in seen.nodes] == states
    assert len(seen.concerns) == 1, seen.concerns
    assert concern in seen.concerns[0]
    assert f"To know:\n- {seen.concerns[0]}" in as_text(seen)


def test_one_node_without_redis_is_nothing_to_know() -> None:
    assert found([row(A)], table((SLOTS, Slot(A, 1))), {A: told(redis="there is no redis_url")}).concerns == []


def test_without_the_secret_nobody_is_asked_and_that_is_said() -> None:
    seen = found(BOTH, HALVES, {})
    assert [view.state for view in seen.nodes] == ["unasked", "unasked"]
    assert "give this command their cluster_secret" in as_text(seen)


async def test_living_nodes_are_asked_and_a_silent_one_is_watched(nursery: trio.Nursery) -> None:
    listening = listen_for_peers("127.0.0.1", 0)
    peers = Peers(A, KEY, listening, dict)
    peers.answer = lambda _question: encode(told())
    await nursery.start(peers.run)
    closed = listen_for_peers("127.0.0.1", 0)
    nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
    closed.close()
    coordination = Renewing()
    coordination.rows = {
        A: row(A, address=f"127.0.0.1:{listening.getsockname()[1]}"),
        B: row(B, address=nowhere),
        "third:z": row("third:z", address=nowhere),
        "dead:w": row("dead:w", alive=False),
    }
    coordination.table = HALVES
    seen = await Observer(coordination, "tidegate", KEY, renew_s=-RENEWAL_MARGIN_S).look()
    assert {view.node: view.state for view in seen.nodes} == {
        "first": "serves", "second": "unreached", "third": "silent", "dead": "dead"
    }  # fmt: skip
    assert seen.nodes[0].told == told()
    assert seen.nodes[1].trouble == "Connection refused"


class Renewing(MemoryCoordination):
    """The second node's lease is renewed between any two looks, which take no time."""

    def __init__(self) -> None:
        super().__init__(delay_s=0.0)

    async def leases(self) -> list[LeaseRecord]:
        rows = await super().leases()
        self.rows[B] = replace(self.rows[B], nonce=self.rows[B].nonce + 1)
        return rows
