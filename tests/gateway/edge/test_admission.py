"""How much one user may ask for over HTTP, whatever the number of connections. (Of connections: test_commands.py.)"""

import pytest
from trio.testing import MockClock

from gateway.config import Settings
from gateway.edge import admission
from gateway.edge.admission import Admission
from gateway.edge.connection import ConnectionTable
from gateway.refusals import Refused
from protocol.errors import ErrorCode


def make(per_s: float, burst: int) -> Admission:
    return Admission(Settings(commands_per_s_max=per_s, commands_burst_max=burst), ConnectionTable())


def wait_ms(admitting: Admission, user: str) -> int:
    """How long a user is told to wait; 0: admitted, -1: not told as it should be."""
    try:
        admitting.admit_user(user)
    except Refused as refused:
        wait_ms = refused.retry_after_ms if refused.code is ErrorCode.RATE_LIMITED else -1
        return wait_ms if refused.message.endswith(f"in {wait_ms} ms") else -1
    return 0


async def test_a_user_gets_a_burst_and_then_the_rate(mock_clock: MockClock) -> None:
    admitting = make(8, 5)
    assert [wait_ms(admitting, "a") for _ in range(5)] == [0] * 5
    assert wait_ms(admitting, "a") == 126
    assert wait_ms(admitting, "a") == 126, "what was refused counts for nothing"
    assert admitting.refused == 2
    mock_clock.jump(0.126)
    assert wait_ms(admitting, "a") == 0
    assert wait_ms(admitting, "a") > 0
    mock_clock.jump(60)
    assert [wait_ms(admitting, "a") > 0 for _ in range(6)] == [False] * 5 + [True]


async def test_one_user_does_not_count_for_another(mock_clock: MockClock) -> None:
    admitting = make(1, 1)
    assert wait_ms(admitting, "a") == 0
    assert wait_ms(admitting, "a") > 0
    assert wait_ms(admitting, "b") == 0


async def test_without_a_limit_nothing_is_remembered() -> None:
    admitting = make(0, 1)
    assert [wait_ms(admitting, "a") for _ in range(1_000)] == [0] * 1_000
    assert admitting.users == 0


async def test_who_has_asked_nothing_for_a_while_is_forgotten(mock_clock: MockClock) -> None:
    admitting = make(1, 2)
    for n in range(100):
        wait_ms(admitting, f"u{n}")
    assert admitting.users == 100
    mock_clock.jump(2)
    for n in range(60):
        wait_ms(admitting, f"v{n}")
    assert admitting.users == 60


async def test_users_beyond_what_is_remembered_push_out_the_first(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "USERS_MAX", 3)
    admitting = make(1, 1)
    for user in ("a", "b", "c", "a", "d"):
        wait_ms(admitting, user)
    assert admitting.users == 3
    assert wait_ms(admitting, "a") > 0, "who goes on asking is remembered"
    assert wait_ms(admitting, "b") == 0
