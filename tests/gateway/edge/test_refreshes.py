"""Fresh tokens whose keys have to be fetched first."""

import pytest
import trio

from gateway.auth import Identity, TokenRefused, UnknownKey
from gateway.config import Settings
from gateway.edge.keepalive import Keepalive
from gateway.edge.refreshes import FETCHES_MAX, Refreshes
from protocol.errors import ErrorCode
from protocol.frames import Authenticate, Authenticated, ErrorReply


class SlowKeys:
    """A verifier that knows no key until its provider answers."""

    def __init__(self):
        self.answered = trio.Event()
        self.fetches = 0
        self.refused = False

    def verify(self, token):
        raise UnknownKey("planted")

    async def verify_fresh(self, token):
        self.fetches += 1
        await self.answered.wait()
        if self.refused:
            raise TokenRefused("planted")
        return Identity(token, 0)


class Renewals:
    """The part of the sessions that a refresh uses."""

    def __init__(self):
        self.renewed = []

    def renew(self, connection, identity):
        self.renewed.append(connection)
        return 60


class Desk:
    def __init__(self, edge):
        self.keys, self.renewals = SlowKeys(), Renewals()
        keepalive = Keepalive(Settings(), edge.table, edge.writer)
        self.refreshes = Refreshes(self.keys, self.renewals, keepalive, edge.hub)

    async def submit(self, peer, request_id):
        self.refreshes.submit(peer.connection, Authenticate(request_id, peer.connection.user))
        await trio.testing.wait_all_tasks_blocked()

    async def answer(self):
        self.keys.answered.set()
        await trio.testing.wait_all_tasks_blocked()
        self.keys.answered = trio.Event()


@pytest.fixture
async def desk(edge, nursery):
    made = Desk(edge)
    await nursery.start(made.refreshes.run)
    return made


async def test_a_connection_has_one_refresh_in_progress(edge, desk):
    alice, bob = edge.connect("alice"), edge.connect("bob")
    for n in range(1, 4):
        await desk.submit(alice, n)
    await desk.submit(bob, 1)
    assert desk.keys.fetches == 2
    replies = alice.frames()
    assert [(reply.id, reply.code) for reply in replies] == [(2, ErrorCode.RATE_LIMITED), (3, ErrorCode.RATE_LIMITED)]
    assert all(1000 <= reply.retry_after_ms <= 3000 for reply in replies)
    await desk.answer()
    assert alice.frames()[2:] == [Authenticated(1, 60)]
    assert bob.frames() == [Authenticated(1, 60)]
    await desk.submit(alice, 4)
    await desk.answer()
    assert alice.frames()[3:] == [Authenticated(4, 60)]


async def test_a_refused_one_may_try_again(edge, desk):
    alice = edge.connect("alice")
    desk.keys.refused = True
    for n in (1, 2):
        await desk.submit(alice, n)
        await desk.answer()
    assert [(reply.id, reply.code) for reply in alice.frames()] == [(n, ErrorCode.TOKEN_REFUSED) for n in (1, 2)]


async def test_the_node_has_so_many_refreshes_in_progress_and_no_more(edge, desk):
    *peers, late = [edge.connect(f"user-{n}") for n in range(FETCHES_MAX + 1)]
    for peer in peers:
        desk.refreshes.submit(peer.connection, Authenticate(1, peer.connection.user))
    await desk.submit(late, 1)
    assert desk.keys.fetches == FETCHES_MAX
    (reply,) = late.frames()
    assert isinstance(reply, ErrorReply)
    assert reply.code == ErrorCode.OVERLOADED
    assert 1000 <= reply.retry_after_ms <= 3000
    await desk.answer()
    await desk.submit(late, 2)
    await desk.answer()
    assert late.frames()[1:] == [Authenticated(2, 60)]


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_connection_that_went_meanwhile_is_not_renewed(edge, desk, end):
    alice = edge.connect("alice")
    await desk.submit(alice, 1)
    if end == "close":
        edge.writer.close(alice.connection, 1000)
    else:
        edge.writer.abort(alice.connection)
    await desk.answer()
    assert desk.renewals.renewed == []
