"""The ASGI application: bounds a request, finds its route, checks token, query and body, and writes the answer."""

import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, NamedTuple

import msgspec
import structlog
import trio
from structlog.contextvars import bind_contextvars, bound_contextvars

from gateway.api import openapi, operations
from gateway.api.page import render_page
from gateway.api.ports import NodePort
from gateway.api.problems import PROBLEM_JSON, Refusal
from gateway.api.routes import ROUTES, RUNNING
from gateway.api.routing import JSON, Answer, Request, Route, Router, parse_body, parse_query
from gateway.auth import TokenRefused
from gateway.refusals import Refused
from protocol import limits
from protocol.errors import ErrorCode

REQUEST_BODY_BYTES_MAX: Final = limits.COMMAND_BYTES_MAX
"""Body of one request, bytes: as large as the same command may be on a WebSocket connection."""

DISCARDED_BYTES_MAX: Final = 16 * REQUEST_BODY_BYTES_MAX
"""Bytes of a too large body that are read and thrown away, so that a client which first writes everything sees the
answer; a larger one sees its connection end."""

BODY_TIMEOUT_S: Final = 10.0
"""Seconds for a request body to arrive: a slow client holds one of the few HTTP connections no longer than that."""

REQUEST_ID_BYTES: Final = 6
"""Random bytes of the id by which a request is found in the log: of a million requests, no two share one."""

STARTING: Final = "the node is starting: try again in 1 s; GET /health/ready says what it waits for"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_log = structlog.get_logger(__name__)


class ClientGone(Exception):
    """The connection ended before the request was complete: there is nobody to answer."""


class Encoded(NamedTuple):
    """An answer as it is sent: whatever can go wrong with its contents has not."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Api:
    """The HTTP API of one node, an ASGI application.

    The document and the page are rendered here, once: they are the same for every request. So the node has to know its
    address by then.

    Attributes:
        answered: requests answered so far, by HTTP status.
    """

    def __init__(self, node: NodePort, version: str) -> None:
        described = openapi.document(ROUTES, version)
        self.document = msgspec.json.encode(described)
        self.page = render_page(described, node.address).encode()
        self.answered: Counter[int] = Counter()
        self._node = node
        self._router = Router([*ROUTES, *_constants(self.document, self.page)])

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request. Cancelling it leaves the outcome of an appending request unknown to the client."""
        if scope["type"] == "websocket":
            await _refuse_upgrade(send)
            return
        if scope["type"] != "http":
            raise ValueError(f"ASGI scope {scope['type']!r}: this application has http and websocket only")
        request_id = secrets.token_hex(REQUEST_ID_BYTES)
        client = (scope.get("client") or ("",))[0]
        try:
            # Whatever is logged from here to the answer says of which request it is; the user is known later
            with bound_contextvars(
                request=request_id, client=client, method=scope["method"], path=scope["path"], user=""
            ):
                answer = await self._answer(scope, receive, request_id)
        except ClientGone:
            return
        self.answered[answer.status] += 1
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Message, receive: Receive, request_id: str) -> Encoded:
        try:
            # The body is taken off the connection first, whatever follows: else it could not carry another request
            body = await _read_body(receive)
            route, path = self._router.find(_method(scope), scope["raw_path"].decode("ascii"))
            headers = dict(scope["headers"])
            if route.token and not self._node.started:
                raise Refusal(ErrorCode.UNAVAILABLE, STARTING)
            user = await self._authenticate(headers) if route.token else ""
            bind_contextvars(user=user)
            if route.token:
                self._node.admit(user)
            request = Request(
                self._node,
                user,
                path,
                None if route.query is None else parse_query(scope["query_string"], route.query),
                None if route.body is None else parse_body(body, _text(headers, b"content-type"), route.body),
            )
            return _encoded(await route.handler(request))
        except Refusal as refusal:
            return _encoded(_problem(refusal))
        except Refused as refused:
            return _encoded(_problem(Refusal.from_refused(refused)))
        except ClientGone:
            raise
        except Exception:  # noqa: BLE001 - the outermost frame of a request: logged, and only this one fails
            _log.exception("http request failed")
            return _encoded(
                _problem(Refusal(ErrorCode.INTERNAL, f"a fault of the node, which has logged it: request {request_id}"))
            )

    async def _authenticate(self, headers: dict[bytes, bytes]) -> str:
        scheme, _, token = _text(headers, b"authorization").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Refusal(
                ErrorCode.NOT_AUTHENTICATED, "this needs the header 'Authorization: Bearer TOKEN' (tidegate token USER)"
            )
        try:
            return (await self._node.verify(token.strip())).user
        except TokenRefused as error:
            raise Refusal(ErrorCode.TOKEN_REFUSED, str(error)) from None


def _constants(document: bytes, page: bytes) -> list[Route]:
    """The routes of what was rendered from the other routes."""
    given = operations.constant(document, JSON, {"Access-Control-Allow-Origin": "*"})
    shown = operations.constant(page, operations.HTML, {"Content-Security-Policy": operations.PAGE_POLICY})
    return [
        Route(method="GET", path=path, handler=handler, summary="", answers={}, tag=RUNNING)
        for path, handler in (("/openapi.json", given), ("/", shown), ("/docs", shown))
    ]


def _method(scope: Message) -> str:
    # hypercorn leaves out the body of an answer to HEAD by itself
    return "GET" if scope["method"] == "HEAD" else scope["method"]


def _text(headers: dict[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")


async def _read_body(receive: Receive) -> bytes:
    """The whole body.

    Raises:
        Refusal: 413 larger than REQUEST_BODY_BYTES_MAX, 408 not complete within BODY_TIMEOUT_S.
        ClientGone: the connection ended.

    Cancelling leaves the body half read: the connection can carry no further request.
    """
    body = bytearray()
    received_bytes = 0
    with trio.move_on_after(BODY_TIMEOUT_S):
        while received_bytes <= DISCARDED_BYTES_MAX:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            received_bytes += len(chunk)
            if received_bytes <= REQUEST_BODY_BYTES_MAX:
                body += chunk
            if not message.get("more_body", False):
                break
        if received_bytes > REQUEST_BODY_BYTES_MAX:
            raise Refusal(
                ErrorCode.TOO_LONG, f"the body is larger than the {REQUEST_BODY_BYTES_MAX:,} bytes allowed", status=413
            )
        return bytes(body)
    raise Refusal(
        ErrorCode.BAD_REQUEST,
        f"the body was not complete within {BODY_TIMEOUT_S:g} s; send it at once",
        status=408,
        headers={"Connection": "close"},
    )


def _problem(refusal: Refusal) -> Answer:
    return Answer(refusal.problem.status, refusal.problem, PROBLEM_JSON, refusal.headers)


def _encoded(answer: Answer) -> Encoded:
    """An answer as it is sent."""
    status, content = int(answer.status), answer.content
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
    if content is None:
        return Encoded(status, headers, b"")
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    headers.append((b"content-type", answer.media_type.encode()))
    headers.append((b"content-length", str(len(body)).encode()))
    headers.append((b"x-content-type-options", b"nosniff"))
    return Encoded(status, headers, body)


async def _refuse_upgrade(send: Send) -> None:
    """A WebSocket upgrade on a connection that has already carried HTTP: the listener takes only fresh ones."""
    refusal = Refusal(
        ErrorCode.BAD_REQUEST,
        "a WebSocket connection cannot begin on a connection that already carried another request; "
        "open a new one for /v1/connect",
        headers={"Connection": "close"},
    )
    answer = _encoded(_problem(refusal))
    await send({"type": "websocket.http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "websocket.http.response.body", "body": answer.body})
