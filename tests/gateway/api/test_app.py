"""Requests through the whole API: routes, tokens, checks, answers."""

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from gateway.api.ports import Check
from gateway.api.problems import STATUS_OF, meaning_of
from protocol import frames, limits
from protocol.errors import ErrorCode
from protocol.frames import ConversationKind, ErrorReply
from tests.gateway.api.support import TOO_MANY, Front, encoded_entry

ENTRIES = "/v1/conversations/dABC/entries"
MESSAGE = {"client_msg_id": "m1", "body": "hello"}


def shown(kind: ConversationKind = ConversationKind.DIRECT, **more: object) -> frames.Conversation:
    members = [frames.Member("alice", 3, 2), frames.Member("bob", 5, 5)]
    values = {"last_entry": encoded_entry(5), "members": members, "member_count": 2, **more}
    return frames.Conversation("dABC", kind, "", 5, 2, 3, **values)  # type: ignore[arg-type]


# --- Without a token ------------------------------------------------------------------------------------------------


async def test_live_answers_without_a_token(front: Front) -> None:
    response = await front.ask("GET", "/health/live", user=None)
    assert (response.status, response.json) == (200, {"status": "live"})


async def test_ready_lists_its_checks(front: Front) -> None:
    response = await front.ask("GET", "/health/ready", user=None)
    assert response.status == 200
    assert response.json == {
        "ready": True,
        "checks": [{"name": "store", "ok": True, "detail": ""}, {"name": "accepting", "ok": True, "detail": ""}],
    }


async def test_one_failing_check_makes_the_node_unready(front: Front) -> None:
    front.node.checks = [Check("store", False, "disk full"), Check("accepting", True)]
    response = await front.ask("GET", "/health/ready", user=None)
    assert response.status == 503
    assert response.headers["retry-after"] == "1"
    assert response.json["ready"] is False
    assert response.json["checks"][0] == {"name": "store", "ok": False, "detail": "disk full"}  # type: ignore[index]


async def test_metrics_are_passed_on_as_text(front: Front) -> None:
    response = await front.ask("GET", "/metrics", user=None)
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert response.body == front.node.render_metrics()


