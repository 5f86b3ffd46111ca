"""Who lives and is not heard of has lost parcels; who is dead or has only just come has not."""

import pytest
import trio
from trio.testing import MockClock

from gateway.cluster.silences import SILENCE_S, Silences
from store.coordination import LeaseRecord


def row(nonce: int) -> LeaseRecord:
    return LeaseRecord("b", "b", nonce, True, "b:1", True, False, 1)


async def test_a_living_node_that_is_not_heard_of_is_told_of_again_and_again(autojump_clock: MockClock) -> None:
    silences, heard_s = Silences("a"), {"b": trio.current_time()}
    told = []
    for second in range(31):
        if silences.look({"a": row(second), "b": row(second)}, heard_s):
            told.append(second)
        await trio.sleep(1)
    assert told == [8, 16, 24]


async def test_a_node_that_is_heard_of_is_not_silent(autojump_clock: MockClock) -> None:
    silences, heard_s = Silences("a"), {"b": 0.0}
    for second in range(31):
        if second % 4 == 0:
            heard_s["b"] = trio.current_time()
        assert silences.look({"a": row(1), "b": row(second)}, heard_s) == []
        await trio.sleep(1)


async def test_a_node_that_does_not_renew_its_lease_is_left_to_the_watch(autojump_clock: MockClock) -> None:
    silences = Silences("a")
    for _ in range(31):
        assert silences.look({"b": row(7)}, {}) == []
        await trio.sleep(1)
    assert silences.look({"b": row(8)}, {}) == []
    await trio.sleep(1)
    assert silences.look({"b": row(9)}, {}) == ["b"], "it was only paused"


@pytest.mark.parametrize("seen_s", [[1.0], [1.0, 3.0], [0.0, 1.0, 2.0, 3.0], [9.0], [2.0, 15.0]])
async def test_a_node_that_was_killed_is_left_to_the_watch_whenever_its_last_renewals_are_seen(
    autojump_clock: MockClock, seen_s: list[float]
) -> None:
    """The last look at the leases was before its last parcel, it lived on for a while, and one renewal came late."""
    silences, heard_s = Silences("a"), {"b": trio.current_time()}
    for second in range(31):
        renewals = sum(each <= second for each in seen_s)
        assert silences.look({"b": row(7 + renewals)}, heard_s) == []
        await trio.sleep(1)


async def test_what_could_not_be_heard_is_not_counted(autojump_clock: MockClock) -> None:
    silences = Silences("a")
    silences.look({"b": row(1)}, {})
    await trio.sleep(SILENCE_S)
    silences.begin_anew()
    assert silences.look({"b": row(2)}, {}) == []
