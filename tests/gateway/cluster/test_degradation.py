"""Going on without Redis is said when it begins and when it ends."""

import structlog
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.cluster.degradation import LOOK_S, Degradation
from store.recurring import LOG_AGAIN_S


class Redis:
    """Redis, and the nodes around: one that is alone does not need it."""

    def __init__(self) -> None:
        self.away = False
        self.alone = False


def watching(redis: Redis, reason: str = "it said nothing for 2 s", *, directly: bool = True) -> Degradation:
    return Degradation(lambda: redis.away, lambda: redis.alone, lambda: reason, directly=directly)


async def test_begin_and_end_are_logged_once_with_the_reason(autojump_clock: MockClock) -> None:
    redis = Redis()
    degradation = watching(redis)
    async with trio.open_nursery() as nursery:
        with structlog.testing.capture_logs() as lines:
            nursery.start_soon(degradation.run)
            await wait_all_tasks_blocked()
            assert (degradation.now, degradation.begun, lines) == (False, 0, [])
            redis.away = True
            await trio.sleep(4.5 * LOOK_S)
            assert (degradation.now, degradation.begun) == (True, 1)
            redis.away = False
            await trio.sleep(2 * LOOK_S)
        nursery.cancel_scope.cancel()
    begins, ends = lines
    assert begins["event"].startswith("degraded mode begins")
    assert (begins["reason"], begins["nodes_reached"]) == ("it said nothing for 2 s", "directly")
    assert (ends["event"], ends["lasted_s"]) == ("degraded mode ends", 4.0)


async def test_a_redis_that_was_never_there_is_said_too(autojump_clock: MockClock) -> None:
    redis = Redis()
    redis.away = True
    degradation = watching(redis, "there is no redis_url", directly=False)
    with structlog.testing.capture_logs() as lines:
        degradation.look()
        degradation.look()
    (line,) = lines
    assert "no cluster_secret" in line["nodes_reached"]


async def test_what_lasts_is_said_again_now_and_then(autojump_clock: MockClock) -> None:
    redis = Redis()
    redis.away = True
    degradation = watching(redis)
    with structlog.testing.capture_logs() as lines:
        with trio.move_on_after(2.5 * LOG_AGAIN_S):
            await degradation.run()
    assert [(line["event"].partition(":")[0], line.get("lasted_s")) for line in lines] == [
        ("degraded mode begins", None),
        ("degraded mode goes on", 60.0),
        ("degraded mode goes on", 120.0),
    ]


async def test_the_last_node_left_is_not_told_that_redis_is_back(autojump_clock: MockClock) -> None:
    redis = Redis()
    redis.away = True
    degradation = watching(redis)
    with structlog.testing.capture_logs() as lines:
        degradation.look()
        redis.alone = True
        degradation.look()
        degradation.look()
        assert not degradation.now
        redis.alone = False
        degradation.look()
    assert degradation.begun == 2
    begins, ends, again = lines
    assert begins["event"] == again["event"]
    assert ends["event"].startswith("degraded mode ends: no other node is left, and one alone needs no Redis")
    assert ends["reason"] == "it said nothing for 2 s"
