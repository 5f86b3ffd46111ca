"""A Redis that drops data when its memory is full: every message arrives all the same, and the operator is told."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from deploy.redis import RedisServer
from protocol.client import Client, Resumed, connect
from tests.fakes.waiting import bodies, next_of
from tests.process.cluster_nodes import DEADLINE_S, PATIENT, ClusterNodes
from tests.process.test_cluster_presence import until_logged
from tests.process.test_two_clients import Eager
from tests.servers import redis

pytestmark = pytest.mark.process

MEMORY_BYTES = 8 << 20
JUNK_BYTES = 100_000
ROUNDS = 3
GROUPS = 8


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """It drops any keys whatever to make room for new ones."""
    if missing := redis.what_is_missing():
        pytest.skip(missing)
    options = ("--maxmemory", str(MEMORY_BYTES), "--maxmemory-policy", "allkeys-random")
    with RedisServer(tmp_path / "redis", *options) as server:
        yield server


def fill(server: RedisServer) -> None:
    """Write more than fits, so that of all that was there something goes."""
    with server.client() as client:
        for number in range(2 * MEMORY_BYTES // JUNK_BYTES):
            client.set(f"junk:{number}", b"x" * JUNK_BYTES)
        assert client.info("stats")["evicted_keys"]


async def say(client: Client, groups: list[str], word: str) -> list[str]:
    """Have something said in all groups; what it was."""
    for number, group in enumerate(groups):
        await client.send(group, f"{word} {number}")
    return [f"{word} {number}" for number in range(len(groups))]


async def test_what_redis_drops_costs_no_message_and_is_told(nodes: ClusterNodes, redis_server: RedisServer) -> None:
    first, second = [await trio.to_thread.run_sync(nodes.start, name, *PATIENT) for name in ("one", "two")]
    with trio.fail_after(DEADLINE_S):
        async with (
            connect(first.ws_url, token=first.token("alice"), device="a", rng=Eager()) as alice,
            connect(second.ws_url, token=second.token("bob"), device="b", rng=Eager()) as bob,
        ):
            heard = bob.events()
            await next_of(heard, Resumed)
            # Some of them are ordered by the first node, some by the second.
            groups = [
                (await alice.create_group(f"group {number}", ["bob"])).conversation_id for number in range(GROUPS)
            ]
            for number in range(ROUNDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.to_thread.run_sync, fill, redis_server)
                    said = await say(alice, groups, f"meanwhile {number}")
                said += await say(alice, groups, f"then {number}")
                assert sorted(await bodies(heard, len(said))) == sorted(said)
            for group in groups:
                page = await bob.history(group)
                assert [entry.seq for entry in page.entries] == list(range(1, 2 * ROUNDS + 2))
        for node in (first, second):
            await until_logged(node, "redis dropped data for want of memory")
    for node in (first, second):
        log = node.stderr_path.read_text()
        assert "this redis drops data when its memory is full" in log
        assert "set its maxmemory-policy to noeviction" in log
        assert "Traceback" not in log
