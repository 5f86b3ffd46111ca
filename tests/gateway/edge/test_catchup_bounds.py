"""What waits for its turn to catch up: bounded in memory, and no client takes the places of all."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.config import Settings
from gateway.edge import catchup as catchup_module
from gateway.edge.catchup import SYNCS_EACH_MAX
from protocol import limits
from protocol.errors import ErrorCode
from protocol.frames import ErrorReply, ListConversations, Sync, SyncPage
from tests.fakes.edge import FakeOrigin
from tests.gateway.edge.catchup_place import Place


@pytest.fixture
async def place(nursery):
    """A place where nobody's turn ends before ``gate`` is set; two have one at once."""
    made = Place(Settings(syncs_max=2))
    made.gate = trio.Event()

    async def wait(_user):
        await made.gate.wait()

    made.catchup.before_reading = wait
    for part in (made.store, made.owner, made.catchup):
        await nursery.start(part.run)
    return made


def cursors(count):
    return {f"g{n}": 0 for n in range(count)}


async def test_too_many_cursors_are_refused_without_waiting_for_a_turn(place):
    """A frame has room for ten times as many, if their names are short: nothing that should wait in memory."""
    place.catchup.submit(FakeOrigin("alice"), Sync(1, cursors(limits.SYNC_CURSORS_MAX + 1)))
    (refused,) = place.edge.replies
    assert refused.code == ErrorCode.TOO_LONG
    assert "1001" in refused.message


async def test_one_connection_does_not_take_all_places(place):
    mallory, bob = FakeOrigin("mallory"), FakeOrigin("bob")
    for n in range(SYNCS_EACH_MAX):
        place.catchup.submit(mallory, Sync(n) if n % 2 else ListConversations(n))
    assert place.edge.replies == []
    place.catchup.submit(mallory, Sync(77))
    (refused,) = place.edge.replies_to(mallory)
    assert (refused.id, refused.code) == (77, ErrorCode.OVERLOADED)
    assert refused.retry_after_ms > 0
    place.catchup.submit(bob, Sync(1))
    place.gate.set()
    await wait_all_tasks_blocked()
    assert [type(reply) for reply in place.edge.replies_to(bob)] == [SyncPage]
    assert len(place.edge.replies_to(mallory)) == 1 + SYNCS_EACH_MAX
    place.edge.forget()
    place.catchup.submit(mallory, Sync(78))
    await wait_all_tasks_blocked()
    assert [type(reply) for reply in place.edge.replies_to(mallory)] == [SyncPage]


async def test_cursors_that_wait_are_bounded(place, monkeypatch):
    monkeypatch.setattr(catchup_module, "CURSORS_WAITING_MAX", 1_000)
    alice, bob = FakeOrigin("alice"), FakeOrigin("bob")
    place.catchup.submit(alice, Sync(1, cursors(600)))
    place.catchup.submit(bob, Sync(2, cursors(401)))
    (refused,) = place.edge.replies
    assert (refused.id, refused.code) == (2, ErrorCode.OVERLOADED)
    assert place.catchup.overloaded == 1
    place.catchup.submit(bob, Sync(3, cursors(400)))
    place.gate.set()
    await wait_all_tasks_blocked()
    place.catchup.submit(bob, Sync(4, cursors(1_000)))
    await wait_all_tasks_blocked()
    answered = [reply.id for reply in place.edge.replies if not isinstance(reply, ErrorReply)]
    assert sorted(answered) == [1, 3, 4]