async def test_head_answers_as_get_without_a_body(front: Front) -> None:
    client = front.open(b"HEAD /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    async with client.stream:
        response = await client.response("HEAD")
    assert (response.status, response.body) == (200, b"")
    assert response.headers["content-length"] == str(len(b'{"status":"live"}'))


async def test_a_plain_get_of_the_websocket_endpoint_says_what_it_is(front: Front) -> None:
    response = await front.ask("GET", "/v1/connect", user=None)
    assert (response.status, response.headers["upgrade"]) == (426, "websocket")
    assert "tidegate.v1" in str(response.json["detail"])


async def test_an_unknown_path_says_where_to_look(front: Front) -> None:
    response = await front.ask("GET", "/v2/nothing")
    assert response.status == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json["detail"] == "nothing is at /v2/nothing; / lists what there is"


async def test_another_method_names_the_allowed_ones(front: Front) -> None:
    response = await front.ask("PUT", ENTRIES)
    assert (response.status, response.headers["allow"]) == (405, "GET, POST")


async def test_answers_are_counted_by_status(front: Front) -> None:
    for path in ("/health/live", "/health/live", "/v2/nothing", "/v1/conversations"):
        await front.ask("GET", path, user=None)
    assert front.api.answered == {200: 2, 404: 1, 401: 1}


# --- Tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["", "Authorization: Basic YTpi\r\n", "Authorization: Bearer \r\n"])
async def test_without_a_bearer_token_401(front: Front, header: str) -> None:
    client = front.open(f"GET /v1/conversations HTTP/1.1\r\nHost: x\r\n{header}\r\n".encode())
    async with client.stream:
        response = await client.response()
    assert (response.status, response.json["code"]) == (401, "NOT_AUTHENTICATED")
    assert response.headers["www-authenticate"] == 'Bearer realm="tidegate"'
    assert front.node.asked == []


async def test_a_node_that_is_starting_says_how_it_is_and_takes_no_work(front: Front) -> None:
    front.node.started = False
    response = await front.ask("GET", "/v1/conversations")
    assert (response.status, response.json["code"]) == (503, "UNAVAILABLE")
    assert "GET /health/ready says what it waits for" in response.json["detail"]
    assert "retry-after" in response.headers
    assert front.node.asked == []
    assert (await front.ask("GET", "/health/live", user=None)).status == 200


async def test_a_refused_token_says_why_and_does_not_repeat_the_token(front: Front) -> None:
    client = front.open(b"GET /v1/conversations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer SECRET.abc\r\n\r\n")
    async with client.stream:
        response = await client.response()
    assert (response.status, response.json["code"]) == (401, "TOKEN_REFUSED")
    assert response.headers["www-authenticate"].endswith('error="invalid_token"')
    assert response.json["detail"] == "the token has expired; get a new one"
    assert b"SECRET" not in response.body


async def test_the_token_is_checked_before_the_body(front: Front) -> None:
    response = await front.ask("POST", ENTRIES, raw=b"not json", user=None)
    assert response.status == 401


# --- Conversations --------------------------------------------------------------------------------------------------


async def test_list_conversations(front: Front) -> None:
    front.node.reply = frames.ConversationList(1, [shown(members=[])], "next")
    response = await front.ask("GET", "/v1/conversations?limit=7&cursor=c%2F1")
    assert front.node.asked == [("alice", frames.ListConversations(1, "c/1", 7))]
    assert response.json["next_cursor"] == "next"
    (conversation,) = response.json["conversations"]  # type: ignore[misc]
    assert conversation["kind"] == "direct"
    assert conversation["unread"] == 3
    assert conversation["last_entry"] == {
        "seq": 5,
        "kind": "message",
        "time_us": 1_700_000_000_000_005,
        "sender": "bob",
        "client_msg_id": "m5",
        "body": "hello",
        "metadata": {},
        "users": [],
    }


@pytest.mark.parametrize(("created", "status"), [(True, 201), (False, 200)])
async def test_create_conversation(front: Front, created: bool, status: int) -> None:
    front.node.reply = frames.ConversationReply(1, shown(), created)
    body = {"kind": "group", "client_msg_id": "g1", "members": ["bob"], "title": "Tea"}
    response = await front.ask("POST", "/v1/conversations", body)
    assert response.status == status
    assert response.headers["location"] == "/v1/conversations/dABC"
    assert front.node.asked == [("alice", frames.CreateConversation(1, ConversationKind.GROUP, ["bob"], "g1", "Tea"))]


async def test_get_conversation_shows_members(front: Front) -> None:
    front.node.reply = frames.ConversationReply(1, shown(last_entry=None))
    response = await front.ask("GET", "/v1/conversations/dABC")
    assert response.json["members"] == [
        {"user": "alice", "delivered_seq": 3, "read_seq": 2},
        {"user": "bob", "delivered_seq": 5, "read_seq": 5},
    ]
    assert response.json["last_entry"] is None


async def test_rename(front: Front) -> None:
    front.node.reply = frames.SendAck(1, 6, 7)
    response = await front.ask("PATCH", "/v1/conversations/gABC", {"client_msg_id": "r1", "title": "Tea"})
    assert (response.status, response.json) == (201, {"seq": 6, "time_us": 7, "duplicate": False})
    assert front.node.asked == [("alice", frames.Rename(1, "gABC", "r1", "Tea", 1))]


async def test_foreign_and_missing_conversations_look_the_same(front: Front) -> None:
    foreign = await front.ask("GET", "/v1/conversations/dABC")
    missing = await front.ask("GET", "/v1/conversations/dXYZ")
    assert (foreign.status, foreign.body) == (404, missing.body)


# --- Entries --------------------------------------------------------------------------------------------------------


async def test_list_entries_passes_its_cursors_on(front: Front) -> None:
    front.node.reply = frames.HistoryPage(1, "dABC", [encoded_entry(8), encoded_entry(9, metadata={"k": "v"})], 9, True)
    response = await front.ask("GET", f"{ENTRIES}?after_seq=7&limit=2")
    assert front.node.asked == [("alice", frames.History(1, "dABC", 7, None, 2))]
    assert [entry["seq"] for entry in response.json["entries"]] == [8, 9]  # type: ignore[attr-defined]
    assert response.json["entries"][1]["metadata"] == {"k": "v"}  # type: ignore[index]
    assert (response.json["head_seq"], response.json["has_more"]) == (9, True)


async def test_list_entries_without_cursors_asks_for_the_newest(front: Front) -> None:
    front.node.reply = frames.HistoryPage(1, "dABC", [], 0, False)
    await front.ask("GET", ENTRIES)
    assert front.node.asked == [("alice", frames.History(1, "dABC"))]


@pytest.mark.parametrize(("duplicate", "status"), [(False, 201), (True, 200)])
async def test_send(front: Front, duplicate: bool, status: int) -> None:
    front.node.reply = frames.SendAck(1, 4, 9, duplicate)
    response = await front.ask("POST", ENTRIES, {**MESSAGE, "metadata": {"a": "b"}, "attempt": 2, "unknown": 1})
    assert (response.status, response.json) == (status, {"seq": 4, "time_us": 9, "duplicate": duplicate})
    assert front.node.asked == [("alice", frames.Send(1, "dABC", "m1", "hello", {"a": "b"}, 2))]


async def test_a_body_as_long_as_allowed_and_any_unicode_gets_through(front: Front) -> None:
    front.node.reply = frames.SendAck(1, 4, 9)
    text = "\U0001f30a" * limits.BODY_CHARS_MAX
    assert (await front.ask("POST", ENTRIES, {"client_msg_id": "m1", "body": text})).status == 201
    ((_, command),) = front.node.asked
    assert isinstance(command, frames.Send)
    assert command.body == text


# --- Members and receipts -------------------------------------------------------------------------------------------


async def test_members_are_listed_by_pages(front: Front) -> None:
    front.node.reply = frames.MembersPage(1, "cABC", [frames.Member("bob", 3, 2), frames.Member("carol")], True)
    response = await front.ask("GET", "/v1/conversations/cABC/members?after=alice&limit=2")
    assert front.node.asked == [("alice", frames.ListMembers(1, "cABC", "alice", 2))]
    assert response.json == {
        "members": [
            {"user": "bob", "delivered_seq": 3, "read_seq": 2},
            {"user": "carol", "delivered_seq": 0, "read_seq": 0},
        ],
        "has_more": True,
    }


async def test_a_channel_is_called_one(front: Front) -> None:
    front.node.reply = frames.ConversationReply(1, shown(kind=ConversationKind.CHANNEL), True)
    body = {"kind": "channel", "client_msg_id": "c1", "title": "News"}
    response = await front.ask("POST", "/v1/conversations", body)
    assert response.json["kind"] == "channel"
    assert front.node.asked == [("alice", frames.CreateConversation(1, ConversationKind.CHANNEL, [], "c1", "News"))]


async def test_add_members(front: Front) -> None:
    front.node.reply = frames.SendAck(1, 4, 9)
    body = {"client_msg_id": "a1", "users": ["carol", "dave"]}
    response = await front.ask("POST", "/v1/conversations/gABC/members", body)
    assert response.status == 201
    assert front.node.asked == [("alice", frames.AddMembers(1, "gABC", "a1", ["carol", "dave"]))]


async def test_nothing_to_change_is_204(front: Front) -> None:
    front.node.reply = frames.Ok(1)
    body = {"client_msg_id": "a1", "users": ["carol"]}
    response = await front.ask("POST", "/v1/conversations/gABC/members", body)
    assert (response.status, response.body) == (204, b"")


async def test_remove_a_member_whose_id_needs_encoding(front: Front) -> None:
    front.node.reply = frames.SendAck(1, 4, 9)
    path = "/v1/conversations/gABC/members/https%3A%2F%2Fid.example%2Fa%2520b%C3%A9?client_msg_id=x1&attempt=2"
    assert (await front.ask("DELETE", path)).status == 201
    assert front.node.asked == [("alice", frames.RemoveMembers(1, "gABC", "x1", ["https://id.example/a%20bé"], 2))]


async def test_every_removal_without_an_id_is_a_new_one(front: Front) -> None:
    front.node.reply = frames.SendAck(1, 4, 9)
    for _ in range(2):
        await front.ask("DELETE", "/v1/conversations/gABC/members/bob")
    first, second = (command.client_msg_id for _, command in front.node.asked)  # type: ignore[union-attr]
    assert first != second


async def test_receipts(front: Front) -> None:
    front.node.reply = frames.Ok(1)
    response = await front.ask("PUT", "/v1/conversations/dABC/receipts", {"delivered_seq": 9, "read_seq": 7})
    assert (response.status, response.body) == (204, b"")
    assert front.node.asked == [("alice", frames.MarkReceipt(1, "dABC", 9, 7))]


# --- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", list(ErrorCode), ids=lambda code: code.name)
async def test_every_error_code_becomes_a_problem(front: Front, code: ErrorCode) -> None:
    front.node.reply = ErrorReply(1, code, "because", 1_200)
    response = await front.ask("POST", ENTRIES, MESSAGE)
    assert response.status == STATUS_OF[code]
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json == {
        "type": f"/docs#{code.name}",
        "title": meaning_of(code),
        "status": int(STATUS_OF[code]),
        "code": code.name,
        "detail": "because",
        "retry": code.retry,
        "retry_after_ms": 1_200 if code.retry else 0,
        "errors": [],
    }
    assert response.headers.get("retry-after") == ("2" if code.retry else None)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b'{"client_msg_id":"m1"}', "body"),
        (b'{"client_msg_id":7,"body":"x"}', "client_msg_id"),
        (b'{"client_msg_id":"","body":"x"}', "client_msg_id"),
        (b'{"client_msg_id":"m1","body":"x","attempt":0}', "attempt"),
        (b'{"client_msg_id":"m1","body":"x","attempt":18446744073709551616}', "attempt"),
        (b'{"client_msg_id":"m1","body":"x","metadata":{"a":1}}', "metadata[...]"),
        (b'{"client_msg_id":"m1","body":null}', "body"),
    ],
)
async def test_a_bad_field_is_named(front: Front, raw: bytes, field: str) -> None:
    response = await front.ask("POST", ENTRIES, raw=raw)
    assert (response.status, response.json["code"]) == (400, "BAD_REQUEST")
    (error,) = response.json["errors"]  # type: ignore[misc]
    assert error["field"] == field
    assert field in str(response.json["detail"])
    assert front.node.asked == []


