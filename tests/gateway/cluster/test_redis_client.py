"""The connection to Redis, with a real one: order, invalidations, losses, logins, TLS, Sentinel and Redis Cluster."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from gateway.cluster import redis_client
from gateway.cluster.ports import Command, Identity
from gateway.cluster.redis_client import RedisClient
from gateway.cluster.redis_connection import REPLY_TIMEOUT_S
from gateway.cluster.redis_keys import PREFIX
from tests.gateway.cluster.redis_parts import PATIENCE_S, Changes
from tests.servers.redis import RedisCluster, RedisServer, RedisWithSentinel, what_is_missing

pytestmark = pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())

KEY = f"{PREFIX}test"


class Story(Changes):
    """A listener and all answers, in the order in which they came."""

    def __init__(self, client: RedisClient) -> None:
        super().__init__()
        self.events: list[object] = []
        self.identities: list[Identity] = []
        self._client = client
        client.listeners.append(self)

    def back(self, identity: Identity) -> None:
        self.identities.append(identity)
        self._add("back")

    def lost(self) -> None:
        self._add("lost")

    def invalidated(self, keys: Collection[str] | None) -> None:
        self._add(("invalidated", None if keys is None else tuple(keys)))

    def submit(self, *commands: Command) -> None:
        self._client.submit(commands, self._add)

    async def ask(self, *command: str | bytes | int) -> object:
        """One command's reply; None when its outcome is unknown."""
        answers: list[object] = []
        answered = trio.Event()

        def answer(replies: Sequence[object] | None) -> None:
            answers.extend(replies or [None])
            answered.set()

        self._client.submit([command], answer)
        await answered.wait()
        return answers[0]

    async def until_seen(self, event: object) -> None:
        await self.until(lambda: event in self.events)

    def _add(self, event: object) -> None:
        self.events.append(event)
        self.note()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[RedisClient, Story]]:
    client = RedisClient(url, name="tidegate-test")
    story = Story(client)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        await story.until_seen("back")
        yield client, story
        nursery.cancel_scope.cancel()


def tls_url(server: RedisServer) -> str:
    assert server.certificate
    return f"{server.url}?ssl_ca_certs={server.certificate.certificate_path}"


async def test_replies_come_in_the_order_of_the_commands(redis_server: RedisServer) -> None:
    async with connected(redis_server.url) as (client, story):
        for number in range(500):
            story.submit(("SET", KEY, number), ("GET", KEY))
        story.submit(("SMEMBERS", "nobody"), ("XREAD", "STREAMS", "none", "0"))
        await story.until_seen([[], None])
        replies = [event for event in story.events if isinstance(event, list)]
        assert replies == [*([b"OK", b"%d" % number] for number in range(500)), [[], None]]
        assert client.commands == 1002
        assert client.batches < 500
        assert not client.away
        assert client.away_reason == ""


async def test_a_change_is_reported_before_the_reply_of_anything_behind_it(redis_server: RedisServer) -> None:
    async with connected(redis_server.url) as (_, one), connected(redis_server.url) as (_, two):
        for number in range(20):
            await one.ask("SMEMBERS", KEY)
            await two.ask("SADD", KEY, number)
            # The other's change was made, so that whatever comes back from now on has to come behind its report.
            await one.ask("PING")
            assert one.events[-1] == ("invalidated", (KEY,))
            one.events.clear()


async def test_thousands_of_changes_at_once_are_all_reported(redis_server: RedisServer) -> None:
    keys = [f"{KEY}:{number}" for number in range(5_000)]
    async with connected(redis_server.url) as (client, one), connected(redis_server.url) as (_, two):
        one.submit(*(("GET", key) for key in keys))
        await one.until_seen([None] * len(keys))
        two.submit(*(("SET", key, 1) for key in keys))
        await two.until_seen([b"OK"] * len(keys))
        await one.ask("PING")
        assert client.invalidations == len(keys)
        assert {event[1][0] for event in one.events if isinstance(event, tuple)} == set(keys)


