"""The supervisor of several nodes: what becomes of each by how it ends, on a virtual clock; its nodes are made up."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Settings
from gateway.process_keeper import (
    FENCED,
    RESTART_WAIT_MAX_S,
    RESTART_WAIT_MIN_S,
    START_INTERVAL_S,
    STEADY_S,
    restart_wait_s,
)
from gateway.processes import DRAIN_MARGIN_S, END_WAIT_S, Supervisor, settings_of_each
from tests.fakes.node_processes import GRACE_S, FakeChild, World


async def test_the_first_node_starts_alone_and_all_are_announced_once(nursery):
    world = World(3)
    nursery.start_soon(world.run)
    await trio.testing.wait_all_tasks_blocked()
    assert [child.name for child in world.children] == ["n1"]
    world.children[0].ready.set()
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(child.name for child in world.children) == ["n1", "n2", "n3"]
    world.of("n2")[0].ready.set()
    await trio.testing.wait_all_tasks_blocked()
    assert world.announced == 0
    world.of("n3")[0].ready.set()
    await trio.testing.wait_all_tasks_blocked()
    assert world.announced == 1


async def test_draining_tells_all_and_gives_the_worst_code(nursery):
    world = World(3)
    await world.start(nursery)
    world.children[1].drain_code = 70
    world.supervisor.drain()
    world.supervisor.drain()  # again: the same
    await trio.testing.wait_all_tasks_blocked()
    assert [child.orders for child in world.children] == [["drain"]] * 3
    assert world.code == 70


async def test_a_node_that_dies_is_started_again_after_a_wait_that_grows(autojump_clock):
    world = World(2)
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        ends_s = []
        for life in range(9):
            child = world.of("n2")[life]
            await trio.sleep(START_INTERVAL_S)  # so that the wait alone counts
            child.exit(139)
            ends_s.append(trio.current_time())
            await trio.sleep(RESTART_WAIT_MAX_S)
            await trio.testing.wait_all_tasks_blocked()
        waits_s = [child.started_s - end_s for child, end_s in zip(world.of("n2")[1:], ends_s, strict=True)]
        assert waits_s == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30, 30])
        assert len(world.of("n1")) == 1  # the other one has nothing to do with it
        assert world.announced == 1
        world.supervisor.drain()
    assert world.code == 0


async def test_after_a_steady_life_the_wait_is_short_again(autojump_clock):
    world = World(1)
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        for life in range(4):
            world.children[life].exit(1)
            await trio.sleep(RESTART_WAIT_MAX_S)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(STEADY_S)
        ended_s = trio.current_time()
        world.children[-1].exit(1)
        await trio.sleep(RESTART_WAIT_MIN_S)
        await trio.testing.wait_all_tasks_blocked()
        assert world.children[-1].started_s - ended_s == pytest.approx(RESTART_WAIT_MIN_S)
        world.supervisor.drain()


@pytest.mark.parametrize("code", [0, FENCED])
async def test_a_node_that_lost_its_lease_or_was_drained_alone_comes_back_at_once_each_time(code, autojump_clock):
    world = World(1)
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        for life in range(6):
            await trio.sleep(START_INTERVAL_S)
            world.children[life].exit(code)
            await trio.testing.wait_all_tasks_blocked()
            assert len(world.children) == life + 2
            assert world.children[-1].started_s == trio.current_time()
        world.supervisor.drain()


async def test_a_node_that_always_loses_its_lease_makes_no_tight_circle(autojump_clock):
    world = World(1)
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        for life in range(3):
            world.children[life].exit(FENCED)
            await trio.sleep(START_INTERVAL_S)
            await trio.testing.wait_all_tasks_blocked()
        starts_s = [child.started_s for child in world.children]
        assert starts_s == pytest.approx([start * START_INTERVAL_S for start in range(4)])
        world.supervisor.drain()


async def test_a_first_start_that_fails_ends_all_with_its_code(nursery):
    world = World(3)
    nursery.start_soon(world.run)
    await trio.testing.wait_all_tasks_blocked()
    world.children[0].exit(2)
    await trio.testing.wait_all_tasks_blocked()
    assert world.code == 2
    assert world.announced == 0
    assert len(world.children) == 1


async def test_one_of_the_others_failing_to_start_drains_those_that_run(nursery):
    world = World(3)
    nursery.start_soon(world.run)
    await trio.testing.wait_all_tasks_blocked()
    world.children[0].ready.set()
    await trio.testing.wait_all_tasks_blocked()
    world.of("n3")[0].exit(69)
    await trio.testing.wait_all_tasks_blocked()
    assert world.code == 69
    assert [child.orders for child in world.children if child.name != "n3"] == [["drain"]] * 2


async def test_a_lease_lost_during_the_first_start_is_no_failure(autojump_clock):
    world = World(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run)
        await trio.testing.wait_all_tasks_blocked()
        world.children[0].exit(FENCED)
        await trio.sleep(START_INTERVAL_S)
        await trio.testing.wait_all_tasks_blocked()
        world.children[1].ready.set()
        await trio.testing.wait_all_tasks_blocked()
        assert world.announced == 1
        world.supervisor.drain()
    assert world.code == 0


async def test_no_memory_for_a_process_later_is_tried_again(autojump_clock):
    world = World(1)
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        world.refusals = [OSError(errno.EAGAIN, "no more processes")] * 3
        world.children[0].exit(1)
        await trio.sleep(60)
        assert len(world.children) == 2
        assert not world.refusals
        world.supervisor.drain()
    assert world.code == 0


async def test_a_drain_during_the_wait_for_a_restart_starts_nothing_and_tells_of_the_crash(autojump_clock):
    world = World(2)
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        world.of("n1")[0].exit(139)
        await trio.testing.wait_all_tasks_blocked()
        world.supervisor.drain()
    assert len(world.of("n1")) == 1
    assert world.code == 139


async def test_a_drain_during_the_first_start_reaches_a_process_that_is_not_ready(nursery):
    world = World(3)
    nursery.start_soon(world.run)
    await trio.testing.wait_all_tasks_blocked()
    world.supervisor.drain()
    await trio.testing.wait_all_tasks_blocked()
    assert world.code == 0
    assert [child.name for child in world.children] == ["n1"]


async def test_an_order_that_comes_while_a_process_is_started_is_not_lost(nursery):
    world = World(1)
    begun, go_on = trio.Event(), trio.Event()
    launch = world.launch

    async def slowly(settings: Settings) -> FakeChild:
        begun.set()
        await go_on.wait()
        return await launch(settings)

    world.supervisor = Supervisor([Settings(node_name="n1")], slowly)
    nursery.start_soon(world.run)
    await begun.wait()
    world.supervisor.drain()
    go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    assert world.children[0].orders == ["drain"]
    assert world.code == 0


async def test_who_does_not_drain_in_time_is_killed(autojump_clock):
    world = World(2)
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        world.children[0].deaf = True
        world.supervisor.drain()
        await trio.sleep(GRACE_S + DRAIN_MARGIN_S - 0.1)
        assert world.children[0].orders == ["drain"]
        assert world.code is None
    assert world.children[0].orders == ["drain", "kill"]
    assert world.code == 137
    assert trio.current_time() == pytest.approx(GRACE_S + DRAIN_MARGIN_S)


async def test_a_second_signal_ends_all_at_once(autojump_clock):
    world = World(2)
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        world.children[0].deaf = True
        world.supervisor.drain()
        world.supervisor.end()
    assert world.children[0].orders == ["drain", "end", "kill"]
    assert trio.current_time() == pytest.approx(END_WAIT_S)


@given(st.integers(1, 10_000))
def test_waits_grow_up_to_their_bound(crashes):
    assert RESTART_WAIT_MIN_S <= restart_wait_s(crashes) <= restart_wait_s(crashes + 1) <= RESTART_WAIT_MAX_S


def test_each_node_has_a_name_and_a_port_of_its_own():
    settings = Settings(store="cassandra", processes=3, node_name="n", port=0, process_port=9_001, idle_timeout_s=99)
    nodes = settings_of_each(settings, 8_480)
    assert [node.node_name for node in nodes] == ["n-1", "n-2", "n-3"]
    assert [node.process_port for node in nodes] == [9_001, 9_002, 9_003]
    assert {(node.port, node.processes, node.store, node.idle_timeout_s) for node in nodes} == {
        (8_480, 1, "cassandra", 99)
    }
    assert {node.process_port for node in settings_of_each(Settings(processes=2), 1)} == {0}
    assert all(node.node_name for node in settings_of_each(Settings(processes=2), 1))


def test_the_supervisor_carries_no_part_of_a_node():
    program = (
        "import sys; from gateway.cli import serve; from gateway import processes; from gateway.observe import logs;"
        "print(*sys.modules)"
    )
    root = Path(__file__).parents[2]
    listed = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    loaded = set(listed.stdout.split())
    assert "gateway.processes" in loaded
    assert not loaded & {"gateway.node", "gateway.edge.hub", "store.embedded", "hypercorn", "jwt", "cassandra"}