async def test_a_name_that_is_none_of_those_allowed_is_told_which_are(front: Front) -> None:
    response = await front.ask("POST", "/v1/conversations", raw=b'{"client_msg_id":"a","kind":"team","members":[]}')
    message = "Invalid enum value 'team'; allowed: direct, group, channel"
    assert response.json["errors"] == [{"field": "kind", "message": message}]
    assert response.json["detail"] == f"field kind: {message}"


async def test_a_bad_item_of_a_list_is_named_with_its_place(front: Front) -> None:
    response = await front.ask("POST", "/v1/conversations/g/members", raw=b'{"client_msg_id":"a","users":["b",5]}')
    assert response.json["errors"] == [{"field": "users[1]", "message": "Expected `str`, got `int`"}]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b'{"client_msg_id":"a","body":"\xff"}',
        b'{"client_msg_id":"a","body":"\\ud800"}',
        b'{"client_msg_id":"a","body":"b","x":' + b"[" * 50_000,
    ],
    ids=["empty", "cut", "array", "number", "not-utf8", "surrogate", "deep"],
)
async def test_a_body_that_is_no_json_object_is_400(front: Front, raw: bytes) -> None:
    response = await front.ask("POST", ENTRIES, raw=raw)
    assert (response.status, response.json["code"]) == (400, "BAD_REQUEST")
    assert front.node.asked == []


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=500", "limit"), ("limit=ten", "limit"), ("after_seq=-1", "after_seq"), ("before_seq=1.5", "before_seq")],
)
async def test_a_bad_query_parameter_is_named(front: Front, query: str, field: str) -> None:
    response = await front.ask("GET", f"{ENTRIES}?{query}")
    assert response.status == 400
    assert response.json["errors"][0]["field"] == field  # type: ignore[index]


