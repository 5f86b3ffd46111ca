"""``tidegate cluster`` on two real nodes: what an operator sees, and having one of them drain."""

import json
import signal
import urllib.request

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from protocol.client import connect
from tests.process.cluster_nodes import DEADLINE_S, PATIENT, SECRET, ClusterNode, ClusterNodes
from tests.process.test_two_clients import Eager

pytestmark = pytest.mark.process


class Operator:
    """Runs ``tidegate cluster`` with what it needs of the nodes' settings."""

    def __init__(self, nodes: ClusterNodes) -> None:
        self._nodes = nodes
        self._options = (*nodes.options[:8], "--cluster-secret", SECRET)

    def drain(self, name: str, *options: str) -> tuple[int, str]:
        done = self._nodes.tidegate("cluster", "drain", name, *(options or self._options))
        return done.returncode, done.stdout + done.stderr

    def status(self) -> str:
        done = self._nodes.tidegate("cluster", "status", *self._options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def states(self) -> dict[str, str]:
        done = self._nodes.tidegate("cluster", "status", "--json", *self._options)
        assert done.returncode == 0, done.stderr
        return {view["node"]: view["state"] for view in json.loads(done.stdout)["nodes"]}


def metrics_of(node: ClusterNode) -> dict[str, float]:
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


async def test_an_operator_sees_both_nodes_and_has_one_drain(nodes: ClusterNodes) -> None:
    operator = Operator(nodes)
    first = await trio.to_thread.run_sync(nodes.start, "first", *PATIENT)
    code, said = await trio.to_thread.run_sync(operator.drain, "first")
    assert (code, "the only node that can own slots" in said) == (1, True), said
    second = await trio.to_thread.run_sync(nodes.start, "second", *PATIENT)
    with trio.fail_after(DEADLINE_S):
        async with connect(second.ws_url, token=second.token("alice"), device="a", rng=Eager()) as client:
            groups = [(await client.create_group(f"group {n}", ["bob"])).conversation_id for n in range(8)]
            text = await trio.to_thread.run_sync(operator.status)
            assert "2 nodes alive, 1024 slots" in text, text
            assert "valid for" in text, text
            code, said = await trio.to_thread.run_sync(operator.drain, "third")
            assert (code, "there is no node third" in said) == (1, True), said
            assert "alive: first, second" in said
            code, said = await trio.to_thread.run_sync(operator.drain, "first")
            assert code == 0, said
            assert "first has left; all slots are owned by second" in said
            assert await trio.to_thread.run_sync(first.wait) == 0, first.stderr_tail()
            for number, conversation in enumerate(groups):
                assert (await client.send(conversation, f"m{number}")).seq == 2
            found = await trio.to_thread.run_sync(metrics_of, second)
    assert found["tidegate_slots_owned"] == 1024
    assert found["tidegate_redis_up"] == found["tidegate_lease_valid"] == 1
    assert found["tidegate_degraded"] == 0
    assert found["tidegate_redis_commands_total"] > 0
    assert found["tidegate_cassandra_statements_total"] > 8
    assert "node marked dead" not in second.stderr_path.read_text(), "it gave its lease up itself"


async def test_a_node_that_stands_still_is_shown_so(nodes: ClusterNodes) -> None:
    operator = Operator(nodes)
    await trio.to_thread.run_sync(nodes.start, "first", *PATIENT)
    second = await trio.to_thread.run_sync(nodes.start, "second", *PATIENT)
    second.signal(signal.SIGSTOP)
    try:
        text = await trio.to_thread.run_sync(operator.status)
        assert "second does not answer" in text, text
        assert "does not renew its lease" in text, text
    finally:
        second.signal(signal.SIGCONT)


def test_what_is_wrong_with_the_settings_is_said(nodes: ClusterNodes) -> None:
    operator = Operator(nodes)
    code, said = operator.drain("first", "--store", "embedded")
    assert (code, "there is no cluster" in said) == (2, True), said
    code, said = operator.drain("first", *nodes.options[:8])
    assert (code, "cluster_secret is empty" in said) == (2, True), said
    code, said = operator.drain("first", "--store", "cassandra", "--cassandra-port", "9", "--cluster-secret", SECRET)
    assert (code, "no Cassandra node answers at" in said, said.count("\n")) == (69, True, 1), said
    assert operator.states() == {}
