"""When a new generation of hints begins, with a real Redis."""

from pathlib import Path

import pytest
import trio

from gateway.cluster import generation
from gateway.cluster.redis_keys import GENERATION
from tests.gateway.cluster.redis_parts import PATIENCE_S, node
from tests.servers.redis import RedisServer, what_is_missing

pytestmark = pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())


async def test_all_nodes_agree_on_its_name(redis_server: RedisServer) -> None:
    async with node(redis_server.url, "n1:a") as one, node(redis_server.url, "n2:b") as two:
        assert one.generation.current == two.generation.current != ""
        redis_server.flush()
        await one.until(lambda: one.generations == [True, True])
        await two.until(lambda: two.generations == [True, True])
        await one.barrier()
        await two.barrier()
        assert one.generation.current == two.generation.current != ""


async def test_a_deleted_key_begins_one_at_once(redis_server: RedisServer) -> None:
    async with node(redis_server.url, "n1:a") as one:
        with redis_server.client() as client:
            client.delete(GENERATION)
        await one.until(lambda: one.generations == [True, True])


async def test_a_lost_connection_to_the_same_data_begins_none(redis_server: RedisServer) -> None:
    async with node(redis_server.url, "n1:a") as one:
        before = one.generation.current
        with redis_server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        await one.until(lambda: one.generations == [True, False])
        assert one.generation.current == before
        assert one.generation.begun == 1


async def test_a_restored_snapshot_begins_one(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with node(server.url, "n1:a") as one:
            server.take_snapshot()
            with server.client() as client:
                named = client.get(GENERATION)
            await trio.to_thread.run_sync(server.restart_from_snapshot)
            await one.until(lambda: one.generations == [True, True])
            with server.client() as client:
                assert client.get(GENERATION) == named


async def test_it_is_nobodys_while_redis_is_away(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with node(server.url, "n1:a") as one:
            gone = trio.Event()
            one.generation.on_away.append(gone.set)
            server.kill()
            with trio.fail_after(PATIENCE_S):
                await gone.wait()
            assert one.generation.current == ""


async def test_data_dropped_for_want_of_memory_begins_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "POLL_S", 0.05)
    with RedisServer(tmp_path, "--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru") as server:
        async with node(server.url, "n1:a") as one:
            with server.client() as client:
                for number in range(100):
                    client.set(f"other:{number}", b"x" * 100_000)
            await one.until(lambda: len(one.generations) > 1)
            assert one.generations[1]


async def test_another_process_goes_on_with_the_same_one_and_is_told_of_a_new_one(redis_server: RedisServer) -> None:
    async with node(redis_server.url, "n1:a") as one:
        told: list[bool] = []
        one.generation.on_new.append(told.append)
        one.generation.resume(one.generation.current)
        assert told == []
        one.generation.resume("what the process before relied on, until a flush")
        assert told == [True]
