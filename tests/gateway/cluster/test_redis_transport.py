"""Parcels between nodes, with a real Redis."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from gateway.cluster import redis_transport
from gateway.cluster.links import Links
from gateway.cluster.parcels import Item, Parcel, TableChanged, encode_parcel
from gateway.cluster.redis_keys import inbox
from tests.gateway.cluster.redis_parts import node
from tests.servers.redis import RedisServer, what_is_missing

pytestmark = pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())


async def test_parcels_arrive_in_order(redis_server: RedisServer) -> None:
    sent = [b"parcel %d" % number for number in range(2_000)]
    async with node(redis_server.url, "n1:a") as one, node(redis_server.url, "n2:b") as two:
        taken: list[bool] = []
        for parcel in sent:
            one.transport.send("n2:b", parcel, taken.append)
        await two.until(lambda: len(two.parcels) == len(sent))
        await one.barrier()
        assert two.parcels == sent
        assert taken == [True] * len(sent)
        assert one.client.batches < 200
        assert two.inbox.reads < 200


async def test_a_node_has_read_all_that_was_taken_for_it_once_its_own_hello_comes_back(
    redis_server: RedisServer, nursery: trio.Nursery
) -> None:
    async with node(redis_server.url, "n1:a") as one, node(redis_server.url, "n2:b", reads=False) as two:
        links = Links("n2:b", two.transport, SimpleNamespace(live={}))
        heard: list[Item] = []
        links.received = lambda _sender, items: heard.extend(items)
        nursery.start_soon(links.run)
        for number in range(1, 1_001):
            parcel = Parcel("n1:a", number, [TableChanged(number)])
            one.transport.send("n2:b", encode_parcel(parcel), lambda _taken: None)
        await one.barrier()
        await nursery.start(two.inbox.run, two.transport.received)
        assert await links.read_up()
        assert heard == [TableChanged(number) for number in range(1, 1_001)]
        nursery.cancel_scope.cancel()


async def test_what_is_sent_to_nobody_is_not_taken_and_leaves_nothing(redis_server: RedisServer) -> None:
    async with node(redis_server.url, "n1:a") as one:
        assert not await one.send("n2:gone", b"parcel")
        assert one.transport.not_taken == 1
        # Its reader is connected once it has read something: one that never was leaves the inbox to expire.
        assert await one.send("n1:a", b"to itself")
        await one.until(lambda: one.parcels == [b"to itself"])
    with redis_server.client() as client:
        assert client.exists(inbox("n2:gone"), inbox("n1:a")) == 0


async def test_the_inbox_of_the_dead_is_removed(redis_server: RedisServer) -> None:
    async with node(redis_server.url, "n1:a") as one, node(redis_server.url, "n2:b", reads=False):
        assert await one.send("n2:b", b"parcel")
        one.transport.forget("n2:b")
        assert not await one.send("n2:b", b"parcel")


async def test_an_inbox_that_is_not_read_is_trimmed(redis_server: RedisServer) -> None:
    async with (
        node(redis_server.url, "n1:a", parcels_max=10) as one,
        node(redis_server.url, "n2:b", reads=False, parcels_max=10) as two,
    ):
        for number in range(1_000):
            one.transport.send("n2:b", b"parcel %d" % number, lambda _taken: None)
        await one.barrier()
        with redis_server.client() as client:
            assert client.xlen(inbox("n2:b")) < 300
            assert 0 < client.ttl(inbox("n2:b")) <= 60
        async with trio.open_nursery() as nursery:
            await nursery.start(two.inbox.run, two.take)
            await two.until(lambda: two.parcels[-1:] == [b"parcel 999"])
            nursery.cancel_scope.cancel()
        assert len(two.parcels) < 300


async def test_parcels_arrive_again_after_a_flush(redis_server: RedisServer) -> None:
    async with node(redis_server.url, "n1:a") as one, node(redis_server.url, "n2:b") as two:
        assert await one.send("n2:b", b"before")
        await two.until(lambda: two.parcels == [b"before"])
        redis_server.flush()
        await one.until(lambda: one.generations == [True, True])
        await two.until(lambda: two.generations == [True, True])
        await two.barrier()
        assert await one.send("n2:b", b"after")
        await two.until(lambda: two.parcels == [b"before", b"after"])


async def test_parcels_arrive_again_after_a_restart(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with node(server.url, "n1:a") as one, node(server.url, "n2:b") as two:
            server.kill()
            assert not await one.send("n2:b", b"lost")
            server.start()
            await one.until(lambda: one.generations == [True, True])
            await two.until(lambda: two.generations == [True, True])
            await two.barrier()
            assert await one.send("n2:b", b"after")
            await two.until(lambda: two.parcels == [b"after"])


async def test_a_redis_whose_clock_is_behind_is_read_from_its_beginning(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_transport, "RENEW_S", 0.0)
    async with node(redis_server.url, "n1:a") as one, node(redis_server.url, "n2:b") as two:
        with redis_server.client() as client:
            # As if the Redis before had a clock far ahead.
            client.xadd(inbox("n2:b"), {"p": "from the future"}, id="9999999999999999-0")
            await two.until(lambda: two.parcels == [b"from the future"])
            client.delete(inbox("n2:b"))
            client.xadd(inbox("n2:b"), {"p": "now"})
        await two.until(lambda: two.parcels[1:] == [b"now"])
        assert await one.send("n2:b", b"later")
        await two.until(lambda: two.parcels[-1] == b"later")
