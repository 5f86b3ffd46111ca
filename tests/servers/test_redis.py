from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster as ClusterClient
from redis.retry import Retry
from redis.sentinel import Sentinel

from deploy.processes import ServerFailed
from tests.servers.redis import PORT, PRIMARY_NAME, SENTINEL_PORT, RedisCluster, RedisServer, RedisWithSentinel
from tests.servers.redis import what_is_missing as redis_is_missing

pytestmark = pytest.mark.skipif(bool(redis_is_missing()), reason=redis_is_missing())


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


def test_the_shared_server_is_empty_at_first(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        assert client.dbsize() == 0
        client.set("left", "behind")


def test_the_shared_server_is_empty_for_the_next_test_too(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        assert client.dbsize() == 0
        client.set("left", "behind")


def test_a_restarted_server_has_forgotten_everything(own: RedisServer) -> None:
    with own.client() as client:
        client.set("key", "value")
        before = own.pid
        own.restart()
        assert own.pid != before
        assert client.dbsize() == 0


def test_a_server_comes_back_with_an_old_snapshot(own: RedisServer) -> None:
    with own.client() as client:
        client.set("key", "old")
        own.take_snapshot()
        client.set("key", "new")
        own.restart_from_snapshot()
        assert client.get("key") == b"old"
        own.restart()
        assert client.get("key") is None


def test_a_paused_server_accepts_connections_and_answers_nothing(own: RedisServer) -> None:
    own.pause()
    assert own.paused
    # The pause makes the wait certain to end by its timeout, however short that is.
    with (
        redis.Redis(own.address, PORT, socket_timeout=0.05, retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(redis.TimeoutError),
    ):
        client.ping()
    own.resume()
    assert not own.paused
    assert own.answers()


def test_password_and_tls_are_asked_for(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="secret", tls=True) as server:
        assert server.url.startswith("rediss://:secret@")
        assert server.certificate is not None
        trusted = str(server.certificate.certificate_path)
        cases = [
            ({"password": "wrong", "ssl": True, "ssl_ca_certs": trusted}, redis.AuthenticationError, "password"),
            ({"password": "secret", "ssl": True}, redis.ConnectionError, "certificate"),
            ({"password": "secret"}, redis.ConnectionError, "closed|reset"),
        ]
        for options, error, words in cases:
            once = Retry(NoBackoff(), retries=0)
            with redis.Redis(server.address, PORT, retry=once, **options) as client, pytest.raises(error, match=words):
                client.ping()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "--no-such-option", "1")
    with pytest.raises(ServerFailed, match="no-such-option"):
        server.start()
    assert not server.running


def test_the_sentinel_tells_the_new_primary(tmp_path: Path) -> None:
    with RedisWithSentinel(tmp_path) as group:
        primary, replica = group.servers
        assert group.primary_address() == primary.address
        primary.kill()
        group.wait_failover()
        sentinel = Sentinel([(group.sentinel_address, SENTINEL_PORT)])
        with sentinel.master_for(PRIMARY_NAME) as client:
            client.set("key", "value")
        with replica.client() as client:
            assert client.get("key") == b"value"
        for known in sentinel.sentinels:
            known.close()


def test_a_cluster_serves_keys_of_all_its_nodes(tmp_path: Path) -> None:
    with RedisCluster(tmp_path) as group:
        with ClusterClient(group.servers[0].address, PORT) as client:
            for number in range(20):
                client.set(f"key{number}", number)
        sizes = []
        for server in group.servers:
            with server.client() as client:
                sizes.append(client.dbsize())
        assert sum(sizes) == 20
        assert all(sizes)
