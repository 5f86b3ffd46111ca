import gc
import os
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from gateway.observe.metrics import OWNER_COUNTERS, Metrics
from gateway.observe.process import open_descriptors
from gateway.owner.counters import OwnerCounters


@pytest.fixture
def node() -> Any:
    """The parts of a node, as far as metrics look at them."""
    return SimpleNamespace(
        name="n1",
        table=SimpleNamespace(count=3),
        hub=SimpleNamespace(
            by_user={"a": 1}, followers={"c": 1}, fanout=SimpleNamespace(deliveries=4), replies=5, signals_shed=6
        ),
        listener=SimpleNamespace(handshakes=7, refused={503: 8}),
        writer=SimpleNamespace(bytes_queued=9, slow_consumers=10, closed_by_code={1000: 11}),
        http=SimpleNamespace(connections=12, refused=13, gave_way=30),
        entrance=SimpleNamespace(headers_refused=27, tls_failed=28),
        presences=SimpleNamespace(watched=14, leaving=0),
        admission=SimpleNamespace(refused=15),
        commands=SimpleNamespace(invalid=16, overloaded=20),
        parking=SimpleNamespace(frames=21),
        sessions=SimpleNamespace(opened=22),
        catchup=SimpleNamespace(syncs=23, resumed=24, lists=25),
        api=SimpleNamespace(answered={200: 26}),
        owner=SimpleNamespace(
            counters=OwnerCounters(sends=17), conversations_loaded=18, backlog=SimpleNamespace(waiting=19)
        ),
    )


def samples(metrics: Metrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        assert family.documentation
        for sample in family.samples:
            found[sample.name + "".join(f"/{value}" for value in sample.labels.values())] = sample.value
    return found


async def test_what_a_node_tells(node: Any) -> None:
    metrics = Metrics(node)
    metrics.observe_delivery(0.002, 3)
    metrics.observe_delivery(0.2)
    metrics.observe_commit(5, 0.003)
    found = samples(metrics)
    assert found["tidegate_connections"] == 3
    assert found["tidegate_proxy_headers_refused_total"] == 27
    assert found["tidegate_tls_handshakes_failed_total"] == 28
    assert found["tidegate_handshakes_refused_total/503"] == 8
    assert found["tidegate_send_queue_bytes"] == 9
    assert found["tidegate_http_gave_way_total"] == 30
    assert found["tidegate_closes_total/1000"] == 11
    assert found["tidegate_sends_total"] == 17
    assert found["tidegate_delivery_seconds_bucket/0.0025"] == 3
    assert found["tidegate_delivery_seconds_count"] == 4
    assert found["tidegate_commit_entries_sum"] == 5
    assert found["tidegate_tasks"] == trio.lowlevel.current_statistics().tasks_living
    node.table.count = 30
    assert samples(metrics)["tidegate_connections"] == 30


async def test_this_process(node: Any) -> None:
    found = samples(Metrics(node))
    assert 10e6 < found["process_resident_memory_bytes"] < found["process_virtual_memory_bytes"]
    assert found["process_cpu_seconds_total"] > 0
    if open_descriptors():
        assert found["process_open_fds"] == pytest.approx(len(os.listdir("/proc/self/fd")), abs=2)
    assert found["process_open_fds"] <= found["process_max_fds"]


async def test_two_nodes_in_one_process_do_not_meet(node: Any) -> None:
    one, other = Metrics(node), Metrics(node)
    one.observe_delivery(1)
    assert samples(one)["tidegate_delivery_seconds_count"] == 1
    assert samples(other)["tidegate_delivery_seconds_count"] == 0


async def test_loop_and_collector_are_measured_while_it_runs(node: Any) -> None:
    metrics = Metrics(node)
    callbacks = len(gc.callbacks)
    async with trio.open_nursery() as nursery:
        await nursery.start(metrics.run)
        gc.collect()
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        found = samples(metrics)
        nursery.cancel_scope.cancel()
    assert found["tidegate_gc_pause_seconds_count"] >= 1
    assert found["tidegate_gc_collections_total/2"] >= 1
    assert found["tidegate_loop_passes_total"] >= 3
    assert found["tidegate_loop_busy_seconds_total"] > 0
    assert found["tidegate_loop_stall_seconds_recent_max"] == found["tidegate_loop_stall_seconds_max"] > 0
    assert len(gc.callbacks) == callbacks
    after = metrics.stalls.passes
    for _ in range(3):
        await trio.lowlevel.checkpoint()
    assert metrics.stalls.passes == after


def test_every_counter_of_the_owner_has_a_metric() -> None:
    assert list(OWNER_COUNTERS) == list(OwnerCounters.__struct_fields__)


def test_names_are_standard(node: Any) -> None:
    for name in Metrics(node).registry.names():
        assert name.startswith(("tidegate_", "process_"))
        assert not name.endswith(("_total", "_ms", "_us", "_kb", "_count", "_sum"))
