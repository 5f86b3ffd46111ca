"""How much may wait in the owner: a number of commands, and the bytes that their texts take."""

import pytest
from trio.testing import wait_all_tasks_blocked

from gateway.owner.backlog import COMMAND_BYTES_MEAN, Backlog, size_of
from protocol import frames, limits
from protocol.errors import ErrorCode
from protocol.frames import ErrorReply, Send, SendAck
from tests.fakes.edge import FakeOrigin
from tests.gateway.owner.conftest import StartWorld, World

BODY = "x" * limits.BODY_CHARS_MAX
ALLOWED = 64
FITTING = ALLOWED * COMMAND_BYTES_MEAN // len(BODY) + 1
"""So many of the longest bodies may wait where ALLOWED commands may: the last one may be begun below the limit."""


@pytest.fixture
async def world(start_world: StartWorld) -> World:
    return await start_world(pending_sends_max=ALLOWED)


def long_send(world: World, origin: FakeOrigin, conversation_id: str, n: int, attempt: int = 1) -> None:
    command = Send(world.next_id(), conversation_id, f"m{n}", f"{n:04}{BODY[4:]}", attempt=attempt)
    world.owner.submit(origin, command)


def refused(world: World) -> list[ErrorReply]:
    errors = [error for error in world.edge.errors if error.code == ErrorCode.OVERLOADED]
    assert all("bytes of commands already wait" in error.message and error.retry_after_ms for error in errors)
    return errors


async def test_sends_that_wait_to_become_durable_are_bounded_in_bytes(world: World, alice: FakeOrigin) -> None:
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    for n in range(ALLOWED):
        long_send(world, alice, conversation_id, n)
    await wait_all_tasks_blocked()
    assert len(refused(world)) == ALLOWED - FITTING
    world.store.release()
    await wait_all_tasks_blocked()
    assert len(world.edge.entries) == FITTING
    assert world.nothing_waits
    world.send(alice, conversation_id, "short")
    await wait_all_tasks_blocked()
    assert len(refused(world)) == ALLOWED - FITTING


async def test_commands_that_wait_for_their_conversation_are_bounded_in_bytes(
    world: World, start_world: StartWorld, alice: FakeOrigin
) -> None:
    conversation_id = await world.direct(alice, "bob")
    second = await start_world(world.store, pending_sends_max=ALLOWED)
    for n in range(ALLOWED):  # the conversation is being loaded
        long_send(second, alice, conversation_id, n)
    assert second.owner.backlog.full
    assert len(refused(second)) == ALLOWED - FITTING
    await wait_all_tasks_blocked()
    assert len(second.edge.entries) == FITTING
    assert second.nothing_waits


async def test_sends_that_are_looked_up_are_bounded_in_bytes(world: World) -> None:
    """Many users repeat what memory does not know, and each command waits for the store in a lookup of its own."""
    origins = [FakeOrigin(f"u{n}") for n in range(ALLOWED)]
    conversation_id = await world.group(origins[0], *(origin.user for origin in origins[1:]))
    for n, origin in enumerate(origins):
        long_send(world, origin, conversation_id, n, attempt=2)
    assert len(refused(world)) == ALLOWED - FITTING
    assert world.owner.counters.lookups == FITTING
    await wait_all_tasks_blocked()
    assert sum(isinstance(reply, SendAck) for origin in origins for reply in world.edge.replies_to(origin)) == FITTING
    assert world.nothing_waits


def test_the_number_bounds_short_commands_and_the_bytes_long_ones() -> None:
    backlog = Backlog(3)
    for _ in range(3):
        assert not backlog.full
        backlog.add(1)
    assert backlog.full
    assert "3 commands already wait" in backlog.refusal().message
    backlog.remove(2, count=2)
    assert not backlog.full
    backlog.add(3 * COMMAND_BYTES_MEAN)
    assert (backlog.waiting, backlog.full) == (2, True)
    assert f"{1 + 3 * COMMAND_BYTES_MEAN} bytes of commands already wait" in backlog.refusal().message


@pytest.mark.parametrize(
    ("command", "size"),
    [
        (Send(1, "c", "m", "body"), 4),
        (Send(1, "c", "m", "body", {"key": "value"}), 12),
        (frames.CreateConversation(1, frames.ConversationKind.GROUP, ["bob", "eve"], "m", "title"), 11),
        (frames.AddMembers(1, "c", "m", ["bob"]), 3),
        (frames.RemoveMembers(1, "c", "m", ["bob", "eve"]), 6),
        (frames.Rename(1, "c", "m", "title"), 5),
        (frames.MarkReceipt(1, "c", 1, 1), 0),
        (frames.History(1, "c"), 0),
    ],
)
def test_what_of_a_command_counts(command: frames.Command, size: int) -> None:
    assert size_of(command) == size