@pytest.mark.parametrize("query", ["limit=1&limit=2", "a=%ff", "&".join(f"k{n}=1" for n in range(50))])
async def test_an_unreadable_query_is_400(front: Front, query: str) -> None:
    assert (await front.ask("GET", f"{ENTRIES}?{query}")).status == 400


async def test_a_too_long_id_in_the_path_is_named(front: Front) -> None:
    response = await front.ask("GET", "/v1/conversations/" + "c" * 65)
    assert response.json["errors"][0]["field"] == "conversation_id"  # type: ignore[index]


async def test_another_media_type_is_415(front: Front) -> None:
    head = b"Host: x\r\nAuthorization: Bearer token-of-alice\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}"
    client = front.open(f"POST {ENTRIES} HTTP/1.1\r\n".encode() + head)
    async with client.stream:
        response = await client.response("POST")
    assert (response.status, response.json["detail"]) == (
        415,
        "Content-Type is text/plain; the body must be application/json",
    )


async def test_a_fault_of_the_node_is_500_and_tells_nothing(front: Front) -> None:
    def fail(_command: frames.Command) -> frames.Reply:
        raise RuntimeError("internal detail")

    front.node.reply = fail
    response = await front.ask("POST", ENTRIES, MESSAGE)
    assert (response.status, response.json["code"]) == (500, "INTERNAL")
    assert b"internal detail" not in response.body


