"""What an operator is shown of a cluster, in good and in bad days."""

from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from gateway.cluster.overview import NoAnswer, Overview, name_of, overview
from gateway.cluster.overview_text import as_text
from gateway.cluster.questions import NodeStatus
from store.coordination import SLOTS, LeaseRecord, Slot, SlotTable

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
    leases: list[LeaseRecord],
    slots: SlotTable,
    answers: Mapping[str, NodeStatus | NoAnswer],
    still_s: Mapping[str, float] | None = None,
) -> Overview:
    return overview("tidegate", leases, slots, answers, still_s or {}, renew_s=2.0)


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
    ("leases", "slots", "answers", "still_s", "states", "concern"),
    [
        ([], table(), {}, {}, [], "no node is alive"),
        ([row(A, owns=False)], table(), {A: told()}, {}, ["serves"], "no living node has the owner role"),
        ([row(A)], table(), {A: told()}, {}, ["serves"], "1024 slots were never owned"),
        (
            [row(A), row(B, alive=False)], HALVES, {A: told()}, {}, ["serves", "dead"],
            "512 slots are still those of second",
        ),
        ([row(A)], HALVES, {A: told()}, {}, ["serves", "dead"], "512 slots are still those of second"),
        (
            BOTH, HALVES, {A: told(), B: NoAnswer("Connection refused")}, {}, ["serves", "unreached"],
            "second does not answer at s:1 (Connection refused), but renews its lease",
        ),
        (
            [row(A), row(B, nonce=2)], HALVES, {A: told(), B: NoAnswer("Connection refused")}, {}, ["serves", "joins"],
            "second does not answer at s:1 (Connection refused), and has joined just now",
        ),
        (
            BOTH, HALVES, {A: told(), B: NoAnswer("its cluster_secret is not the same", refused=True)}, {},
            ["serves", "refused"],
            "second refuses at s:1 to tell how it is (its cluster_secret is not the same), and renews its lease",
        ),
        (
            BOTH, HALVES, {A: told(unrenewed_s={B: 8.2}), B: NoAnswer("nothing answers")}, {B: 3.1},
            ["serves", "silent"],
            "second does not answer at s:1 (nothing answers) and does not renew its lease: it did so at least 8.2 s "
            "ago, and should every 2 s",
        ),
        (BOTH, HALVES, {A: told(), B: told(lease_s=0.0)}, {}, ["serves"] * 2, "second is not sure of its lease"),
        (
            BOTH, HALVES, {A: told(), B: told(version="0.2.0")}, {}, ["serves"] * 2,
            "nodes are of different versions (first 0.1.0, second 0.2.0)",
        ),
        (
            [row(A, datacenter="east"), row(B, datacenter="west"), row("third:z", datacenter="far", alive=False)],
            HALVES, {A: told(), B: told()}, {}, ["serves", "serves", "dead"],
            "nodes ask different datacenters of Cassandra (first east, second west)",
        ),
        (BOTH, HALVES, {A: told(), B: told(redis="Away")}, {}, ["serves"] * 2, "second does without Redis (Away)"),
        (
            [row(A), row(B, alive=False)], table((SLOTS, Slot(A, 1))), {A: told(redis="Away")}, {}, ["serves", "dead"],
            "first is alone and does not reach Redis (Away): that costs nothing as long as no other node comes",
        ),
        (
            [row(A), row(B, draining=True)], HALVES, {A: told(), B: told(draining=True)}, {}, ["serves", "drains"],
            "second drains: 512 slots and 1234 connections are left",
        ),
        (
            BOTH, table((1000, Slot(A, 1)), (24, Slot(A, 1, B))), {A: told(), B: told()}, {}, ["serves"] * 2,
            "first is handing over 24 slots",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    leases: list[LeaseRecord],
    slots: SlotTable,
    answers: dict[str, NodeStatus | NoAnswer],
    still_s: dict[str, float],
    states: list[str],
    concern: str,
) -> None:
    seen = found(leases, slots, answers, still_s)
    assert [view.state for view in seen.nodes] == states
    assert len(seen.concerns) == 1, seen.concerns
    assert concern in seen.concerns[0]
    assert f"To know:\n- {seen.concerns[0]}" in as_text(seen)


def test_one_node_that_was_given_no_redis_is_nothing_to_know() -> None:
    assert found([row(A)], table((SLOTS, Slot(A, 1))), {A: told(redis="there is no redis_url")}).concerns == []


def test_without_the_secret_nobody_is_asked_and_that_is_said() -> None:
    seen = found(BOTH, HALVES, {})
    assert [view.state for view in seen.nodes] == ["unasked", "unasked"]
    assert "give this command their cluster_secret" in as_text(seen)


def test_a_silent_node_does_not_count_as_alive_and_its_last_renewal_is_told() -> None:
    seen = found(BOTH, HALVES, {A: told(unrenewed_s={B: 8.2}), B: NoAnswer("nothing answers")}, {B: 3.1})
    assert [view.unrenewed_s for view in seen.nodes] == [None, 8.2]
    lines = as_text(seen).splitlines()
    assert lines[0].startswith("cluster in keyspace tidegate: 1 node alive, 1 silent, 1024 slots")
    assert "renewed 8.2 s ago" in lines[4]


def test_without_the_secret_a_silent_node_is_told_from_the_living() -> None:
    seen = found(BOTH, HALVES, {}, {B: 3.1})
    assert [view.state for view in seen.nodes] == ["unasked", "silent"]
    assert seen.concerns[0].startswith("second does not renew its lease: it did so at least 3.1 s ago")


def test_who_watched_a_lease_longest_is_believed() -> None:
    third = row("third:z")
    answers = {A: told(unrenewed_s={B: 0.4, "third:z": 1.0}), B: told(unrenewed_s={A: 0.7, "third:z": 1.6})}
    seen = found([*BOTH, third], HALVES, {**answers, "third:z": told()})
    assert [view.unrenewed_s for view in seen.nodes] == [0.7, 0.4, 1.6]


def test_when_all_are_silent_nobody_is_alive() -> None:
    seen = found(BOTH, HALVES, {A: NoAnswer("nothing answers"), B: NoAnswer("nothing answers")}, {A: 3.1, B: 3.1})
    assert seen.concerns[0].startswith("no node is alive: start one")
    assert as_text(seen).startswith("cluster in keyspace tidegate: 0 nodes alive, 2 silent, 1024 slots")
