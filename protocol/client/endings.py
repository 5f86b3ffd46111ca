"""Why a connection, or an attempt at one, ended, and what to do next: one table for every way it can end."""

import os
from collections.abc import Iterable

from msgspec import Struct

from protocol.client.errors import ClientClosed, ClientError, Replaced, TokenRefused
from protocol.errors import CloseCode, reconnect_advice

_BODY_CHARS_MAX = 200
"""Characters of an HTTP error's body that go into a message to the user: one readable line."""

_RETRY_AFTER_S_MAX = 3600.0
"""Seconds of Retry-After that are obeyed at most; more would look like a client that hangs."""


class Ending(Struct, frozen=True):
    """What is known about an end.

    Attributes:
        advice: now, backoff, new_token or never, as CloseCode.reconnect.
        reason: one sentence for a person.
        code: WebSocket close code or HTTP status; 0 when the network failed.
        after_s: do not try again earlier than this, seconds.
        abandoned: whether the node may still take for a connection what was given up here.
    """

    advice: str
    reason: str
    code: int = 0
    after_s: float = 0.0
    abandoned: bool = False

    def error(self) -> ClientClosed:
        """The error that tells a user of this end, for ends that are final."""
        if self.code == CloseCode.REPLACED:
            return Replaced(self.reason, self.code)
        if self.advice == "new_token":
            return TokenRefused(self.reason, self.code)
        return ClientClosed(self.reason, self.code)


class ConnectionEnded(ClientError):
    """Carries an Ending out of the tasks of one connection. Stays inside the client."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


def from_close(code: int, reason: str | None) -> Ending:
    """The ending told by a WebSocket close."""
    if code in _CLOSE_CODES:
        meaning = _CLOSE_CODES[code].meaning
    elif code in {1005, 1006}:
        meaning = "the connection broke off"
    else:
        meaning = f"the node closed the connection with code {code}"
    if code == CloseCode.REPLACED:
        meaning += "; give each client a device name of its own"
    return Ending(reconnect_advice(code), f"{meaning} ({reason})" if reason else meaning, code)


_CLOSE_CODES = {int(code): code for code in CloseCode}


def from_rejection(
    status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes | None, *, was_online: bool
) -> Ending:
    """The ending told by an HTTP answer instead of an upgrade.

    A status that only a person can put right is final, unless this client was online before: then it is rather a
    load balancer in the middle of a change.
    """
    text = " ".join((body or b"").decode("utf-8", "replace").split())[:_BODY_CHARS_MAX]
    reason = f"the node answered HTTP {status}" + (f": {text}" if text else "")
    if status in {401, 403}:
        return Ending("new_token", reason, status)
    if status in {408, 425, 429} or status >= 500 or was_online:
        return Ending("backoff", reason, status, _retry_after_s(headers))
    return Ending("never", reason, status)


def from_network(error: OSError, address: str) -> Ending:
    """The ending told by the network: no such host, nobody listening, no route."""
    # trio.open_tcp_stream packs one error per address it tried; the last of a chain says what happened.
    inner: BaseException = error
    while isinstance(inner.__cause__, BaseExceptionGroup | OSError):
        inner = inner.__cause__
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    if isinstance(inner, OSError) and inner.errno is not None and inner.errno > 0:
        why = os.strerror(inner.errno)
    else:  # a failed look-up of the name has numbers of its own
        why = str(inner) or type(inner).__name__
    return Ending("backoff", f"cannot reach {address}: {why.lower()}")


def _retry_after_s(headers: Iterable[tuple[bytes, bytes]]) -> float:
    """Seconds of a Retry-After header; the form with a date counts as absent, as do garbage and negatives."""
    for name, value in headers:
        if name.lower() == b"retry-after" and value.strip().isdigit():
            return min(float(value), _RETRY_AFTER_S_MAX)
    return 0.0