async def test_what_is_logged_of_a_request_names_it_and_so_does_the_answer_to_a_fault(front: Front) -> None:
    def fail(_command: frames.Command) -> frames.Reply:
        structlog.get_logger().info("from deep within")
        raise RuntimeError

    front.node.reply = fail
    with capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        answers = [await front.ask("POST", ENTRIES, MESSAGE, user=user) for user in ("alice", "bob")]
        unknown = await front.ask("POST", ENTRIES, MESSAGE, user=None)
    ids = [line["request"] for line in lines]
    assert ids == [ids[0], ids[0], ids[2], ids[2]]
    assert ids[0] != ids[2]
    assert [line["user"] for line in lines] == ["alice", "alice", "bob", "bob"]
    assert {(line["method"], line["path"]) for line in lines} == {("POST", ENTRIES)}
    assert all(request_id in str(answer.json["detail"]) for answer, request_id in zip(answers, ids[::2], strict=True))
    assert unknown.status == 401
    assert not structlog.contextvars.get_contextvars()


async def test_a_reply_of_the_wrong_type_is_a_fault(front: Front) -> None:
    front.node.reply = frames.Pong(1)
    assert (await front.ask("POST", ENTRIES, MESSAGE)).status == 500


async def test_a_user_who_asks_too_much_is_told_when_to_come_back(front: Front) -> None:
    front.node.wait_ms["alice"] = 1_500
    for method, path, body in (("POST", ENTRIES, MESSAGE), ("GET", ENTRIES, None), ("POST", ENTRIES, {})):
        response = await front.ask(method, path, body)
        assert (response.status, response.headers["retry-after"]) == (429, "2")
        assert (response.json["code"], response.json["retry"]) == ("RATE_LIMITED", True)
        assert (response.json["retry_after_ms"], response.json["detail"]) == (1_500, TOO_MANY)
    assert front.node.asked == []
    assert (await front.ask("GET", ENTRIES, user="bob")).status == 404
    assert (await front.ask("GET", "/health/live", user="alice")).status == 200
    assert (await front.ask("GET", ENTRIES, user=None)).status == 401


def test_the_error_table_is_complete() -> None:
    assert set(STATUS_OF) == set(ErrorCode)
    assert all(STATUS_OF[code] in (429, 500, 503) for code in ErrorCode if code.retry)


def test_entries_of_unknown_kinds_are_shown_with_their_number() -> None:
    from gateway.api import schemas

    newer = frames.Entry(1, 77, 2, "bob", "m")
    assert schemas.entry(msgspec.Raw(msgspec.msgpack.encode(newer))).kind == "kind-77"
