"""Who may harm which node when; the cluster is a stand-in."""

import random
from types import SimpleNamespace

import trio
import trio.testing

from bench.torture.trial import Trial


def trial(nodes: int = 3) -> Trial:
    cluster = SimpleNamespace(nodes=[SimpleNamespace(name=f"n{n}") for n in range(nodes)], options=None)
    return Trial(cluster, None, random.Random(1), lambda _: None, None, "", 5.0)  # type: ignore[arg-type]


async def test_one_node_is_always_left_alone() -> None:
    one = trial()
    held: list[str] = []
    release = trio.Event()

    async def harm() -> None:
        async with one.some_node() as node:
            held.append(node.name)
            await release.wait()

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(harm)
        await trio.testing.wait_all_tasks_blocked()
        assert len(held) == 2
        release.set()
    assert len(held) == 3


async def test_two_faults_never_have_the_same_node() -> None:
    one = trial()
    async with one.some_node() as first, one.some_node() as second:
        assert first is not second


async def test_a_certain_node_is_waited_for() -> None:
    one = trial()
    order: list[str] = []

    async def wanting() -> None:
        async with one.some_node(one.cluster.nodes[0]):
            order.append("wanted")

    async with trio.open_nursery() as nursery, one.some_node(one.cluster.nodes[0]):
        nursery.start_soon(wanting)
        await trio.testing.wait_all_tasks_blocked()
        order.append("first")
    assert order == ["first", "wanted"]


async def test_nobody_is_held_to_a_time_by_a_machine_that_does_not_keep_it() -> None:
    one = trial()
    one.late("late-return", "12 s")
    assert one.breaches == ["late-return: 12 s"]
    one.stalled_s = 2.0
    one.late("late-return", "13 s")
    assert one.breaches == ["late-return: 12 s"]
    assert one.excused == ["late-return: 13 s"]


async def test_a_machine_that_keeps_time_is_never_late(autojump_clock: trio.testing.MockClock) -> None:
    one = trial()
    with trio.move_on_after(60):
        await one.keep_time()
    assert one.stalled_s == 0
