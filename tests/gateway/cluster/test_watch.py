"""What a node knows of the others' renewals; that it marks the silent dead stands in test_cluster.py."""

import pytest
import trio
from trio.testing import MockClock

from gateway.cluster.lease import Lease
from gateway.cluster.watch import Watch
from store.coordination import LeaseRecord
from tests.fakes.coordination import MemoryCoordination


def row(name: str, nonce: int, *, alive: bool = True) -> LeaseRecord:
    return LeaseRecord(f"{name}:x", name, nonce, alive, f"{name}:1", True, False, 1)


async def test_how_long_ago_the_others_renewed(autojump_clock: MockClock) -> None:
    coordination = MemoryCoordination(delay_s=0.0)
    lease = Lease(
        coordination, node="own", address="own:1", owns=True, protocol=1, lease_s=10.0, renew_s=2.0,
        clock=trio.current_time,
    )  # fmt: skip
    watch = Watch(coordination, lease, lease_s=10.0, clock=trio.current_time)
    coordination.rows = {"a:x": row("a", 5), "b:x": row("b", 5), "dead:x": row("dead", 5, alive=False)}
    assert watch.unrenewed_s() == {}
    await watch.look()
    await trio.sleep(3)
    coordination.rows["a:x"] = row("a", 6)
    await watch.look()
    await trio.sleep(1)
    assert watch.unrenewed_s() == pytest.approx({"a:x": 1.0, "b:x": 4.0})
