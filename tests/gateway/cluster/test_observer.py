"""Looking at nodes over real sockets of the loopback, and at their leases once more when one does not tell."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from gateway.cluster.observer import RENEWAL_MARGIN_S, Observer
from gateway.cluster.overview import Overview
from gateway.cluster.peer_handshake import key_of
from gateway.cluster.peers import Peers, listen_for_peers
from gateway.cluster.questions import Declined, NodeStatus, encode
from store.coordination import LeaseRecord
from tests.fakes.coordination import MemoryCoordination

KEY = key_of("a secret that all nodes of this cluster have")
OTHER_KEY = key_of("a secret that no node of this cluster has")
TOLD = NodeStatus("0.1.0", "http://x:1", 1234, 1000, 77, 512, 7.5, False, "", 0)


def nowhere() -> str:
    """An address where nobody listens."""
    closed = listen_for_peers("127.0.0.1", 0)
    with closed:
        return f"127.0.0.1:{closed.getsockname()[1]}"


def lease(name: str, address: str, *, alive: bool = True, nonce: int = 5) -> LeaseRecord:
    return LeaseRecord(f"{name}:x", name, nonce, alive, address, True, False, 1)


@asynccontextmanager
async def answering(name: str, answer: bytes = encode(TOLD)) -> AsyncIterator[str]:
    """A node that answers; its address."""
    listening = listen_for_peers("127.0.0.1", 0)
    peers = Peers(f"{name}:x", KEY, listening, dict)
    peers.answer = lambda _question: answer
    async with trio.open_nursery() as nursery:
        await nursery.start(peers.run)
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        nursery.cancel_scope.cancel()


class Leases(MemoryCoordination):
    """Some leases; between two looks at them ``meanwhile`` happens, and some are renewed."""

    def __init__(self, *rows: LeaseRecord, renewing: tuple[str, ...] = ()) -> None:
        super().__init__(delay_s=0.0)
        self.rows = {row.incarnation: row for row in rows}
        self.renewing = renewing
        self.meanwhile: Callable[[], object] = lambda: None
        self.looks = 0

    async def leases(self) -> list[LeaseRecord]:
        self.looks += 1
        if self.looks == 2:
            self.meanwhile()
            for row in list(self.rows.values()):
                if row.node in self.renewing:
                    await self.renew_lease(lease(row.node, row.address, nonce=row.nonce + 1), row.nonce)
        return await super().leases()


async def look(leases: Leases, key: bytes | None = KEY) -> Overview:
    return await Observer(leases, "tidegate", key, renew_s=-RENEWAL_MARGIN_S).look()


def states(seen: Overview) -> dict[str, str]:
    return {view.node: view.state for view in seen.nodes}


async def test_living_nodes_are_asked_and_a_silent_one_is_watched() -> None:
    async with answering("first") as first:
        rows = lease("first", first), lease("second", nowhere()), lease("third", nowhere())
        leases = Leases(*rows, lease("gone", nowhere(), alive=False), renewing=("second",))
        seen = await look(leases)
    assert states(seen) == {"first": "serves", "second": "unreached", "third": "silent", "gone": "dead"}
    assert seen.nodes[0].told == TOLD
    assert seen.nodes[1].trouble == "Connection refused"
    assert [view.node for view in seen.nodes if view.unrenewed_s is not None] == ["first", "third"]


async def test_when_all_tell_leases_are_looked_at_once() -> None:
    async with answering("first") as first:
        leases = Leases(lease("first", first))
        assert states(await look(leases)) == {"first": "serves"}
    assert leases.looks == 1


async def test_who_joins_between_the_looks_is_asked_too() -> None:
    async with answering("first") as first, answering("third") as third:
        leases = Leases(lease("first", first), lease("second", nowhere()), renewing=("first",))
        joining = lease("third", third, nonce=1), lease("fourth", nowhere(), nonce=1)
        leases.meanwhile = lambda: leases.rows.update({row.incarnation: row for row in joining})
        seen = await look(leases)
    assert states(seen) == {"first": "serves", "fourth": "joins", "second": "silent", "third": "serves"}


async def test_who_does_not_listen_yet_at_the_first_look_is_asked_again() -> None:
    async with answering("first") as first:
        leases = Leases(lease("first", nowhere(), nonce=1), renewing=("first",))
        leases.meanwhile = lambda: leases.rows.update({"first:x": lease("first", first, nonce=1)})
        assert states(await look(leases)) == {"first": "serves"}


async def test_a_node_that_has_another_secret_refuses() -> None:
    async with answering("first") as first:
        seen = await look(Leases(lease("first", first), renewing=("first",)), OTHER_KEY)
    assert states(seen) == {"first": "refused"}
    assert seen.nodes[0].trouble == "its cluster_secret is not the same"


async def test_a_node_that_does_not_understand_the_question_refuses() -> None:
    async with answering("first", encode(Declined("it may be of another version"))) as first:
        seen = await look(Leases(lease("first", first), renewing=("first",)))
    assert states(seen) == {"first": "refused"}
    assert seen.nodes[0].trouble == "it may be of another version"


async def test_without_the_secret_nobody_is_asked_and_who_does_not_renew_is_silent_all_the_same() -> None:
    seen = await look(Leases(lease("first", nowhere()), lease("second", nowhere()), renewing=("first",)), None)
    assert states(seen) == {"first": "unasked", "second": "silent"}