async def test_a_change_is_reported_even_if_nothing_is_asked(redis_server: RedisServer) -> None:
    async with connected(redis_server.url) as (_, one), connected(redis_server.url) as (_, two):
        await one.ask("GET", KEY)
        await two.ask("SET", KEY, 1)
        await one.until_seen(("invalidated", (KEY,)))


async def test_a_read_can_be_exempted_from_tracking(redis_server: RedisServer) -> None:
    async with connected(redis_server.url) as (client, one), connected(redis_server.url) as (_, two):
        one.submit(("CLIENT", "CACHING", "NO"), ("GET", KEY))
        await one.until_seen([b"OK", None])
        await two.ask("SET", KEY, 1)
        await one.ask("PING")
        assert client.invalidations == 0


async def test_a_flush_invalidates_everything(redis_server: RedisServer) -> None:
    async with connected(redis_server.url) as (_, story):
        await story.ask("GET", KEY)
        await trio.to_thread.run_sync(redis_server.flush)
        await story.ask("PING")
        assert story.events[-1] == ("invalidated", None)


async def test_a_restart_answers_what_is_pending_and_comes_back(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with connected(server.url) as (client, story):
            server.pause()
            story.submit(("SET", KEY, 1))
            story.submit(("GET", KEY))
            await trio.to_thread.run_sync(server.restart)
            await story.until(lambda: story.events.count("back") == 2)
            assert story.events == ["back", None, None, "lost", "back"]
            assert story.identities[0].run_id != story.identities[1].run_id
            assert await story.ask("GET", KEY) is None
            assert client.connects == 2
            assert client.unanswered == 2


async def test_what_a_paused_redis_was_sent_is_not_executed_when_it_goes_on(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with connected(server.url) as (client, story):
            server.pause()
            # More than Redis reads at once, so that some of it would be executed behind the next connection's words.
            story.submit(*(("RPUSH", KEY, b"x") for _ in range(30_000)))
            await story.until_seen("lost")
            assert client.away
            assert f"{REPLY_TIMEOUT_S:g} s" in client.away_reason
            story.submit(("PING",))
            assert story.events[-1] is None
            server.resume()
            await story.until(lambda: story.events.count("back") == 2)
            first = await story.ask("LLEN", KEY)
            for _ in range(20):
                assert await story.ask("LLEN", KEY) == first


async def test_too_much_at_once_is_answered_without_redis(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "COMMANDS_WAITING_MAX", 10)
    async with connected(redis_server.url) as (client, story):
        story.submit(*[("PING",)] * 11)
        story.submit(("PING",))
        assert story.events == ["back", None]
        await story.until_seen([b"PONG"] * 11)
        assert await story.ask("PING") == b"PONG"
        assert client.overloaded == 1


async def test_a_cancellation_does_what_was_submitted(redis_server: RedisServer) -> None:
    async with connected(redis_server.url) as (_, story):
        story.submit(("SET", KEY, "last"))
    assert story.events == ["back", [b"OK"]]
    story.submit(("PING",))
    assert story.events[-1] is None
    with redis_server.client() as other:
        assert other.get(KEY) == b"last"


async def test_a_refused_command_makes_redis_away(redis_server: RedisServer) -> None:
    async with connected(redis_server.url) as (client, story):
        await story.ask("SET", KEY, 1)
        story.submit(("SADD", KEY, 1), ("PING",))
        await story.until_seen("lost")
        assert story.events == ["back", None, "lost"]
        assert "refuses SADD: WRONGTYPE" in client.away_reason


class Refused(RedisClient):
    """Knows when the first attempt to connect has failed."""

    def __init__(self, url: str) -> None:
        super().__init__(url, name="tidegate-test")
        self.reason = ""
        self.tried = trio.Event()
        self._trio = trio.lowlevel.current_trio_token()

    def failed(self, reason: str) -> None:
        super().failed(reason)
        self.reason = reason
        self._trio.run_sync_soon(self.tried.set)


async def refused(url: str) -> str:
    """Why the client stays away."""
    client = Refused(url)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            await client.tried.wait()
            assert client.away
            assert client.away_reason == client.reason
            nursery.cancel_scope.cancel()
    return client.reason


async def test_password_and_tls(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="s3cret", tls=True) as server:
        async with connected(tls_url(server)) as (_, story):
            assert await story.ask("PING") == b"PONG"
        assert "password" in await refused(tls_url(server).replace(server.password, "wrong"))
        assert "certificate verify failed" in await refused(server.url)
        missing = await refused(f"{server.url}?ssl_ca_certs=/nonexistent.pem")
        assert missing == "ssl_ca_certs=/nonexistent.pem of redis_url cannot be read (No such file or directory): " + (
            "give a PEM file"
        )


async def test_any_name_will_do_in_the_client_list(redis_server: RedisServer) -> None:
    client = RedisClient(redis_server.url, name="tidegate knöten\n1")
    story = Story(client)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        await story.until_seen("back")
        assert await story.ask("CLIENT", "GETNAME") == b"tidegate_kn_ten_1"
        nursery.cancel_scope.cancel()


async def test_a_replica_and_a_full_redis_are_not_used(tmp_path: Path) -> None:
    with (
        RedisServer(tmp_path / "full", "--maxmemory", "100kb") as full,
        RedisServer(tmp_path / "replica", "--replicaof", full.address, str(full.port)) as replica,
    ):
        assert "takes no writes: command not allowed when used memory" in await refused(full.url)
        assert "is a replica" in await refused(replica.url)


async def test_a_failover_is_followed_by_sentinel(tmp_path: Path) -> None:
    with RedisWithSentinel(tmp_path) as redis:
        async with connected(f"redis+sentinel://{redis.sentinel_address}/tidegate") as (_, story):
            redis.servers[0].kill()
            await trio.to_thread.run_sync(redis.wait_failover)
            await story.until(lambda: story.events.count("back") == 2)
            assert story.identities[0].replication_id != story.identities[1].replication_id
            assert await story.ask("PING") == b"PONG"
        unknown = await refused(f"redis+sentinel://{redis.sentinel_address}/another")
        assert "no sentinel of redis_url tells a primary called 'another', the name behind the hosts" in unknown


async def test_a_url_of_the_wrong_kind_is_told_the_right_one(tmp_path: Path, redis_server: RedisServer) -> None:
    alone = await refused(redis_server.url.replace("redis://", "redis+cluster://"))
    assert "does not tell the slots of a Redis Cluster" in alone
    assert "redis_url has to begin with redis:// or rediss://" in alone
    with RedisServer(tmp_path, "--cluster-enabled", "yes") as member:
        member_alone = await refused(member.url)
        assert "is one of a Redis Cluster and has not all of tidegate's keys" in member_alone
        assert "redis+cluster://" in member_alone
        with member.client() as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)
            member.wait_until(
                lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok", 30, "whole cluster"
            )
        async with connected(member.url.replace("redis://", "redis+cluster://")) as (_, story):
            assert await story.ask("SET", KEY, 1) == b"OK"


async def test_the_shard_of_a_redis_cluster_is_found(tmp_path: Path) -> None:
    with RedisCluster(tmp_path) as cluster:
        hosts = ",".join(f"{server.address}:{server.port}" for server in cluster.servers)
        async with connected(f"redis+cluster://{hosts}") as (_, one), connected(f"redis+cluster://{hosts}") as (_, two):
            await one.ask("GET", KEY)
            await two.ask("SET", KEY, 1)
            assert await one.ask("GET", KEY) == b"1"
            assert one.events[-1] == ("invalidated", (KEY,))
