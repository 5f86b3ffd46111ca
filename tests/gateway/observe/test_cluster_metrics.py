"""What a node of a cluster tells besides: from the parts that a real node has, before any server is connected."""

import re
from collections.abc import Iterator
from pathlib import Path
from select import epoll
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.cluster.backend import Backend
from gateway.config import Settings
from gateway.edge.connection import ConnectionTable
from gateway.edge.hub import Hub
from gateway.edge.writer import Writer
from gateway.observe.metrics import Metrics
from gateway.observe.registry import MetricRegistry

ROOT = Path(__file__).parents[3]
SECRET = "a secret that all nodes of this cluster have"


@pytest.fixture
def node() -> Iterator[Any]:
    table = ConnectionTable()
    with epoll() as poll:
        writer = Writer(table, poll, queue_bytes_max=1024, queue_age_max_s=1)
        yield SimpleNamespace(table=table, writer=writer, hub=Hub(table, writer, devices_per_user_max=1))


def samples(registry: MetricRegistry) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(registry.render().decode()):
        assert family.documentation
        found.update({sample.name: sample.value for sample in family.samples})
    return found


async def test_a_node_with_everything(node: Any) -> None:
    settings = Settings(store="cassandra", redis_url="redis://127.0.0.1:1", cluster_secret=SECRET)
    backend = Backend(settings, "n1", "127.0.0.1:1")
    assert backend.peers is not None
    try:
        cluster = backend.join(node)
        registry = MetricRegistry()
        backend.add_metrics(registry)
        found = samples(registry)
        assert (found["tidegate_redis_up"], found["tidegate_lease_valid"]) == (0, 0)
        assert found["tidegate_degraded"] == 0, "it knows of nobody else"
        assert found["tidegate_cassandra_statements_total"] == found["tidegate_redis_commands_total"] == 0
        cluster.links.gaps = 3
        cluster.router.forwarded = 4
        cluster.ownership.claims = 5
        backend.peers.refused = 6
        found = samples(registry)
        assert found["tidegate_link_gaps_total"] == 3
        assert found["tidegate_commands_forwarded_total"] == 4
        assert found["tidegate_slots_claimed_total"] == 5
        assert found["tidegate_peer_refused_total"] == 6
    finally:
        backend.peers.listening.close()


async def test_every_metric_in_the_runbook_is_there(node: Any) -> None:
    backend = Backend(Settings(store="cassandra", redis_url="redis://127.0.0.1:1", cluster_secret=SECRET), "n1", "")
    assert backend.peers is not None
    with backend.peers.listening:
        backend.join(node)
        registry = Metrics(SimpleNamespace(name="n1")).registry  # type: ignore[arg-type]
        backend.add_metrics(registry)
    named = re.findall(r"tidegate_[a-z_]+", (ROOT / "docs" / "operations.md").read_text())
    assert len(named) > 30
    assert {name.removesuffix("_total") for name in named} <= set(registry.names())


async def test_a_node_without_redis_and_without_a_secret_tells_the_rest(node: Any) -> None:
    backend = Backend(Settings(store="cassandra"), "n1", "127.0.0.1:1")
    backend.join(node)
    registry = MetricRegistry()
    backend.add_metrics(registry)
    found = samples(registry)
    assert "tidegate_slots_owned" in found
    assert not [name for name in found if "redis" in name or "peer" in name]
