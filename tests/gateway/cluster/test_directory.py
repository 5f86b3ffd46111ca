"""Where users are, with a real Redis."""

from pathlib import Path

import pytest

from gateway.cluster import directory
from gateway.cluster.places import GROUP_MIN
from gateway.cluster.redis_keys import sessions
from tests.gateway.cluster.redis_parts import node
from tests.servers.redis import RedisServer, what_is_missing

pytestmark = pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())


async def test_who_is_registered_is_found_by_others_and_who_left_is_not(redis_server: RedisServer) -> None:
    async with node(redis_server.url, "n1:a") as one, node(redis_server.url, "n2:b") as two:
        assert await two.find("ann", "bob") == {"ann": (), "bob": ()}
        await one.come("ann")
        await two.barrier()
        assert two.invalidated == [["ann"]]
        assert await two.find("ann", "bob") == {"ann": ("n1:a",), "bob": ()}
        one.go("ann")
        await one.barrier()
        await two.barrier()
        assert two.invalidated == [["ann"], ["ann"]]
        assert await two.find("ann") == {"ann": ()}


async def test_what_was_found_is_not_asked_again_until_it_changes(redis_server: RedisServer) -> None:
    async with node(redis_server.url, "n1:a") as one, node(redis_server.url, "n2:b") as two:
        await one.come("ann")
        for _ in range(3):
            await two.find("ann")
        assert two.directory.lookups == 1
        assert two.directory.cache_hits == 2
        assert two.directory.cached("ann") == ("n1:a",)
        await two.come("ann")
        await two.barrier()
        assert two.directory.cached("ann") is None
        found = await two.find("ann")
        assert found is not None
        assert sorted(found["ann"]) == ["n1:a", "n2:b"]


async def test_the_cache_is_bounded(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "CACHED_USERS_MAX", 10)
    async with node(redis_server.url, "n1:a") as one:
        users = [f"user{number}" for number in range(100)]
        await one.find(*users)
        assert sum(one.directory.cached(user) is not None for user in users) <= 10
        assert one.directory.cached(users[-1]) is not None


async def test_the_dead_are_void_once_a_look_could_have_seen_them(redis_server: RedisServer) -> None:
    async with node(redis_server.url, "n1:a") as one, node(redis_server.url, "n2:b") as two:
        await one.come("ann")
        assert await two.find("ann") == {"ann": ("n1:a",)}
        assert not two.directory.is_void("n1:a")
        two.nodes.looked_s = float("inf")
        assert two.directory.is_void("n1:a")
        two.nodes.live = {"n1:a"}
        assert not two.directory.is_void("n1:a")
        two.nodes.live = {"n2:b"}
        await two.come("ann")
        await two.barrier()
        assert await two.find("ann") == {"ann": ("n2:b",)}
        assert two.directory.voids == 1
        await two.barrier()
        with redis_server.client() as client:
            assert client.smembers(sessions("ann")) == {b"n2:b"}


async def test_a_flush_has_everybody_registered_anew(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "SLICE_USERS", 7)
    users = [f"user{number}" for number in range(50)]
    async with node(redis_server.url, "n1:a") as one, node(redis_server.url, "n2:b") as two:
        for user in users:
            await one.come(user)
        await two.find(*users)
        redis_server.flush()
        await one.until(lambda: one.generations == [True, True])
        await two.until(lambda: two.generations == [True, True])
        assert None in two.invalidated
        for user in users:
            await one.directory.registered(user)
        assert await two.find(*users) == dict.fromkeys(users, ("n1:a",))


async def test_what_happened_while_redis_was_away_is_made_up_for(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with node(server.url, "n1:a") as one:
            await one.come("ann")
            server.pause()
            one.go("ann")
            # Waits until Redis is away, and no longer.
            await one.come("bob")
            assert one.client.away
            await one.come("carl")
            assert await one.find("ann") is None
            assert not await one.barrier()
            server.resume()
            await one.until(lambda: one.generations == [True, False])
            await one.directory.registered("bob")
            await one.directory.registered("carl")
            assert await one.find("ann", "bob", "carl") == {"ann": (), "bob": ("n1:a",), "carl": ("n1:a",)}


async def test_of_a_large_group_only_who_changed_is_asked_for_again(redis_server: RedisServer) -> None:
    group = tuple(f"user{number}" for number in range(GROUP_MIN))
    async with node(redis_server.url, "n1:a") as one, node(redis_server.url, "n2:b") as two:
        await one.come("user1")
        first = await two.find_group(group)
        assert first == {**dict.fromkeys(group, ()), "user1": ("n1:a",)}
        assert await two.find_group(group) is first
        assert two.directory.lookups == GROUP_MIN
        await one.come("user2")
        one.go("user1")
        await one.barrier()
        await two.barrier()
        assert await two.find_group(group) == {**dict.fromkeys(group, ()), "user2": ("n1:a",)}
        assert first["user1"] == ("n1:a",), "what was found is not changed afterwards"
        assert two.directory.lookups == GROUP_MIN + 2
        redis_server.flush()
        await one.until(lambda: one.generations == [True, True])
        await two.until(lambda: two.generations == [True, True])
        await one.directory.registered("user2")
        assert await two.find_group(group) == {**dict.fromkeys(group, ()), "user2": ("n1:a",)}
        assert two.directory.lookups == 2 * GROUP_MIN + 2


async def test_a_large_group_is_not_known_while_redis_is_away(tmp_path: Path) -> None:
    group = tuple(f"user{number}" for number in range(GROUP_MIN))
    with RedisServer(tmp_path) as server:
        async with node(server.url, "n1:a") as one:
            await one.find_group(group)
            server.pause()
            assert not await one.barrier()
            assert await one.find_group(group) is None
            server.resume()
