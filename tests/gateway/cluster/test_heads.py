"""The heads of conversations, with a real Redis: none that is too low may count."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from gateway.cluster import heads
from gateway.cluster.heads import GENERATION_FIELD, RedisHeads
from gateway.cluster.ports import Head, SlotView
from gateway.cluster.redis_keys import heads as heads_key
from tests.gateway.cluster.redis_parts import Parts, node
from tests.servers.redis import RedisServer, what_is_missing

pytestmark = pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())

ONE, TWO = "n1:a", "n2:b"
SIX = Head(6, 1_000)


class Side:
    """A node's heads, and what it takes for the owner of everything."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.view = SlotView(7, ONE, 3)
        self.may_renew = True
        self.heads = RedisHeads(
            parts.client, parts.generation, parts.incarnation, lambda _conversation: self.view, lambda: self.may_renew
        )

    async def write(self, conversation_id: str, head: Head, epoch: int = 3) -> None:
        self.heads.write(conversation_id, epoch, head)
        self.heads.flush()
        await self.parts.barrier()


@asynccontextmanager
async def sides(server: RedisServer) -> AsyncIterator[tuple[Side, Side]]:
    """An owner that writes, and a reader."""
    async with node(server.url, ONE, reads=False) as one, node(server.url, TWO, reads=False) as two:
        owner, reader = Side(one), Side(two)
        owner.heads.begin()
        await one.barrier()
        yield owner, reader


async def test_heads_are_read_in_one_round_trip_and_unknown_ones_are_missing(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", Head(5, 900))
        await owner.write("d1", SIX)
        await owner.write("d2", Head(1, 2))
        before = reader.parts.client.batches
        assert await reader.heads.heads(["d1", "d2", "d3"]) == {"d1": SIX, "d2": Head(1, 2)}
        assert reader.parts.client.batches - before <= 2
        assert (reader.heads.asked, reader.heads.found) == (3, 2)
        await owner.write("d1", Head(7, 1_100))
        assert await reader.heads.heads(["d1"]) == {"d1": Head(7, 1_100)}
        assert reader.parts.client.invalidations == 0


async def test_none_counts_of_an_owner_or_epoch_that_is_not_the_slots(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        for view in (SlotView(7, ONE, 4), SlotView(7, "n3:c", 3), SlotView(7, "", 3), SlotView(7, TWO, 3)):
            reader.view = view
            assert await reader.heads.heads(["d1"]) == {}


async def test_none_counts_of_a_slot_that_was_given_up(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        await owner.heads.give_up({7: 3})
        assert await reader.heads.heads(["d1"]) == {}
        reader.view = SlotView(7, ONE, 5)
        assert await reader.heads.heads(["d1"]) == {}
        await owner.write("d1", Head(9, 1_200), epoch=5)
        assert await reader.heads.heads(["d1"]) == {"d1": Head(9, 1_200)}
        owner.heads.end()
        owner.heads.begin()
        await owner.parts.barrier()
        assert await reader.heads.heads(["d1"]) == {}


async def test_after_a_flush_they_are_written_again(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        redis_server.flush()
        for side in (owner, reader):
            await side.parts.until(lambda side=side: side.parts.generations == [True, True])
            await side.parts.barrier()
        assert await reader.heads.heads(["d1"]) == {"d1": SIX}
        await owner.heads.give_up({7: 3})
        assert await reader.heads.heads(["d1"]) == {}


async def test_those_of_another_generation_do_not_count(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        with redis_server.client() as client:
            client.hset(heads_key(ONE), GENERATION_FIELD, "another")
        assert await reader.heads.heads(["d1"]) == {}


async def test_they_expire_with_their_owners_lease_and_not_before(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "RENEW_S", 0.01)
    async with sides(redis_server) as (owner, reader), trio.open_nursery() as nursery:
        await owner.write("d1", SIX)
        nursery.start_soon(owner.heads.run)
        with redis_server.client() as client:
            assert 0 < client.ttl(heads_key(ONE)) <= heads.HEADS_TTL_S
            # As if it had expired, and a head was written since: nothing says how high the others are.
            client.delete(heads_key(ONE))
            owner.heads.write("d2", 3, Head(1, 1))
            owner.heads.flush()
            with trio.fail_after(30):
                while await reader.heads.heads(["d1", "d2"]) != {"d1": SIX, "d2": Head(1, 1)}:
                    await owner.parts.barrier()
            owner.may_renew = False
            await owner.parts.barrier()
            client.delete(heads_key(ONE))
            await owner.write("d1", Head(7, 7))
            assert await reader.heads.heads(["d1"]) == {}
        nursery.cancel_scope.cancel()


async def test_a_large_hash_is_begun_anew(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "RENEW_S", 0.01)
    monkeypatch.setattr(heads, "FIELDS_MAX", 10)
    monkeypatch.setattr(heads, "REMEMBERED_MAX", 8)
    async with sides(redis_server) as (owner, reader), trio.open_nursery() as nursery:
        for number in range(20):
            await owner.write(f"d{number}", Head(number, 0))
        begun = owner.heads.hashes
        nursery.start_soon(owner.heads.run)
        with trio.fail_after(30):
            while owner.heads.hashes == begun:
                await owner.parts.barrier()
        nursery.cancel_scope.cancel()
        await owner.parts.barrier()
        known = await reader.heads.heads([f"d{number}" for number in range(20)])
        assert 0 < len(known) <= 8
        assert known["d19"] == Head(19, 0)


async def test_a_node_that_is_alone_writes_nothing(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        owner.heads.end()
        await owner.parts.barrier()
        before = owner.parts.client.commands
        owner.heads.write("d1", 3, Head(7, 7))
        owner.heads.flush()
        assert owner.parts.client.commands == before
        await owner.heads.give_up({7: 3})
        with redis_server.client() as client:
            assert client.exists(heads_key(ONE)) == 0
        assert await reader.heads.heads(["d1"]) == {}
