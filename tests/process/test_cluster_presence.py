"""Presence across two real nodes: told, paused while Redis is away, and told again."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from deploy.redis import RedisServer
from protocol.client import Client, PresenceChanged, connect
from tests.process.cluster_nodes import DEADLINE_S, ClusterNode, ClusterNodes
from tests.process.test_two_clients import Eager
from tests.servers import redis

pytestmark = pytest.mark.process

GRACE_S = "1"


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may end and start again."""
    if missing := redis.what_is_missing():
        pytest.skip(missing)
    with RedisServer(tmp_path / "redis") as server:
        yield server


class Watcher:
    """Who is told."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._told = trio.Event()
        self.online: dict[str, bool] = {}

    async def listen(self) -> None:
        async for event in self._client.events():
            if isinstance(event, PresenceChanged):
                self.online[event.user] = event.online
                self._told.set()
                self._told = trio.Event()

    async def until(self, user: str, *, online: bool) -> None:
        while self.online.get(user) is not online:
            await self._told.wait()


def logged(node: ClusterNode, event: str) -> bool:
    lines = [json.loads(line) for line in node.stderr_path.read_text().splitlines() if line.startswith("{")]
    return any(line["event"].startswith(event) for line in lines)


async def until_logged(node: ClusterNode, event: str) -> None:
    """Wait for a line of a node's log, by asking the node for something else again and again."""
    while not logged(node, event):
        stream = await trio.open_tcp_stream(node.host, node.port)
        async with stream:
            await stream.send_all(b"GET /health/ready HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
            async for _ in stream:
                pass


async def test_presence_is_told_across_nodes_and_pauses_without_redis(
    nodes: ClusterNodes, redis_server: RedisServer
) -> None:
    start = partial(trio.to_thread.run_sync, nodes.start)
    first = await start("first", "--presence-grace-s", GRACE_S)
    second = await start("second", "--presence-grace-s", GRACE_S)
    reach = partial(connect, rng=Eager())
    with trio.fail_after(DEADLINE_S):
        async with reach(first.ws_url, token=first.token("alice"), device="a") as alice, trio.open_nursery() as nursery:
            watcher = Watcher(alice)
            nursery.start_soon(watcher.listen)
            await alice.create_direct("bob")
            (bob,) = await alice.watch_presence(["bob"])
            assert not bob.online
            async with reach(second.ws_url, token=second.token("bob"), device="b") as other:
                await other.wait_online()
                await watcher.until("bob", online=True)
                (bob,) = await alice.watch_presence(["bob"])
                assert bob.online
            await watcher.until("bob", online=False)
            await trio.to_thread.run_sync(redis_server.kill)
            for node in (first, second):
                await until_logged(node, "degraded mode begins")
            async with reach(second.ws_url, token=second.token("bob"), device="b") as other:
                await other.wait_online()
                assert watcher.online["bob"] is False, "nobody can know"
                await trio.to_thread.run_sync(redis_server.start)
                await watcher.until("bob", online=True)
                for node in (first, second):
                    await until_logged(node, "degraded mode ends")
            await watcher.until("bob", online=False)
            nursery.cancel_scope.cancel()


async def test_who_leaves_while_redis_stands_still_is_offline_after_its_return(
    nodes: ClusterNodes, redis_server: RedisServer
) -> None:
    start = partial(trio.to_thread.run_sync, nodes.start)
    first = await start("first", "--presence-grace-s", GRACE_S)
    second = await start("second", "--presence-grace-s", GRACE_S)
    reach = partial(connect, rng=Eager())
    with trio.fail_after(DEADLINE_S):
        async with reach(first.ws_url, token=first.token("alice"), device="a") as alice, trio.open_nursery() as nursery:
            watcher = Watcher(alice)
            nursery.start_soon(watcher.listen)
            for user in ("bob", "dave"):
                await alice.create_direct(user)
            await alice.watch_presence(["bob", "dave"])
            async with (
                reach(second.ws_url, token=second.token("bob"), device="b") as bob,
                reach(first.ws_url, token=first.token("dave"), device="d") as dave,
            ):
                for user, client in (("bob", bob), ("dave", dave)):
                    await client.wait_online()
                    await watcher.until(user, online=True)
                redis_server.pause()  # it keeps what it knows: that bob is connected
                for node in (first, second):
                    await until_logged(node, "degraded mode begins")
            (one, other) = await alice.watch_presence(["bob", "dave"])
            assert watcher.online == {"bob": True, "dave": True}, "nobody can know"
            assert (one.user, one.online, other.user) == ("bob", True, "dave")
            redis_server.resume()
            for user in ("bob", "dave"):
                await watcher.until(user, online=False)
            nursery.cancel_scope.cancel()
