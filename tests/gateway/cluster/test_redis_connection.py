import pytest

from gateway.cluster.redis_connection import LOSSES, RedisConnection, in_words
from gateway.cluster.redis_url import parse_redis_url
from tests.servers.redis import RedisServer, what_is_missing

pytestmark = pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())


def connect(server: RedisServer) -> RedisConnection:
    return RedisConnection(parse_redis_url(server.url), "tidegate-test", lambda _pushed: None)


def test_an_earlier_connection_is_ended_and_the_own_one_spared(redis_server: RedisServer) -> None:
    earlier, later = connect(redis_server), connect(redis_server)
    later.kill(earlier.make_ready().client_id)
    with pytest.raises(LOSSES):
        earlier.ask("PING")
    later.kill(later.make_ready().client_id)
    assert later.ask("PING") == b"PONG"
    later.close()


def test_silence_is_said_in_words(redis_server: RedisServer) -> None:
    connection = connect(redis_server)
    with pytest.raises(LOSSES) as caught:
        connection.reply(timeout_s=0.01)
    assert in_words(caught.value) == "it said nothing for 2 s"


def test_what_a_redis_is(redis_server: RedisServer) -> None:
    connection = connect(redis_server)
    ready = connection.make_ready()
    connection.close()
    with redis_server.client() as client:
        info = client.info()
    assert ready.identity.run_id == info["run_id"]
    assert ready.identity.replication_id == info["master_replid"]
    assert not ready.identity.evicts
    assert ready.version == info["redis_version"]
