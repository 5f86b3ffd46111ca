"""Upgrades of a node that a supervisor keeps, on a virtual clock: there is one process afterwards, whatever happens."""

import errno

import trio

from gateway.process_keeper import HAND_OVER_TIMEOUT_S, START_INTERVAL_S
from gateway.upgrade.control import Progress, Refused, Succeeded
from tests.fakes.node_processes import FakeChild, World

DONE = Succeeded(101, 7, 12.0, 3.0)


class Upgrade:
    """An upgrade of the only node of a world that has started.

    Attributes:
        states: what was told on the way.
        outcome: what it came to.
    """

    def __init__(self, world: World) -> None:
        self.keeper = world.supervisor.keepers[0]
        self.states: list[str] = []
        self.outcome: Succeeded | Refused | None = None

    async def run(self) -> None:
        self.outcome = await self.keeper.upgrade(self.states.append)


async def begun(world: World, nursery: trio.Nursery) -> tuple[Upgrade, FakeChild, FakeChild]:
    """An upgrade that the predecessor was told of; the predecessor; its successor."""
    await world.start(nursery)
    upgrade = Upgrade(world)
    nursery.start_soon(upgrade.run)
    await trio.testing.wait_all_tasks_blocked()
    old, new = world.children
    assert old.successors == [new.pid]
    return upgrade, old, new


async def test_a_node_goes_on_in_its_successor(nursery):
    world = World(1)
    upgrade, old, new = await begun(world, nursery)
    old.on_line(Progress("settling"))
    old.on_line(DONE)
    old.exit(0)
    await trio.testing.wait_all_tasks_blocked()
    assert upgrade.outcome == DONE
    assert upgrade.states == ["settling"]
    assert upgrade.keeper.child is new
    assert world.children == [old, new]  # nothing was restarted
    world.supervisor.drain()
    await trio.testing.wait_all_tasks_blocked()
    assert (old.orders, new.orders) == ([], ["drain"])


async def test_a_node_that_refuses_goes_on_and_its_successor_is_put_away(nursery):
    world = World(1)
    upgrade, old, new = await begun(world, nursery)
    old.on_line(Refused("the store is in trouble"))
    await trio.testing.wait_all_tasks_blocked()
    assert upgrade.outcome == Refused("the store is in trouble")
    assert upgrade.keeper.child is old
    assert new.orders == ["kill"]
    again = Upgrade(world)
    nursery.start_soon(again.run)  # it may be tried again
    await trio.testing.wait_all_tasks_blocked()
    old.on_line(DONE)
    old.exit(0)
    await trio.testing.wait_all_tasks_blocked()
    assert again.outcome == DONE
    assert upgrade.keeper.child is world.children[2]
    world.supervisor.drain()


async def test_a_node_that_dies_without_a_word_leaves_its_place_to_its_successor(nursery):
    world = World(1)
    upgrade, old, new = await begun(world, nursery)
    old.exit(137)
    await trio.testing.wait_all_tasks_blocked()
    assert isinstance(upgrade.outcome, Refused)
    assert f"process {new.pid} has its place" in upgrade.outcome.reason
    assert upgrade.keeper.child is new
    world.supervisor.drain()


async def test_a_successor_that_got_nothing_before_both_ended_is_restarted_like_any_other(autojump_clock):
    world = World(1)
    async with trio.open_nursery() as nursery:
        _, old, new = await begun(world, nursery)
        old.exit(137)
        await trio.testing.wait_all_tasks_blocked()
        new.exit(1)
        await trio.sleep(START_INTERVAL_S)
        await trio.testing.wait_all_tasks_blocked()
        assert len(world.children) == 3
        assert world.supervisor.keepers[0].child is world.children[2]
        world.supervisor.drain()
    assert world.code == 0


async def test_a_node_that_says_nothing_keeps_its_place_for_as_long_as_it_lives(autojump_clock):
    world = World(1)
    async with trio.open_nursery() as nursery:
        upgrade, old, new = await begun(world, nursery)
        await trio.sleep(HAND_OVER_TIMEOUT_S - 1)
        assert upgrade.outcome is None
        await trio.sleep(2)
        assert "nothing came of it" in upgrade.outcome.reason
        assert new.orders == ["kill"]
        assert upgrade.keeper.child is old
        old.on_line(DONE)  # too late: its successor is dead
        old.exit(0)
        await trio.sleep(START_INTERVAL_S)
        await trio.testing.wait_all_tasks_blocked()
        assert upgrade.keeper.child is world.children[2]
        world.supervisor.drain()


