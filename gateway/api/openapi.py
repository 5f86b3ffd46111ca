"""The OpenAPI 3.1 document, made from the route table and the structs that requests are checked against."""

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

from gateway.api.problems import COME_BACK, PROBLEM_JSON, STATUS_OF, Problem, meaning_of
from gateway.api.routing import JSON, PATH_PARAMETERS, Route
from protocol.errors import ErrorCode

_REFERENCE: Final = "#/components/schemas/{name}"

_ABOUT: Final = """Chat over HTTP, for what needs no live connection. Native clients use the binary WebSocket protocol
at /v1/connect, which also pushes new entries, receipts, typing and presence.

Every request under /v1 carries a bearer token. A request that changes something carries a client_msg_id: repeat it
with the same one (and a greater attempt) as often as needed, it takes effect once. Errors are problem documents
(RFC 9457); unknown fields are ignored.

All requests of one user together may be as many as the commands of one WebSocket connection (100 a second sustained,
400 at once, unless the operator set others); one more is answered 429, and Retry-After says when to repeat it."""

_RETRY_AFTER: Final = {
    "description": "seconds after which the same request may succeed",
    "schema": {"type": "integer", "minimum": 1},
}

_ALWAYS: Final = (ErrorCode.INTERNAL,)
_WITH_INPUT: Final = (ErrorCode.BAD_REQUEST,)
_WITH_TOKEN: Final = (
    ErrorCode.NOT_AUTHENTICATED,
    ErrorCode.TOKEN_REFUSED,
    ErrorCode.RATE_LIMITED,
    ErrorCode.UNAVAILABLE,
    ErrorCode.OVERLOADED,
)


def document(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """The document as plain dicts and lists, ready to be encoded as JSON."""
    schemas = _Schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tidegate", "version": version, "description": _ABOUT, "license": {"name": "Apache-2.0"}},
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


class _Schemas:
    """JSON schemas of all structs that bodies, answers and problems are made of."""

    def __init__(self, routes: Sequence[Route]) -> None:
        types: dict[Any, None] = {Problem: None}
        for route in routes:
            for one in (route.body, *route.answers.values()):
                if isinstance(one, type):
                    types[one] = None
        references, self.components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
        self._reference: dict[Any, dict[str, Any]] = dict(zip(types, references, strict=True))

    def reference(self, to: Any) -> dict[str, Any]:
        return self._reference[to]


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "tags": [route.tag],
        "responses": _responses(route, schemas),
    }
    parameters = [*_path_parameters(route.path), *_query_parameters(route.query)]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schemas.reference(route.body)}}}
    if route.token:
        operation["security"] = [{"bearer": []}]
    return operation


def _path_parameters(path: str) -> Iterable[dict[str, Any]]:
    for segment in path.split("/"):
        if segment.startswith("{"):
            name = segment[1:-1]
            schema = msgspec.json.schema(PATH_PARAMETERS[name])
            yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(query: Any) -> Iterable[dict[str, Any]]:
    if query is None:
        return
    _, components = msgspec.json.schema_components([query], ref_template=_REFERENCE)
    schema = components[query.__name__]
    for name, field in schema["properties"].items():
        described = _described(field)
        parameter = {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": field}
        yield {**parameter, "description": described} if described else parameter


def _described(field: dict[str, Any]) -> str:
    """The description of a schema, or of the one alternative that has one."""
    alternatives = [field, *field.get("anyOf", ())]
    return next((str(one["description"]) for one in alternatives if "description" in one), "")


def _responses(route: Route, schemas: _Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, content in route.answers.items():
        response: dict[str, Any] = {"description": HTTPStatus(status).phrase}
        if isinstance(content, str):
            response["content"] = {content: {"schema": {"type": "string"}}}
        elif content is not None:
            response["content"] = {JSON: {"schema": schemas.reference(content)}}
        responses[str(status)] = response
    for status, codes in _refusals(route).items():
        described = "; ".join(f"{code.name}: {meaning_of(code)}" for code in codes)
        response = responses.setdefault(str(status), {"description": described})
        response["x-error-codes"] = [code.name for code in codes]
        response.setdefault("content", {})[PROBLEM_JSON] = {"schema": schemas.reference(Problem)}
    for status in COME_BACK.intersection(map(int, responses)):
        responses[str(status)]["headers"] = {"Retry-After": _RETRY_AFTER}
    return responses


def _refusals(route: Route) -> dict[int, list[ErrorCode]]:
    """Status to the error codes that it may carry for this route, in order of the codes."""
    codes = {*_ALWAYS, *route.refusals}
    if route.body is not None or route.query is not None or "{" in route.path:
        codes.update(_WITH_INPUT)
    if route.token:
        codes.update(_WITH_TOKEN)
    by_status: dict[int, list[ErrorCode]] = {}
    for code in sorted(codes):
        by_status.setdefault(int(STATUS_OF[code]), []).append(code)
    return dict(sorted(by_status.items()))
