"""Handlers for whoever runs the node: health, metrics, the OpenAPI document and the API page."""

from http import HTTPStatus
from typing import Final

from gateway.api import schemas
from gateway.api.problems import Refusal
from gateway.api.routing import Answer, Handler, Request
from protocol.errors import ErrorCode

METRICS_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
HTML: Final = "text/html; charset=utf-8"

# The page loads nothing and runs nothing: whatever a user id or title might smuggle in stays text
PAGE_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


async def live(_request: Request) -> Answer:
    """200 as long as the loop runs: to answer at all is the check."""
    return Answer(HTTPStatus.OK, schemas.Live(), headers={"Cache-Control": "no-store"})


async def ready(request: Request) -> Answer:
    """200 when every check holds, else 503."""
    checks = request.node.readiness()
    holds = all(check.ok for check in checks)
    headers = {"Cache-Control": "no-store"} if holds else {"Cache-Control": "no-store", "Retry-After": "1"}
    return Answer(
        HTTPStatus.OK if holds else HTTPStatus.SERVICE_UNAVAILABLE, schemas.Readiness(holds, checks), headers=headers
    )


async def metrics(request: Request) -> Answer:
    """All metrics as text."""
    return Answer(HTTPStatus.OK, request.node.render_metrics(), METRICS_TEXT, {"Cache-Control": "no-store"})


async def connect(_request: Request) -> Answer:
    """What a plain GET of the WebSocket endpoint gets: upgrades themselves never come here."""
    raise Refusal(
        ErrorCode.BAD_REQUEST,
        "this is the WebSocket endpoint: connect with a WebSocket client, subprotocol tidegate.v1 or tidegate.v1.json",
        status=HTTPStatus.UPGRADE_REQUIRED,
        headers={"Upgrade": "websocket"},
    )


def constant(content: bytes, media_type: str, headers: dict[str, str]) -> Handler:
    """A handler that always gives the same bytes: rendered once, at start."""
    answer = Answer(HTTPStatus.OK, content, media_type, headers)

    async def give(_request: Request) -> Answer:
        return answer

    return give