async def test_what_is_said_late_of_an_upgrade_that_was_given_up_is_not_said_of_the_next_one(autojump_clock):
    world = World(1)
    async with trio.open_nursery() as nursery:
        _, old, given_up = await begun(world, nursery)
        await trio.sleep(HAND_OVER_TIMEOUT_S + 1)
        again = Upgrade(world)
        nursery.start_soon(again.run)
        await trio.testing.wait_all_tasks_blocked()
        new = world.children[2]
        old.on_line(Refused("its successor ended", given_up.pid))
        await trio.testing.wait_all_tasks_blocked()
        assert again.outcome is None
        assert new.orders == []
        old.on_line(DONE)
        old.exit(0)
        await trio.testing.wait_all_tasks_blocked()
        assert again.outcome == DONE
        assert again.keeper.child is new
        world.supervisor.drain()


async def test_what_is_said_of_the_upgrade_under_way_counts(nursery):
    world = World(1)
    upgrade, old, new = await begun(world, nursery)
    old.on_line(Refused("the store is in trouble", new.pid))
    await trio.testing.wait_all_tasks_blocked()
    assert upgrade.outcome == Refused("the store is in trouble", new.pid)
    assert upgrade.keeper.child is old
    world.supervisor.drain()


async def test_a_drain_meanwhile_reaches_whoever_is_the_node(nursery):
    world = World(1)
    _, old, new = await begun(world, nursery)
    old.deaf = True  # it stands still: the order stays unread
    world.supervisor.drain()
    old.on_line(DONE)
    old.exit(0)
    await trio.testing.wait_all_tasks_blocked()
    assert new.orders == ["drain"]
    assert world.code == 0


async def test_a_node_that_refuses_because_it_drains_ends_with_its_own_code(nursery):
    world = World(1)
    upgrade, old, new = await begun(world, nursery)
    old.deaf = True
    world.supervisor.drain()
    old.on_line(Refused("the node drains"))
    old.exit(70)
    await trio.testing.wait_all_tasks_blocked()
    assert upgrade.outcome == Refused("the node drains")
    assert new.orders == ["kill"]
    assert world.code == 70


async def test_what_is_no_moment_to_begin(autojump_clock):
    world = World(1)
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        keeper = world.supervisor.keepers[0]
        world.refusals = [OSError(errno.EAGAIN, "no more processes")]
        refused = await keeper.upgrade(lambda _state: None)
        assert refused == Refused("no process can be started: [Errno 11] no more processes")
        assert keeper.child is world.children[0]
        world.children[0].exit(139)
        await trio.testing.wait_all_tasks_blocked()
        refused = await keeper.upgrade(lambda _state: None)
        assert refused == Refused("it is being started: try again when it is ready")
        world.supervisor.drain()
        assert await keeper.upgrade(lambda _state: None) == Refused("it drains")


async def test_a_node_that_ends_while_its_successor_is_being_started_is_started_anew(autojump_clock):
    world = World(1)
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        launch, go_on = world.launch, trio.Event()

        async def slowly(settings: object, predecessor: FakeChild | None = None) -> FakeChild:
            if predecessor is not None:
                await go_on.wait()
            return await launch(settings, predecessor)

        keeper = world.supervisor.keepers[0]
        keeper._launch = slowly
        upgrade = Upgrade(world)
        nursery.start_soon(upgrade.run)
        await trio.testing.wait_all_tasks_blocked()
        world.children[0].exit(139)
        await trio.sleep(2 * START_INTERVAL_S)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert upgrade.outcome == Refused("it ended meanwhile, and is started anew")
        anew, late = world.children[1:]
        assert keeper.child is anew
        assert late.orders == ["kill"]
        world.supervisor.drain()


async def test_nodes_that_run_already_are_adopted_and_others_started(autojump_clock):
    running = FakeChild("n1", 50)
    running.ready.set()
    world = World(2, {"n1": running})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run)
        await trio.testing.wait_all_tasks_blocked()
        assert [child.name for child in world.children] == ["n2"]
        world.children[0].exit(1)  # which is no first start that fails any more
        await trio.sleep(START_INTERVAL_S)
        await trio.testing.wait_all_tasks_blocked()
        assert [child.name for child in world.children] == ["n2", "n2"]
        world.supervisor.drain()
    assert running.orders == ["drain"]
    assert world.code == 0


async def test_a_drain_that_waited_for_the_new_program_waits_for_the_nodes_it_has_adopted(autojump_clock):
    """A signal that came while the supervisor became another program is heeded before the nodes are looked after."""
    running = {name: FakeChild(name, pid) for name, pid in (("n1", 50), ("n2", 51))}
    for child in running.values():
        child.deaf = True  # each takes its time
    world = World(3, running)
    world.supervisor.drain()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run)
        await trio.testing.wait_all_tasks_blocked()
        assert world.code is None
        running["n1"].exit(0)
        await trio.testing.wait_all_tasks_blocked()
        assert world.code is None
        running["n2"].exit(3)
    assert world.code == 3
    assert world.children == [], "nothing is started any more"
