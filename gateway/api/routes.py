"""The route table of the HTTP API. Dispatching, checking and the OpenAPI document all follow from it."""

from typing import Final

from gateway.api import conversations, operations, schemas
from gateway.api.routing import Route
from protocol.errors import ErrorCode

CHATTING: Final = "Conversations"
RUNNING: Final = "Running a node"

_ID = "/v1/conversations/{conversation_id}"
_APPEND_ANSWERS = {201: schemas.Appended, 200: schemas.Appended}
_MEMBER_ANSWERS = {**_APPEND_ANSWERS, 204: None}
_APPEND_REFUSALS = (
    ErrorCode.NOT_FOUND,
    ErrorCode.FORBIDDEN,
    ErrorCode.CLIENT_MSG_ID_REUSED,
    ErrorCode.OUTCOME_UNKNOWN,
)

ROUTES: Final = (
    Route(
        method="GET",
        path="/v1/conversations",
        handler=conversations.list_conversations,
        summary="The user's conversations, newest first",
        query=schemas.ConversationsQuery,
        answers={200: schemas.ConversationList},
        token=True,
        tag=CHATTING,
    ),
    Route(
        method="POST",
        path="/v1/conversations",
        handler=conversations.create_conversation,
        summary="Create a conversation (201), or find it (200)",
        body=schemas.CreateConversation,
        answers={201: schemas.Conversation, 200: schemas.Conversation},
        refusals=(
            ErrorCode.TOO_LONG,
            ErrorCode.MEMBERS_LIMIT,
            ErrorCode.CLIENT_MSG_ID_REUSED,
            ErrorCode.OUTCOME_UNKNOWN,
        ),
        token=True,
        tag=CHATTING,
    ),
    Route(
        method="GET",
        path=_ID,
        handler=conversations.get_conversation,
        summary="One conversation with its members and their receipts",
        answers={200: schemas.Conversation},
        refusals=(ErrorCode.NOT_FOUND,),
        token=True,
        tag=CHATTING,
    ),
    Route(
        method="PATCH",
        path=_ID,
        handler=conversations.rename_conversation,
        summary="Give a group a new title",
        body=schemas.RenameConversation,
        answers=_MEMBER_ANSWERS,
        refusals=(*_APPEND_REFUSALS, ErrorCode.TOO_LONG),
        token=True,
        tag=CHATTING,
    ),
    Route(
        method="GET",
        path=f"{_ID}/entries",
        handler=conversations.list_entries,
        summary="A page of the log, oldest first",
        query=schemas.EntriesQuery,
        answers={200: schemas.EntryPage},
        refusals=(ErrorCode.NOT_FOUND, ErrorCode.BEYOND_HEAD),
        token=True,
        tag=CHATTING,
    ),
    Route(
        method="POST",
        path=f"{_ID}/entries",
        handler=conversations.send_message,
        summary="Append a message (201); a repeat gets the same answer again (200)",
        body=schemas.SendMessage,
        answers=_APPEND_ANSWERS,
        refusals=(*_APPEND_REFUSALS, ErrorCode.BODY_EMPTY, ErrorCode.TOO_LONG),
        token=True,
        tag=CHATTING,
    ),
    Route(
        method="GET",
        path=f"{_ID}/members",
        handler=conversations.list_members,
        summary="A page of a conversation's members and their receipts",
        query=schemas.MembersQuery,
        answers={200: schemas.MembersPage},
        refusals=(ErrorCode.NOT_FOUND,),
        token=True,
        tag=CHATTING,
    ),
    Route(
        method="POST",
        path=f"{_ID}/members",
        handler=conversations.add_members,
        summary="Add users to a group (204: all were in already)",
        body=schemas.AddMembers,
        answers=_MEMBER_ANSWERS,
        refusals=(*_APPEND_REFUSALS, ErrorCode.MEMBERS_LIMIT),
        token=True,
        tag=CHATTING,
    ),
    Route(
        method="DELETE",
        path=f"{_ID}/members/{{user}}",
        handler=conversations.remove_member,
        summary="Leave a group, or, as its creator, remove a user (204: the user was not in)",
        query=schemas.RemoveMemberQuery,
        answers=_MEMBER_ANSWERS,
        refusals=_APPEND_REFUSALS,
        token=True,
        tag=CHATTING,
    ),
    Route(
        method="PUT",
        path=f"{_ID}/receipts",
        handler=conversations.put_receipts,
        summary="Tell how far the user is: delivered and read",
        body=schemas.Receipts,
        answers={204: None},
        refusals=(ErrorCode.NOT_FOUND, ErrorCode.BEYOND_HEAD),
        token=True,
        tag=CHATTING,
    ),
    Route(
        method="GET",
        path="/health/live",
        handler=operations.live,
        summary="Whether the node's loop runs",
        answers={200: schemas.Live},
        tag=RUNNING,
    ),
    Route(
        method="GET",
        path="/health/ready",
        handler=operations.ready,
        summary="Whether the node takes new work (503: not now, and why)",
        answers={200: schemas.Readiness, 503: schemas.Readiness},
        tag=RUNNING,
    ),
    Route(
        method="GET",
        path="/metrics",
        handler=operations.metrics,
        summary="Metrics in the Prometheus text format",
        answers={200: "text/plain"},
        tag=RUNNING,
    ),
    Route(
        method="GET",
        path="/v1/connect",
        handler=operations.connect,
        summary="The WebSocket endpoint; see PROTOCOL.md",
        answers={101: None},
        refusals=(ErrorCode.BAD_REQUEST,),
        tag=RUNNING,
    ),
)
"""All routes but those that give the document and the page made from this table."""
