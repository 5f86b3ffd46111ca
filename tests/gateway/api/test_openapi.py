"""The OpenAPI document and the page made from it."""

import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from gateway.api import schemas
from gateway.api.app import Api
from gateway.api.routes import ROUTES
from protocol import frames, limits
from protocol.errors import ErrorCode
from tests.gateway.api.support import FakeNode, Front


@pytest.fixture(scope="module")
def api() -> Api:
    return Api(FakeNode(address="http://127.0.0.1:8480"), "1.2.3")


@pytest.fixture(scope="module")
def document(api: Api) -> dict[str, Any]:
    return msgspec.json.decode(api.document)  # type: ignore[no-any-return]


def test_head_of_the_document(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == "1.2.3"
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_every_route_is_described(document: dict[str, Any]) -> None:
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, route.path) for route in ROUTES}


def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_every_reference_leads_somewhere(api: Api, document: dict[str, Any]) -> None:
    references = set(re.findall(rb'"\$ref":"#/components/schemas/([^"]+)"', api.document))
    assert {name.decode() for name in references} <= set(document["components"]["schemas"])
    assert references


def test_every_name_in_a_path_is_a_required_parameter(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        names = set(re.findall(r"\{(\w+)\}", path))
        for operation in methods.values():
            parameters = operation.get("parameters", [])
            assert {one["name"] for one in parameters if one["in"] == "path" and one["required"]} == names


def test_every_response_has_a_description_and_every_v1_route_its_refusals(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert all(response["description"] for response in operation["responses"].values())
            if operation.get("security"):
                assert path.startswith("/v1/")
                assert {"401", "429", "500", "503"} <= set(operation["responses"])


def test_who_is_to_come_back_is_told_when(document: dict[str, Any]) -> None:
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                wait = response.get("headers", {}).get("Retry-After")
                assert (wait is not None) == (status in ("429", "500", "503"))
                assert wait is None or wait["schema"] == {"type": "integer", "minimum": 1}


def test_limits_are_those_of_the_protocol(document: dict[str, Any]) -> None:
    parameters = document["paths"]["/v1/conversations/{conversation_id}/entries"]["get"]["parameters"]
    by_name = {one["name"]: one["schema"] for one in parameters}
    assert by_name["limit"]["maximum"] == limits.HISTORY_ENTRIES_MAX
    assert by_name["limit"]["default"] == limits.HISTORY_ENTRIES_DEFAULT
    assert by_name["conversation_id"]["maxLength"] == limits.CONVERSATION_ID_CHARS_MAX
    send = document["components"]["schemas"]["SendMessage"]
    assert send["properties"]["body"]["maxLength"] == limits.BODY_CHARS_MAX
    assert send["properties"]["client_msg_id"]["maxLength"] == limits.CLIENT_MSG_ID_CHARS_MAX
    assert send["required"] == ["client_msg_id", "body"]


@pytest.mark.parametrize(
    ("ours", "theirs", "apart"),
    [
        (schemas.Entry, frames.Entry, set()),
        (schemas.Member, frames.Member, set()),
        (schemas.Conversation, frames.Conversation, {"unread"}),
        (schemas.ConversationList, frames.ConversationList, {"id"}),
        (schemas.EntryPage, frames.HistoryPage, {"id"}),
        (schemas.Appended, frames.SendAck, {"id"}),
        (schemas.CreateConversation, frames.CreateConversation, {"id"}),
        (schemas.SendMessage, frames.Send, {"id", "conversation_id"}),
        (schemas.AddMembers, frames.AddMembers, {"id", "conversation_id"}),
        (schemas.RenameConversation, frames.Rename, {"id", "conversation_id"}),
        (schemas.Receipts, frames.MarkReceipt, {"id", "conversation_id"}),
        (schemas.EntriesQuery, frames.History, {"id", "conversation_id"}),
        (schemas.ConversationsQuery, frames.ListConversations, {"id"}),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_objects_have_the_fields_of_the_frames(ours: type, theirs: type, apart: set[str]) -> None:
    names, expected = ({field.name for field in msgspec.structs.fields(one)} for one in (ours, theirs))  # type: ignore[arg-type]
    assert names ^ expected == apart


async def test_the_document_is_served(front: Front) -> None:
    response = await front.ask("GET", "/openapi.json", user=None)
    assert response.headers["content-type"] == "application/json"
    assert "/v1/conversations" in response.json["paths"]  # type: ignore[operator]


# --- The page -------------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    VOID = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "action"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(api: Api) -> None:
    text = api.page.decode()
    page = _Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert "url(" not in text
    assert "@import" not in text
    assert all(link.startswith(("/", "#")) for link in page.links)


def test_links_within_the_page_lead_somewhere(api: Api) -> None:
    page = _Page(api.page.decode())
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert {code.name for code in ErrorCode} <= set(page.ids)


def test_the_page_shows_the_commands_and_every_route(api: Api) -> None:
    text = api.page.decode()
    assert "tidegate chat --as alice --to bob --url http://127.0.0.1:8480" in text
    assert "tidegate chat --as bob --to alice --url http://127.0.0.1:8480" in text
    for route in ROUTES:
        assert f"<code>{route.path}</code>" in text
        assert route.summary in text or route.summary.replace("'", "&#x27;") in text


def test_what_comes_from_outside_is_escaped() -> None:
    text = Api(FakeNode(address="http://<script>alert(1)</script>"), "1").page.decode()
    assert "<script" not in text


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_the_page_is_served_with_a_strict_policy(front: Front, path: str) -> None:
    response = await front.ask("GET", path, user=None)
    assert response.status == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.body.startswith(b"<!doctype html>")
