"""One conversation's rate, whoever sends; its neighbours and repeats are not concerned."""

import pytest
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.errors import ErrorCode
from protocol.frames import AddMembers, ErrorReply, Ok, SendAck
from tests.fakes.edge import FakeOrigin

RATE, BURST = 10, 4


@pytest.fixture
def clock() -> MockClock:
    """A clock that moves only when told to."""
    return MockClock()


@pytest.fixture
async def paced(start_world, clock):
    return await start_world(conversation_sends_per_s_max=RATE, conversation_burst_max=BURST)


async def test_all_members_together_are_slowed_down_and_told_how_long(paced, clock, alice, bob):
    conversation_id = await paced.direct(alice, "bob")
    for number in range(BURST):
        paced.send((alice, bob)[number % 2], conversation_id, f"m{number}")
    refused = paced.send(bob, conversation_id, "late")
    await wait_all_tasks_blocked()
    assert len(paced.edge.entries) == BURST
    [error] = paced.edge.errors
    assert (error.id, error.code) == (refused.id, ErrorCode.RATE_LIMITED)
    assert "from all its members together" in error.message
    assert "10 entries a second" in error.message
    assert 100 <= error.retry_after_ms <= 101
    assert paced.owner.counters.rate_limited == 1
    clock.jump(error.retry_after_ms / 1000)
    paced.send(bob, conversation_id, "late")
    await wait_all_tasks_blocked()
    assert isinstance(paced.edge.replies_to(bob)[-1], SendAck)


async def test_the_rate_is_sustained_and_no_more(paced, clock, alice):
    conversation_id = await paced.direct(alice, "bob")
    for number in range(100):
        paced.send(alice, conversation_id, f"m{number}")
        clock.jump(0.05)
        await wait_all_tasks_blocked()
    appended = len(paced.edge.entries)
    assert BURST + 5 * RATE - 1 <= appended <= BURST + 5 * RATE + 1
    assert len(paced.edge.errors) == 100 - appended


async def test_a_neighbour_is_not_slowed_down(paced, alice):
    busy, calm = await paced.direct(alice, "bob"), await paced.direct(alice, "carol")
    for number in range(2 * BURST):
        paced.send(alice, busy, f"m{number}")
    paced.edge.forget()
    paced.send(alice, calm, "calm")
    await wait_all_tasks_blocked()
    assert "calm" in [entry.body for entry in paced.edge.received("carol")]


async def test_a_repeat_is_answered_however_fast_it_comes(paced, alice):
    conversation_id = await paced.direct(alice, "bob")
    for number in range(BURST):
        paced.send(alice, conversation_id, f"m{number}")
    await wait_all_tasks_blocked()
    for _ in range(3):
        paced.send(alice, conversation_id, "m0", attempt=2)
    assert [reply.duplicate for reply in paced.edge.replies_to(alice)[-3:]] == [True] * 3


async def test_changes_of_members_count_and_what_changes_nothing_does_not(paced, alice):
    group = await paced.group(alice, "bob")
    for number in range(BURST):
        paced.send(alice, group, f"m{number}")
    await wait_all_tasks_blocked()
    refused = await paced.ask(alice, AddMembers(paced.next_id(), group, "add", ["carol"]))
    assert isinstance(refused, ErrorReply)
    assert refused.code == ErrorCode.RATE_LIMITED
    assert isinstance(await paced.ask(alice, AddMembers(paced.next_id(), group, "again", ["bob"])), Ok)
    paced.send(alice, group, "still open")  # refused as well, and not waiting behind a change that never was
    await wait_all_tasks_blocked()
    assert paced.edge.errors[-1].code == ErrorCode.RATE_LIMITED


async def test_zero_is_no_limit(start_world, clock, alice):
    world = await start_world(conversation_sends_per_s_max=0, conversation_burst_max=1)
    conversation_id = await world.direct(FakeOrigin("alice"), "bob")
    for number in range(50):
        world.send(alice, conversation_id, f"m{number}")
    await wait_all_tasks_blocked()
    assert len(world.edge.entries) == 50
