"""Error and close codes: every member complete, and advice for codes of the future."""

import pytest

from protocol.errors import CloseCode, ErrorCode, reconnect_advice
from protocol.limits import COMMAND_BYTES_MAX, FRAGMENTS_MAX
from protocol.websocket import encode_close, parse_close

# For codes that this version does not know, the range decides.
RANGES = {range(4000, 4100): {"backoff", "now"}, range(4100, 4200): {"new_token"}, range(4200, 4300): {"never"}}


@pytest.mark.parametrize("code", ErrorCode)
def test_error_codes_fit_one_byte_of_msgpack_and_explain_themselves(code: ErrorCode) -> None:
    assert 1 <= code <= 127
    assert len(code.meaning) > 10
    assert isinstance(code.retry, bool)
    assert ErrorCode(int(code)) is code


def test_retryable_errors_are_those_in_which_time_helps() -> None:
    assert {code for code in ErrorCode if code.retry} == {
        ErrorCode.RATE_LIMITED,
        ErrorCode.UNAVAILABLE,
        ErrorCode.OUTCOME_UNKNOWN,
        ErrorCode.INTERNAL,
        ErrorCode.OVERLOADED,
    }


@pytest.mark.parametrize("code", CloseCode)
def test_close_codes_may_be_sent_and_lie_in_the_range_of_their_advice(code: CloseCode) -> None:
    assert parse_close(encode_close(code, code.meaning)[2:])[0] == code
    assert CloseCode(int(code)) is code
    assert reconnect_advice(code) == code.reconnect
    if code >= 4000:
        assert code.reconnect in next(advice for numbers, advice in RANGES.items() if code in numbers)
    else:
        assert code.reconnect in {"backoff", "never"}


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (1005, "backoff"),  # a close frame without a code
        (1006, "backoff"),  # no close frame at all
        (3999, "backoff"),
        (4099, "backoff"),
        (4199, "new_token"),
        (4299, "never"),
        (4300, "backoff"),
    ],
)
def test_unknown_close_codes_follow_their_range(code: int, advice: str) -> None:
    assert code not in set(CloseCode)
    assert reconnect_advice(code) == advice


def test_numbers_in_the_meanings_are_the_limits() -> None:
    assert f"{COMMAND_BYTES_MAX:,} bytes" in CloseCode.TOO_BIG.meaning
    assert f"{FRAGMENTS_MAX} fragments" in CloseCode.TOO_BIG.meaning
