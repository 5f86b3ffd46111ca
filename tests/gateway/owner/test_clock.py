"""The time of day steps, by an hour or by anything: the order of entries and the times of their writes do not."""

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from gateway.config import Settings
from protocol.codec import decode_entry
from protocol.errors import ErrorCode
from protocol.frames import ErrorReply, SendAck
from tests.fakes.edge import FakeOrigin
from tests.fakes.memory_store import MemoryStore
from tests.gateway.owner.conftest import StartWorld, World

HOUR_US = 3_600 * 1_000_000


def times_of(store: MemoryStore, conversation_id: str) -> list[int]:
    return [decode_entry(encoded).time_us for encoded in store.logs[conversation_id].entries]


@settings(max_examples=25)
@given(st.lists(st.integers(-30 * 24 * HOUR_US, 30 * 24 * HOUR_US), min_size=1, max_size=8), st.integers(0, 7))
def test_times_increase_strictly_whatever_the_clock_does_and_whoever_owns(steps: list[int], change_at: int) -> None:
    """Each step of the clock is followed by two messages; at one of them another owner, with that clock, takes over."""

    async def story() -> None:
        store, alice = MemoryStore(), FakeOrigin("alice")
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            world = World(Settings(), store)
            await nursery.start(world.run)
            conversation_id = await world.group(alice, "bob")
            for number, step in enumerate(steps):
                if number == change_at:
                    world.scope.cancel()
                    await wait_all_tasks_blocked()
                    now_us, world = world.now_us, World(Settings(), store)
                    world.now_us, world.ownership.current = now_us, 2
                    await nursery.start(world.run)
                world.now_us = max(world.now_us + step, 1)
                for message in range(2):
                    world.send(alice, conversation_id, f"m{number}-{message}")
                await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        times = times_of(store, conversation_id)
        assert len(times) == 1 + 2 * len(steps)
        assert times == sorted(set(times))

    trio.run(story)


@pytest.mark.parametrize("step_us", [HOUR_US, -HOUR_US])
async def test_a_message_repeated_across_a_step_of_an_hour_is_known(
    start_world: StartWorld, alice: FakeOrigin, step_us: int
) -> None:
    first = await start_world()
    conversation_id = await first.group(alice, "bob")
    first.send(alice, conversation_id, "m1")
    await wait_all_tasks_blocked()
    first.scope.cancel()
    second = await start_world(store=first.store)
    second.now_us, second.ownership.current = first.now_us + step_us, 2
    again = second.send(alice, conversation_id, "m1", attempt=2)
    await wait_all_tasks_blocked()
    (reply,) = second.edge.replies_to(alice)
    assert not isinstance(reply, ErrorReply), ErrorCode(reply.code)
    assert isinstance(reply, SendAck)
    assert (reply.id, reply.seq, reply.duplicate) == (again.id, 2, True)
    assert len(first.store.logs[conversation_id].entries) == 2
