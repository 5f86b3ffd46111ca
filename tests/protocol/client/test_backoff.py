import random

from hypothesis import given
from hypothesis import strategies as st

from protocol.client.backoff import Backoff


@given(seed=st.integers(), failures=st.integers(1, 2000))
def test_delay_is_between_zero_and_a_bound_that_doubles_up_to_the_maximum(seed: int, failures: int) -> None:
    backoff = Backoff(1.0, 30.0, random.Random(seed))
    for n in range(1, failures + 1):
        delay = backoff.fail()
        assert 0.0 <= delay <= min(30.0, 2.0 ** min(n - 1, 10))


def test_bounds_are_1_2_4_8_16_30_seconds() -> None:
    backoff = Backoff(1.0, 30.0, random.Random(1))
    bounds = []
    for _ in range(7):
        backoff.fail()
        bounds.append(backoff.bound())
    assert bounds == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_jitter_is_full() -> None:
    delays = [Backoff(1.0, 30.0, random.Random(seed)).fail() for seed in range(200)]
    assert min(delays) < 0.05
    assert max(delays) > 0.95


def test_at_once_is_granted_to_the_first_failure_only() -> None:
    backoff = Backoff(1.0, 30.0, random.Random(1))
    assert backoff.fail(at_once=True) == 0.0
    assert backoff.fail(at_once=True) > 0.0
    backoff.succeed()
    assert backoff.fail(at_once=True) == 0.0
