"""Requests, answers, routes, and which route a request takes."""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, get_args, get_type_hints
from urllib.parse import parse_qsl, unquote

import msgspec
from msgspec import Struct

from gateway.api.ports import NodePort
from gateway.api.problems import FieldError, Refusal
from protocol.errors import ErrorCode
from protocol.frames import ConversationId, UserId

JSON: Final = "application/json"

PATH_PARAMETERS: Final[dict[str, Any]] = {"conversation_id": ConversationId, "user": UserId}
"""Types of the names in braces in a route's path."""

QUERY_FIELDS_MAX: Final = 16
"""Parameters of one query string: no route knows more than three."""


class Request(Struct, frozen=True):
    """A request whose parts were checked against its route.

    Attributes:
        node: who answers.
        user: the authenticated user; empty on routes that need none.
        path: values of the names in braces in the route's path.
        query: an instance of the route's query struct, or None.
        body: an instance of the route's body struct, or None.
    """

    node: NodePort
    user: str
    path: dict[str, str]
    query: Any
    body: Any


class Answer(Struct, frozen=True):
    """What goes back. ``content`` is a struct (sent as JSON), bytes (sent as they are) or None (no body)."""

    status: int
    content: Any = None
    media_type: str = JSON
    headers: dict[str, str] = {}


Handler = Callable[[Request], Awaitable[Answer]]


class Route(Struct, frozen=True, kw_only=True):
    """One line of the route table: all that dispatching and the OpenAPI document need.

    Attributes:
        method: HTTP method.
        path: with names of PATH_PARAMETERS in braces.
        handler: answers; raises Refusal.
        summary: one line for the API page.
        answers: status to the type of the JSON content, to a media type, or to None for no content.
        refusals: error codes that may be answered besides those that every route may answer.
        query, body: structs that the query string and the JSON body are checked against.
        token: whether a bearer token is needed.
        tag: group on the API page.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answers: dict[int, Any]
    refusals: tuple[ErrorCode, ...] = ()
    query: type[Struct] | None = None
    body: type[Struct] | None = None
    token: bool = False
    tag: str = ""


class Router:
    """Finds the route of a request. Paths are matched undecoded, so that a user id may contain an encoded slash."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        self._segments = [(route, route.path.split("/")) for route in routes]

    def find(self, method: str, raw_path: str) -> tuple[Route, dict[str, str]]:
        """The route and its path parameters, decoded once.

        Raises:
            Refusal: 404 for a path that nothing is at, 405 (with Allow) for another method, 400 for a bad parameter.
        """
        segments = raw_path.split("/")
        here = [route for route, pattern in self._segments if _matches(pattern, segments)]
        if not here:
            raise Refusal(ErrorCode.UNKNOWN_COMMAND, f"nothing is at {raw_path}; / lists what there is")
        for route in here:
            if route.method == method:
                return route, _path_parameters(route, segments)
        allowed = ", ".join(sorted(route.method for route in here))
        raise Refusal(
            ErrorCode.UNKNOWN_COMMAND,
            f"{raw_path} does not answer {method}; allowed: {allowed}",
            status=405,
            headers={"Allow": allowed},
        )


def parse_query(query_string: bytes, to: type[Struct]) -> Struct:
    """Check a query string. Raises Refusal naming the field."""
    try:
        text = query_string.decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS_MAX)
    except ValueError as error:
        raise Refusal(ErrorCode.BAD_REQUEST, f"the query string cannot be read: {error}") from None
    values = dict(pairs)
    if len(values) != len(pairs):
        raise Refusal(ErrorCode.BAD_REQUEST, "the query string names a parameter twice; name each at most once")
    try:
        return msgspec.convert(values, to, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid("query parameter", str(error), to) from None


def parse_body(body: bytes, content_type: str, to: type[Struct]) -> Struct:
    """Check a JSON body. Raises Refusal: 415 for another media type, 400 naming the field."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in ("", JSON):
        raise Refusal(ErrorCode.BAD_REQUEST, f"Content-Type is {media_type}; the body must be {JSON}", status=415)
    if not body:
        raise Refusal(ErrorCode.BAD_REQUEST, f"the body is empty; a JSON object is needed ({to.__name__})")
    try:
        return msgspec.json.decode(body, type=to)
    except msgspec.ValidationError as error:
        raise _invalid("field", str(error), to) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(ErrorCode.BAD_REQUEST, f"the body is not JSON: {error}") from None


_AT = re.compile(r"^(?P<message>.*) - at `(?:key in )?\$\.?(?P<field>.*)`$", re.DOTALL)
_NAMED = re.compile(r"field `(?P<field>[^`]*)`")


def _invalid(what: str, message: str, of: type[Struct]) -> Refusal:
    """A refusal that names the field which msgspec's message points at, and the names that it may have."""
    at = _AT.match(message)
    field, message = (at["field"], at["message"]) if at else ("", message)
    named = _NAMED.search(message)
    if named is not None:
        field = f"{field}.{named['field']}" if field else named["field"]
    if message.startswith("Invalid enum value"):
        message += f"; allowed: {', '.join(get_args(get_type_hints(of).get(field)))}"
    detail = f"{what} {field}: {message}" if field else message
    return Refusal(ErrorCode.BAD_REQUEST, detail, errors=[FieldError(field, message)] if field else [])


def _matches(pattern: list[str], segments: list[str]) -> bool:
    return len(pattern) == len(segments) and all(
        bool(given) if expected.startswith("{") else expected == given
        for expected, given in zip(pattern, segments, strict=True)
    )


def _path_parameters(route: Route, segments: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for expected, given in zip(route.path.split("/"), segments, strict=True):
        if not expected.startswith("{"):
            continue
        name = expected[1:-1]
        try:
            values[name] = msgspec.convert(unquote(given, errors="strict"), PATH_PARAMETERS[name])
        except (msgspec.ValidationError, UnicodeDecodeError) as error:
            raise Refusal(
                ErrorCode.BAD_REQUEST, f"{name} in the path: {error}", errors=[FieldError(name, str(error))]
            ) from None
    return values
