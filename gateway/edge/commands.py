"""A frame of a parked connection: decoded, admitted, handed to whoever answers it."""

from collections.abc import Callable
from typing import Any

import structlog
from msgspec import DecodeError

from gateway.broker import Origin, OwnerPort, is_channel
from gateway.edge.admission import Admission
from gateway.edge.connection import JSON, Connection
from gateway.edge.fanout import JOBS_MAX, JOBS_PER_CONVERSATION_MAX
from gateway.edge.hub import Hub
from gateway.edge.ports import CatchupPort
from gateway.edge.presence import Presences
from gateway.edge.refreshes import Refreshes
from gateway.edge.writer import Writer
from protocol import frames
from protocol.codec import (
    COMMAND_TAGS,
    CodecError,
    InvalidFrame,
    UnknownFrame,
    decode_command,
    decode_command_fast,
    explain_command,
)
from protocol.errors import CloseCode, ErrorCode
from protocol.frames import (
    Authenticate,
    Command,
    ErrorReply,
    MarkReceipt,
    Ok,
    Ping,
    Pong,
    Send,
    Sync,
    Typing,
    WatchPresence,
)

CONGESTED_RETRY_MS = 500
"""Milliseconds after which a send to a congested conversation may be repeated: some dozens of deliveries further on."""

log = structlog.get_logger(__name__)

Handler = Callable[[Any, Any], None]


class Commands:
    """Handles the frames of open connections, in arrival order per connection. All plain calls.

    Attributes:
        overloaded: sends refused because their conversation has too many deliveries waiting, ever.
        invalid: frames refused for their form, ever.
    """

    def __init__(
        self,
        writer: Writer,
        hub: Hub,
        admission: Admission,
        *,
        owner: OwnerPort,
        catchup: CatchupPort,
        presences: Presences,
        refreshes: Refreshes,
    ) -> None:
        self._writer = writer
        self._hub = hub
        self._admission = admission
        self._submit_to_owner = owner.submit
        self.overloaded = 0
        self.invalid = 0
        self.handlers: dict[type, Handler] = {
            Ping: self._ping,
            Send: self._send,
            Sync: catchup.submit,
            frames.ListConversations: catchup.submit,
            MarkReceipt: self._mark_receipt,
            Typing: self._typing,
            WatchPresence: presences.watch,
            Authenticate: refreshes.submit,
        }
        for command in (
            frames.CreateConversation,
            frames.AddMembers,
            frames.RemoveMembers,
            frames.Rename,
            frames.History,
            frames.GetConversation,
            frames.ListMembers,
        ):
            self.handlers[command] = owner.submit

    def handle(self, connection: Connection, payload: bytes) -> None:
        """Handle one frame of an open connection."""
        try:
            command = decode_command(payload, json=True) if connection.flags & JSON else decode_command_fast(payload)
        except (DecodeError, RecursionError, UnicodeDecodeError, CodecError, UnknownFrame, InvalidFrame):
            self._refuse_frame(connection, payload)
            return
        wait_s = self._admission.wait_s(connection)
        if wait_s:
            self._refuse_number(connection, command.id, wait_s)
            return
        try:
            self.handlers[type(command)](connection, command)
        except Exception:
            # One connection's command must not end the node: it is our bug, logged whole, and told as such.
            log.exception("command failed", **_ids(connection, command))
            self._writer.close(connection, CloseCode.INTERNAL_ERROR, "a fault of the node, which has logged it")

    def submit(self, origin: Origin, command: Command) -> None:
        """Hand on a command that did not come as a frame; commands about the connection itself are not among them."""
        self.handlers[type(command)](origin, command)

    def _refuse_number(self, connection: Connection, request_id: int, wait_s: float) -> None:
        refusal = self._admission.refusal("commands a second", wait_s)
        self._hub.reply(connection, refusal.reply(request_id))

    def _refuse_frame(self, connection: Connection, payload: bytes) -> None:
        self.invalid += 1
        error = explain_command(payload, json=bool(connection.flags & JSON))
        if isinstance(error, CodecError):
            self._writer.close(connection, CloseCode.BAD_FRAME, str(error))
            return
        wait_s = self._admission.wait_s(connection)
        if wait_s:
            self._refuse_number(connection, error.request_id, wait_s)
        elif isinstance(error, UnknownFrame):
            known = f"{COMMAND_TAGS[0]} to {COMMAND_TAGS[-1]}"
            message = f"tag {error.tag} is no command of this node: use {known}, or do without"
            self._hub.reply(connection, ErrorReply(error.request_id, ErrorCode.UNKNOWN_COMMAND, message))
        else:
            self._hub.reply(connection, ErrorReply(error.request_id, error.code, str(error)))

    def _ping(self, connection: Connection, command: Ping) -> None:
        self._hub.reply(connection, Pong(command.id))

    def _mark_receipt(self, origin: Origin, command: MarkReceipt) -> None:
        """That an entry was delivered is not kept in channels: it would cost a write for each member and entry.

        It is answered here, whether there is such a channel or not, because even an owner's memory of ten thousand who
        tell it at the same moment would be asked for too much.
        """
        if not command.read_seq and is_channel(command.conversation_id):
            self._done(origin, command.id)
        else:
            self._submit_to_owner(origin, command)

    def _typing(self, origin: Origin, command: Typing) -> None:
        """Nobody is told who types in a channel."""
        if is_channel(command.conversation_id):
            self._done(origin, command.id)
        else:
            self._submit_to_owner(origin, command)

    def _done(self, origin: Origin, request_id: int) -> None:
        if request_id:
            self._hub.reply(origin, Ok(request_id))

    def _send(self, origin: Origin, command: Send) -> None:
        if self._hub.fanout.congested(command.conversation_id):
            self.overloaded += 1
            message = (
                f"{JOBS_PER_CONVERSATION_MAX} deliveries of this conversation or {JOBS_MAX} of all are still being "
                f"written, the most allowed; nothing was stored: repeat it in {CONGESTED_RETRY_MS} ms"
            )
            self._hub.reply(origin, ErrorReply(command.id, ErrorCode.OVERLOADED, message, CONGESTED_RETRY_MS))
            return
        self._submit_to_owner(origin, command)


def _ids(connection: Connection, command: Command) -> dict[str, Any]:
    """By which the log names a command, and what it is about."""
    return {
        "user": connection.user,
        "connection": connection.fd,
        "command": type(command).__name__,
        "request": command.id,
        "conversation": getattr(command, "conversation_id", ""),
    }
