"""The heads of conversations, with a real Redis: none that is too low may count."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from gateway.broker import Head
from gateway.cluster import heads, own_heads
from gateway.cluster.heads import GENERATION_FIELD, RedisHeads
from gateway.cluster.own_heads import OwnHeads
from gateway.cluster.ports import SlotView
from gateway.cluster.redis_keys import heads as heads_key
from tests.gateway.cluster.redis_parts import Parts, node
from tests.servers.redis import RedisServer, what_is_missing

pytestmark = pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())

ONE, TWO = "n1:a", "n2:b"
SIX = Head(6, 1_000)


class Side:
    """A node's heads, and what it takes for the owner of everything.

    Attributes:
        believed_from: as the last parcel of the other node said.
        voids: times that others had to be told that heads do not count.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.view = SlotView(7, ONE, 3)
        self.own = OwnHeads()
        self.believed_from: int | None = 1
        self.voids = 0
        self.heads = RedisHeads(
            parts.client, parts.generation, parts.incarnation, self.own, lambda _incarnation: self.believed_from
        )
        self.heads.on_void = self.void

    def void(self) -> None:
        self.voids += 1

    async def write(self, conversation_id: str, head: Head, epoch: int = 3) -> None:
        self.own.note(conversation_id, epoch, head)
        self.heads.flush()
        await self.parts.barrier()

    async def read(self, *conversation_ids: str) -> dict[str, Head]:
        return dict(await self.heads.heads(dict.fromkeys(conversation_ids, self.view)))


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
        assert await reader.read("d1", "d2", "d3") == {"d1": SIX, "d2": Head(1, 2)}
        assert reader.parts.client.batches - before <= 2
        assert (reader.heads.asked, reader.heads.found) == (3, 2)
        await owner.write("d1", Head(7, 1_100))
        assert await reader.read("d1") == {"d1": Head(7, 1_100)}
        assert reader.parts.client.invalidations == 0


