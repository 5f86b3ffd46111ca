"""How a crowd leaves: in turns that fit its size and the time at hand, told when to come back, answered before."""

from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gateway.drain import BATCH, RECONNECTS_PER_S, SETTLE_S, STAY_AWAY_S, Drain, make_plan
from gateway.edge.connection import Connection
from protocol.errors import CloseCode
from protocol.frames import GoAway

WITHIN_S = 60.0


class Edge:
    """Connection table, hub and writer in one: notes who was told and closed when, seconds from the start.

    Connections go as soon as they are closed, but for those of ``stubborn`` users.
    """

    def __init__(self, count: int, *, stubborn: tuple[str, ...] = ()) -> None:
        self.by_fd = [None, *(Connection(None, f"u{number}") for number in range(count))]
        self.count = count
        self.stubborn = stubborn
        self.answered = True
        self.told: dict[str, tuple[float, int]] = {}
        self.closed: dict[str, float] = {}
        self.aborted: list[str] = []
        self._start = trio.current_time()

    def signal_connections(self, connections, push) -> None:
        assert len(connections) <= BATCH
        assert isinstance(push, GoAway)
        for connection in connections:
            self.told[connection.user] = (self._now, push.after_ms)

    def close(self, connection, code, _reason) -> None:
        assert code == CloseCode.SERVICE_RESTART
        assert connection.user in self.told
        if connection.user not in self.closed:
            self.closed[connection.user] = self._now
            if connection.user not in self.stubborn:
                self._remove(connection)

    def abort(self, connection) -> None:
        self.aborted.append(connection.user)
        self._remove(connection)

    async def drain(self, *, elsewhere: bool, within_s: float = WITHIN_S) -> int:
        drain = Drain(self, self, self, lambda: self.answered, elsewhere=elsewhere, random=Random(1))
        return await drain.run(within_s)

    @property
    def _now(self) -> float:
        return trio.current_time() - self._start

    def _remove(self, connection) -> None:
        self.by_fd[self.by_fd.index(connection)] = None
        self.count -= 1


async def test_where_other_nodes_take_them_batches_leave_in_turns_and_may_come_back_at_once(autojump_clock):
    edge = Edge(4_000)
    assert await edge.drain(elsewhere=True) == 0
    spread_s = 4_000 / RECONNECTS_PER_S
    told = sorted(at for at, _ in edge.told.values())
    assert told[0] == 0
    assert told[-1] == pytest.approx(spread_s, rel=0.1)
    assert told[2_000] == pytest.approx(spread_s / 2, rel=0.1)
    assert max(after_ms for _, after_ms in edge.told.values()) <= STAY_AWAY_S * 1000


async def test_where_they_wait_for_a_successor_all_leave_at_once_and_come_back_in_turns(autojump_clock):
    edge = Edge(4_000)
    assert await edge.drain(elsewhere=False) == 0
    assert max(edge.closed.values()) < 1
    waits_s = sorted(after_ms / 1000 for _, after_ms in edge.told.values())
    spread_s = 4_000 / RECONNECTS_PER_S
    assert waits_s[0] >= STAY_AWAY_S
    assert waits_s[-1] <= STAY_AWAY_S + spread_s
    assert waits_s[-1] - waits_s[0] > spread_s / 2


@pytest.mark.parametrize("elsewhere", [True, False])
async def test_nobody_is_closed_before_all_is_answered(elsewhere, autojump_clock):
    edge = Edge(250)
    edge.answered = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: edge.drain(elsewhere=elsewhere))
        await trio.sleep(2)
        assert len(edge.told) == 250
        assert not edge.closed
        edge.answered = True
    assert min(edge.closed.values()) == pytest.approx(2, abs=0.1)


async def test_what_is_never_answered_does_not_keep_anybody_for_long(autojump_clock):
    edge = Edge(250)
    edge.answered = False
    assert await edge.drain(elsewhere=True) == 0
    assert all(at - edge.told[user][0] == pytest.approx(SETTLE_S, abs=0.1) for user, at in edge.closed.items())


async def test_callers_without_a_connection_are_answered_too(autojump_clock):
    edge = Edge(0)
    edge.answered = False
    assert await edge.drain(elsewhere=False) == 0
    assert trio.current_time() - edge._start == pytest.approx(SETTLE_S, abs=0.1)


async def test_who_does_not_go_is_cut_at_the_end(autojump_clock):
    edge = Edge(300, stubborn=("u7", "u250"))
    assert await edge.drain(elsewhere=False, within_s=3) == 2
    assert edge.aborted == ["u7", "u250"]
    assert trio.current_time() - edge._start == pytest.approx(3)


async def test_without_any_time_everybody_is_cut(autojump_clock):
    edge = Edge(3, stubborn=("u0", "u1", "u2"))
    assert await edge.drain(elsewhere=False, within_s=0) == 3
    assert edge.count == 0
    assert sorted(edge.closed) == ["u0", "u1", "u2"], "somebody got no close frame"


async def test_a_huge_crowd_leaves_in_time(autojump_clock):
    edge = Edge(0)
    edge.by_fd = [Connection(None, f"u{number}") for number in range(100_000)]
    edge.count = len(edge.by_fd)
    edge._remove = lambda _connection: setattr(edge, "count", edge.count - 1)
    edge.abort = lambda _connection: None
    await edge.drain(elsewhere=True, within_s=20)
    assert len(edge.closed) == 100_000
    assert max(edge.closed.values()) < 16


# Subnormal numbers have too few digits for any sum to hold.
@given(st.integers(0, 2_000_000), st.floats(0, 3_600, allow_subnormal=False), st.booleans())
def test_every_plan_fits_the_time_at_hand(connections, within_s, elsewhere):
    plan = make_plan(connections, within_s, elsewhere=elsewhere)
    batches = -(-connections // BATCH)
    assert 0 <= plan.notice_s <= plan.settle_s
    assert plan.turn_s * batches + plan.settle_s <= within_s * 0.75 * (1 + 1e-9)
    assert 0 <= plan.away_min_s <= plan.away_max_s
