"""Going on without Redis is said when it begins and when it ends."""

import structlog
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.cluster.degradation import LOOK_S, Degradation


class Redis:
    def __init__(self) -> None:
        self.away = False


async def test_begin_and_end_are_logged_once_with_the_reason(autojump_clock: MockClock) -> None:
    redis = Redis()
    degradation = Degradation(lambda: redis.away, lambda: "it said nothing for 2 s", directly=True)
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
    degradation = Degradation(lambda: True, lambda: "there is no redis_url", directly=False)
    with structlog.testing.capture_logs() as lines:
        degradation.look()
        degradation.look()
    (line,) = lines
    assert "no cluster_secret" in line["nodes_reached"]
