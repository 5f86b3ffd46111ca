import errno

import pytest

from protocol.client.endings import from_close, from_network, from_rejection
from protocol.client.errors import ClientClosed, Replaced, TokenRefused
from protocol.errors import CloseCode


@pytest.mark.parametrize("code", list(CloseCode))
def test_every_close_code_gives_its_advice_and_meaning(code: CloseCode) -> None:
    ending = from_close(int(code), "because")
    assert ending.advice == code.reconnect
    assert ending.reason.startswith(code.meaning)
    assert ending.reason.endswith("(because)")


@pytest.mark.parametrize(
    ("code", "advice"),
    [(1006, "backoff"), (4050, "backoff"), (4150, "new_token"), (4250, "never"), (3000, "backoff")],
)
def test_unknown_codes_go_by_their_range(code: int, advice: str) -> None:
    assert from_close(code, None).advice == advice


def test_errors_by_ending() -> None:
    assert isinstance(from_close(4200, None).error(), Replaced)
    assert isinstance(from_close(4101, None).error(), TokenRefused)
    assert type(from_close(4201, None).error()) is ClientClosed
    assert "device" in str(from_close(4200, None).error())


@pytest.mark.parametrize(
    ("status", "was_online", "advice"),
    [
        (401, False, "new_token"), (403, False, "new_token"), (404, False, "never"), (404, True, "backoff"),
        (426, False, "never"), (429, False, "backoff"), (500, False, "backoff"), (503, False, "backoff"),
    ],
)  # fmt: skip
def test_http_statuses(status: int, was_online: bool, advice: str) -> None:
    ending = from_rejection(status, [], b"some \n words", was_online=was_online)
    assert ending.advice == advice
    assert ending.reason == f"the node answered HTTP {status}: some words"


@pytest.mark.parametrize(
    ("value", "after_s"), [(b"7", 7.0), (b" 7 ", 7.0), (b"-7", 0.0), (b"soon", 0.0), (b"9" * 30, 3600.0)]
)
def test_retry_after(value: bytes, after_s: float) -> None:
    assert from_rejection(503, [(b"Retry-After", value)], None, was_online=True).after_s == after_s


def test_network_errors_are_told_in_words() -> None:
    error = OSError("all attempts to connect failed")
    error.__cause__ = ExceptionGroup("", [ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")])
    assert from_network(error, "ws://h:1").reason == "cannot reach ws://h:1: connection refused"
