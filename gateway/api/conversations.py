"""REST handlers for conversations, their entries, members and receipts: each asks the node one command."""

from http import HTTPStatus
from typing import Final, TypeVar
from uuid import uuid4

import trio

from gateway.api import schemas
from gateway.api.problems import Refusal
from gateway.api.routing import Answer, Request
from protocol import frames
from protocol.errors import ErrorCode
from protocol.frames import Command, ErrorReply, Reply

CALL_TIMEOUT_S: Final = 20.0
"""Seconds that the node may take for one command. Ends before the server's read timeout, so that a client is always
told; longer than the owner itself waits for a store."""

REQUEST_ID: Final = 1
"""Every command needs an id for its reply; here a reply belongs to its call, so that one id does for all."""

_APPENDING = (frames.Send, frames.CreateConversation, frames.AddMembers, frames.RemoveMembers, frames.Rename)

R = TypeVar("R", bound=Reply)


async def list_conversations(request: Request) -> Answer:
    """A page of the user's conversations."""
    query: schemas.ConversationsQuery = request.query
    command = frames.ListConversations(REQUEST_ID, query.cursor, query.limit)
    return Answer(HTTPStatus.OK, schemas.conversation_list(await _ask(request, command, frames.ConversationList)))


async def create_conversation(request: Request) -> Answer:
    """Create or find a conversation: 201 when it is new."""
    body: schemas.CreateConversation = request.body
    command = frames.CreateConversation(
        REQUEST_ID, schemas.kind_of(body.kind), body.members, body.client_msg_id, body.title
    )
    reply = await _ask(request, command, frames.ConversationReply)
    return Answer(
        HTTPStatus.CREATED if reply.created else HTTPStatus.OK,
        schemas.conversation(reply.conversation),
        headers={"Location": f"/v1/conversations/{reply.conversation.conversation_id}"},
    )


async def get_conversation(request: Request) -> Answer:
    """One conversation with its members."""
    command = frames.GetConversation(REQUEST_ID, request.path["conversation_id"])
    reply = await _ask(request, command, frames.ConversationReply)
    return Answer(HTTPStatus.OK, schemas.conversation(reply.conversation))


async def rename_conversation(request: Request) -> Answer:
    """Give a group a new title."""
    body: schemas.RenameConversation = request.body
    conversation_id = request.path["conversation_id"]
    return await _append(
        request, frames.Rename(REQUEST_ID, conversation_id, body.client_msg_id, body.title, body.attempt)
    )


async def list_entries(request: Request) -> Answer:
    """A page of a conversation's log."""
    query: schemas.EntriesQuery = request.query
    command = frames.History(
        REQUEST_ID, request.path["conversation_id"], query.after_seq, query.before_seq, query.limit
    )
    return Answer(HTTPStatus.OK, schemas.entry_page(await _ask(request, command, frames.HistoryPage)))


async def send_message(request: Request) -> Answer:
    """Append a message: 201 when it is new, 200 when it is a repeat."""
    body: schemas.SendMessage = request.body
    conversation_id = request.path["conversation_id"]
    return await _append(
        request,
        frames.Send(REQUEST_ID, conversation_id, body.client_msg_id, body.body, body.metadata, body.attempt),
    )


async def list_members(request: Request) -> Answer:
    """A page of a conversation's members."""
    query: schemas.MembersQuery = request.query
    command = frames.ListMembers(REQUEST_ID, request.path["conversation_id"], query.after, query.limit)
    return Answer(HTTPStatus.OK, schemas.members_page(await _ask(request, command, frames.MembersPage)))


async def add_members(request: Request) -> Answer:
    """Add users to a group."""
    body: schemas.AddMembers = request.body
    conversation_id = request.path["conversation_id"]
    return await _append(
        request, frames.AddMembers(REQUEST_ID, conversation_id, body.client_msg_id, body.users, body.attempt)
    )


async def remove_member(request: Request) -> Answer:
    """Remove one user from a group."""
    query: schemas.RemoveMemberQuery = request.query
    client_msg_id = query.client_msg_id or f"http-{uuid4()}"
    conversation_id = request.path["conversation_id"]
    users = [request.path["user"]]
    return await _append(
        request, frames.RemoveMembers(REQUEST_ID, conversation_id, client_msg_id, users, query.attempt)
    )


async def put_receipts(request: Request) -> Answer:
    """Tell how far the user is."""
    body: schemas.Receipts = request.body
    command = frames.MarkReceipt(REQUEST_ID, request.path["conversation_id"], body.delivered_seq, body.read_seq)
    await _ask(request, command, frames.Ok)
    return Answer(HTTPStatus.NO_CONTENT)


async def _append(request: Request, command: Command) -> Answer:
    """Ask for an append; an Ok means that nothing had to change (members already in, say)."""
    reply = await _call(request, command)
    if isinstance(reply, frames.Ok):
        return Answer(HTTPStatus.NO_CONTENT)
    ack = _expect(reply, frames.SendAck)
    return Answer(HTTPStatus.OK if ack.duplicate else HTTPStatus.CREATED, schemas.appended(ack))


async def _ask(request: Request, command: Command, expected: type[R]) -> R:
    """The node's reply, of the expected type. Raises, and is cancelled, as ``_call`` is."""
    return _expect(await _call(request, command), expected)


def _expect(reply: Reply, expected: type[R]) -> R:
    if not isinstance(reply, expected):
        raise TypeError(f"the node answered with {type(reply).__name__} where {expected.__name__} belongs")
    return reply


async def _call(request: Request, command: Command) -> Reply:
    """The node's reply.

    Raises:
        Refusal: the node refused, or did not answer within CALL_TIMEOUT_S.

    After a cancellation the outcome of an appending command is unknown.
    """
    with trio.move_on_after(CALL_TIMEOUT_S):
        reply = await request.node.call(request.user, command)
        if isinstance(reply, ErrorReply):
            raise Refusal.from_reply(reply)
        return reply
    if isinstance(command, _APPENDING):
        raise Refusal(
            ErrorCode.OUTCOME_UNKNOWN,
            f"no answer within {CALL_TIMEOUT_S:g} s: it may or may not have been stored; "
            "repeat with the same client_msg_id and a greater attempt",
        )
    raise Refusal(ErrorCode.UNAVAILABLE, f"no answer within {CALL_TIMEOUT_S:g} s; nothing was changed: ask again")
