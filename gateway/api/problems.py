"""How the HTTP API says no: RFC 9457 problem documents, made from the protocol's error codes."""

from http import HTTPStatus
from math import ceil
from typing import Final

from msgspec import Struct

from gateway.refusals import Refused
from protocol.errors import ErrorCode
from protocol.frames import ErrorReply

PROBLEM_JSON: Final = "application/problem+json"

STATUS_OF: Final = {
    ErrorCode.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    ErrorCode.UNKNOWN_COMMAND: HTTPStatus.NOT_FOUND,
    ErrorCode.NOT_AUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    ErrorCode.TOKEN_REFUSED: HTTPStatus.UNAUTHORIZED,
    ErrorCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.FORBIDDEN: HTTPStatus.FORBIDDEN,
    ErrorCode.BODY_EMPTY: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.TOO_LONG: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.BEYOND_HEAD: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.CLIENT_MSG_ID_REUSED: HTTPStatus.CONFLICT,
    ErrorCode.MEMBERS_LIMIT: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.OUTCOME_UNKNOWN: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.OVERLOADED: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The HTTP status of every error code; a test holds it complete."""

COME_BACK: Final = frozenset(int(status) for code, status in STATUS_OF.items() if code.retry)
"""The statuses whose answers say when to come back (Retry-After)."""

RETRY_AFTER_DEFAULT_MS: Final = 1_000
"""Milliseconds named with a retryable error whose reply names none: the first bound of the client's own backoff."""

_CODES: Final = {int(code): code for code in ErrorCode}

_CHALLENGES: Final = {
    ErrorCode.NOT_AUTHENTICATED: 'Bearer realm="tidegate"',
    ErrorCode.TOKEN_REFUSED: 'Bearer realm="tidegate", error="invalid_token"',
}


def meaning_of(code: ErrorCode) -> str:
    """What an error code means over HTTP; only authentication is put differently than on a WebSocket connection."""
    if code is ErrorCode.NOT_AUTHENTICATED:
        return "the request carries no bearer token"
    return code.meaning


class FieldError(Struct, frozen=True):
    """One field of the request that is not acceptable, and what would be."""

    field: str
    message: str


class Problem(Struct, frozen=True, kw_only=True):
    """Why a request was refused (RFC 9457). ``code`` names the protocol's error code; ``detail`` is for people.

    ``retry`` says whether the same request, unchanged, may succeed later: not before ``retry_after_ms``.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str
    retry: bool = False
    retry_after_ms: int = 0
    errors: list[FieldError] = []


class Refusal(Exception):
    """A request is answered with a problem document.

    Attributes:
        problem: the document.
        headers: further response headers.
    """

    def __init__(
        self,
        code: ErrorCode,
        detail: str,
        *,
        status: int | None = None,
        retry_after_ms: int = 0,
        errors: list[FieldError] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.headers = dict(headers or {})
        if code.retry:
            retry_after_ms = retry_after_ms or RETRY_AFTER_DEFAULT_MS
            # Retry-After counts whole seconds: rounded up, so that nobody comes back too early
            self.headers["Retry-After"] = str(ceil(retry_after_ms / 1000))
        challenge = _CHALLENGES.get(code)
        if challenge is not None:
            self.headers["WWW-Authenticate"] = challenge
        self.problem = Problem(
            type=f"/docs#{code.name}",
            title=meaning_of(code),
            status=int(STATUS_OF[code] if status is None else status),
            code=code.name,
            detail=detail,
            retry=code.retry,
            retry_after_ms=retry_after_ms if code.retry else 0,
            errors=errors or [],
        )

    @classmethod
    def from_refused(cls, refused: Refused) -> "Refusal":
        """The refusal of a request that the node did not let in."""
        return cls(refused.code, refused.message, retry_after_ms=refused.retry_after_ms)

    @classmethod
    def from_reply(cls, reply: ErrorReply) -> "Refusal":
        """The refusal that a node's error reply stands for."""
        return cls(_CODES[reply.code], reply.message, retry_after_ms=reply.retry_after_ms)
