"""Faults of nodes, as far as they judge by themselves; the cluster is a stand-in."""

import random
from types import SimpleNamespace

import pytest
import trio

from bench.torture import node_faults
from bench.torture.cluster import DRAIN_GRACE_S
from bench.torture.trial import Scenario, Trial


class Cluster:
    """Nodes that can be killed, and come back."""

    def __init__(self) -> None:
        self.options = SimpleNamespace(lease_s=3.0)
        self.nodes = [SimpleNamespace(name=f"n{number}") for number in range(3)]
        self.done: list[str] = []
        self.drain_s = 0.0
        self.code = 0

    async def kill_node(self, node: SimpleNamespace) -> None:
        await trio.lowlevel.checkpoint()
        self.done.append(f"killed {node.name}")

    async def drain_node(self, node: SimpleNamespace) -> int:
        await trio.sleep(self.drain_s)
        self.done.append(f"drained {node.name}")
        return self.code

    async def start_node(self, node: SimpleNamespace) -> None:
        await trio.lowlevel.checkpoint()
        self.done.append(f"started {node.name}")


class Prober:
    """Is in one conversation, which takes its time to answer."""

    def __init__(self, seconds: float) -> None:
        self.conversations = ["c"]
        self.acknowledged: dict[str, set[int]] = {}
        self._seconds = seconds

    async def say(self, conversation: str) -> None:
        await trio.sleep(self._seconds)
        self.acknowledged[conversation] = {1}


def trial_of(cluster: Cluster, took_s: float, after_kill_s: float) -> Trial:
    recorder = SimpleNamespace(record=lambda *_, **__: None)
    return Trial(
        cluster, recorder, random.Random(1), lambda _: None, Prober(took_s), "", after_kill_s  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("took_s", "after_kill_s", "late"),
    [(7.9, 5.0, False), (8.1, 5.0, True), (17.9, 15.0, False), (18.1, 15.0, True), (50.0, float("inf"), False)],
)
async def test_a_kill_is_held_to_the_lease_and_what_is_promised_beyond_it(
    autojump_clock: trio.testing.MockClock, took_s: float, after_kill_s: float, late: bool
) -> None:
    cluster = Cluster()
    trial = trial_of(cluster, took_s, after_kill_s)
    await node_faults.kill(trial)
    assert trial.outages_s == pytest.approx([took_s])
    assert [breach.partition(":")[0] for breach in trial.breaches] == ["late-takeover"] * late
    assert [done.partition(" ")[0] for done in cluster.done] == ["killed", "started"]


@pytest.mark.parametrize("fault", [node_faults.drain, node_faults.rolling])
@pytest.mark.parametrize(
    ("drain_s", "code", "after_kill_s", "breached"),
    [
        (DRAIN_GRACE_S - 0.1, 0, 5.0, False),
        (DRAIN_GRACE_S + 0.1, 0, 5.0, True),
        (1.0, 1, 5.0, True),
        (DRAIN_GRACE_S + 0.1, 0, float("inf"), False),
        (1.0, 1, float("inf"), True),
    ],
)
async def test_a_drain_is_held_to_its_grace_unless_owners_are_silenced(
    autojump_clock: trio.testing.MockClock, fault: Scenario, drain_s: float, code: int, after_kill_s: float,
    breached: bool,
) -> None:  # fmt: skip
    cluster = Cluster()
    cluster.drain_s, cluster.code = drain_s, code
    trial = trial_of(cluster, 0.0, after_kill_s)
    await fault(trial)
    nodes = 1 if fault is node_faults.drain else 3
    assert [breach.partition(":")[0] for breach in trial.breaches] == ["drain"] * nodes * breached
    assert [done.partition(" ")[0] for done in cluster.done] == ["drained", "started"] * nodes