async def test_none_counts_of_an_owner_or_epoch_that_is_not_the_slots(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        for view in (SlotView(7, ONE, 4), SlotView(7, "n3:c", 3), SlotView(7, "", 3), SlotView(7, TWO, 3)):
            reader.view = view
            assert await reader.read("d1") == {}


async def test_a_hash_begun_after_a_pause_has_no_heads_of_before_it(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        first = owner.heads.hashes
        owner.heads.end()
        owner.own.note("d1", 3, Head(7, 7))
        await owner.parts.barrier()
        assert await reader.read("d1") == {}
        assert owner.heads.counts_from == first + 1
        owner.heads.begin()
        await owner.parts.barrier()
        assert owner.heads.hashes == first + 1
        assert await reader.read("d1") == {"d1": Head(7, 7)}


async def test_a_hash_counts_only_from_the_number_on_that_its_owner_told(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        reader.believed_from = None
        assert await reader.read("d1") == {}
        reader.believed_from = owner.heads.hashes + 1
        assert await reader.read("d1") == {}
        reader.believed_from = owner.heads.hashes
        assert await reader.read("d1") == {"d1": SIX}


async def test_who_loses_redis_voids_its_hash_before_it_acknowledges_without_it(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        stale = owner.heads.hashes
        with redis_server.client() as client:
            # The owner's connection is cut; the reader's goes on, and finds the hash as it was.
            for each in client.client_list():
                if each["name"] == ONE:
                    client.client_kill_filter(_id=each["id"], skipme=False)
        acknowledged = []
        owner.own.note("d1", 3, Head(7, 7))
        owner.heads.flush()
        owner.parts.directory.barrier(lambda known: acknowledged.append((known, owner.heads.counts_from)))
        await owner.parts.until(lambda: owner.parts.generations == [True, False])
        assert acknowledged == [(False, stale + 1)]
        assert owner.voids == 1
        reader.believed_from = owner.heads.counts_from
        await owner.parts.barrier()
        assert await reader.read("d1") == {"d1": Head(7, 7)}
        assert owner.heads.hashes == stale + 1


async def test_heads_that_find_no_generation_are_void(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, _reader):
        await owner.write("d1", SIX)
        owner.parts.generation.lost()  # as while its name is being asked
        owner.own.note("d1", 3, Head(7, 7))
        owner.heads.flush()
        assert owner.heads.counts_from == owner.heads.hashes + 1
        assert owner.voids == 1


async def test_another_process_of_an_incarnation_begins_with_a_higher_number(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        later = RedisHeads(
            owner.parts.client, owner.parts.generation, ONE, OwnHeads(), lambda _incarnation: None, last_hash=1_000
        )
        reader.believed_from = later.counts_from
        assert await reader.read("d1") == {}
        later.begin()
        await owner.parts.barrier()
        assert later.hashes == 1_001
        assert await reader.read("d1") == {}


async def test_after_a_flush_they_are_written_again(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        redis_server.flush()
        for side in (owner, reader):
            await side.parts.until(lambda side=side: side.parts.generations == [True, True])
            await side.parts.barrier()
        assert await reader.read("d1") == {"d1": SIX}
        assert owner.voids == 0


async def test_those_of_another_generation_do_not_count(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        with redis_server.client() as client:
            client.hset(heads_key(ONE), GENERATION_FIELD, "another")
        assert await reader.read("d1") == {}


async def test_a_hash_that_expired_does_not_count_until_it_was_begun_anew(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        with redis_server.client() as client:
            assert 0 < client.ttl(heads_key(ONE)) <= heads.HEADS_TTL_S
            # As if it had expired, and a head was written since: nothing says how high the others are.
            client.delete(heads_key(ONE))
        await owner.write("d2", Head(1, 1))
        assert await reader.read("d1", "d2") == {}
        monkeypatch.setattr(heads, "RENEW_S", 0.01)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(owner.heads.run)
            with trio.fail_after(30):
                while await reader.read("d1", "d2") != {"d1": SIX, "d2": Head(1, 1)}:
                    await owner.parts.barrier()
            nursery.cancel_scope.cancel()


async def test_a_large_hash_is_begun_anew(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "RENEW_S", 0.01)
    monkeypatch.setattr(heads, "FIELDS_MAX", 10)
    monkeypatch.setattr(own_heads, "REMEMBERED_MAX", 8)
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
        known = await reader.read(*(f"d{number}" for number in range(20)))
        assert 0 < len(known) <= 8
        assert known["d19"] == Head(19, 0)


async def test_a_node_that_is_alone_writes_nothing(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        owner.heads.end()
        await owner.parts.barrier()
        before = owner.parts.client.commands
        owner.own.note("d1", 3, Head(7, 7))
        owner.heads.flush()
        assert owner.parts.client.commands == before
        with redis_server.client() as client:
            assert client.exists(heads_key(ONE)) == 0
        assert await reader.read("d1") == {}


async def test_what_others_believe_stays_believed_when_another_process_goes_on(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        heir = Side(owner.parts)
        heir.heads.restore(owner.heads.state())
        heir.heads.begin()  # it writes already
        assert heir.heads.counts_from == owner.heads.counts_from
        await heir.write("d2", SIX)
        reader.believed_from = heir.heads.counts_from
        assert await reader.read("d1", "d2") == {"d1": SIX, "d2": SIX}
        assert heir.voids == 0


async def test_a_restored_snapshot_has_nothing_to_say(redis_server: RedisServer) -> None:
    async with sides(redis_server) as (owner, reader):
        await owner.write("d1", SIX)
        redis_server.take_snapshot()
        await owner.write("d1", Head(7, 7))
        before = [len(side.parts.generations) for side in (owner, reader)]
        await trio.to_thread.run_sync(redis_server.restart_from_snapshot)
        reader.believed_from = owner.heads.counts_from  # as parcels say when there are any again
        seen = set()
        with trio.fail_after(60):
            while any(len(side.parts.generations) == n for side, n in zip((owner, reader), before, strict=True)):
                seen.update((await reader.read("d1")).values())
                await trio.lowlevel.checkpoint()
            while Head(7, 7) not in seen:
                reader.believed_from = owner.heads.counts_from
                seen.update((await reader.read("d1")).values())
                await owner.parts.barrier()
        assert seen == {Head(7, 7)}
