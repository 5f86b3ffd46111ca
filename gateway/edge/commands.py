"""A frame of a parked connection: decoded, admitted, handed to whoever answers it."""

from collections.abc import Callable
from typing import Any

from msgspec import DecodeError

from gateway.broker import EdgePort, Origin, OwnerPort
from gateway.config import Settings
from gateway.edge.connection import JSON, Connection, ConnectionTable
from gateway.edge.ports import CatchupPort
from gateway.edge.presence import Presences
from gateway.edge.refreshes import Refreshes
from gateway.edge.writer import Writer
from protocol import frames
from protocol.codec import CodecError, InvalidFrame, UnknownFrame, decode_command, decode_command_fast, explain_command
from protocol.errors import CloseCode, ErrorCode
from protocol.frames import Authenticate, Command, ErrorReply, Ping, Pong, Sync, WatchPresence

Handler = Callable[[Any, Any], None]


class Commands:
    """Handles the frames of open connections, in arrival order per connection. All plain calls.

    Attributes:
        rate_limited: commands refused for their number, ever.
        invalid: frames refused for their form, ever.
    """

    def __init__(
        self,
        settings: Settings,
        table: ConnectionTable,
        writer: Writer,
        edge: EdgePort,
        *,
        owner: OwnerPort,
        catchup: CatchupPort,
        presences: Presences,
        refreshes: Refreshes,
    ) -> None:
        self._table = table
        self._writer = writer
        self._edge = edge
        self._interval_s = 1 / settings.commands_per_s_max if settings.commands_per_s_max else 0.0
        self._burst_s = self._interval_s * settings.commands_burst_max
        self.rate_limited = 0
        self.invalid = 0
        self.handlers: dict[type, Handler] = {
            Ping: self._ping,
            Sync: catchup.submit,
            frames.ListConversations: catchup.submit,
            WatchPresence: presences.watch,
            Authenticate: refreshes.submit,
        }
        for command in (
            frames.Send,
            frames.CreateConversation,
            frames.AddMembers,
            frames.RemoveMembers,
            frames.Rename,
            frames.MarkReceipt,
            frames.Typing,
            frames.History,
            frames.GetConversation,
        ):
            self.handlers[command] = owner.submit

    def handle(self, connection: Connection, payload: bytes) -> None:
        """Handle one frame of an open connection."""
        try:
            command = decode_command(payload, json=True) if connection.flags & JSON else decode_command_fast(payload)
        except (DecodeError, RecursionError, UnicodeDecodeError, CodecError, UnknownFrame, InvalidFrame):
            self._refuse_frame(connection, payload)
            return
        if self._interval_s and not self._admit(connection, command.id):
            return
        self.handlers[type(command)](connection, command)

    def submit(self, origin: Origin, command: Command) -> None:
        """Hand on a command that did not come as a frame; commands about the connection itself are not among them."""
        self.handlers[type(command)](origin, command)

    def _admit(self, connection: Connection, request_id: int) -> bool:
        """Rate limit by GCRA (ITU-T I.371): one number per connection, the time at which its burst is used up."""
        now, cells, fd = self._table.now, self._table.allowance_s, connection.fd
        due = cells[fd]
        if due > now + self._burst_s:
            self.rate_limited += 1
            wait_ms = int((due - now - self._burst_s) * 1000) + 1
            message = f"more than {1 / self._interval_s:g} commands a second: wait {wait_ms} ms"
            self._edge.reply(connection, ErrorReply(request_id, ErrorCode.RATE_LIMITED, message, wait_ms))
            return False
        cells[fd] = (max(now, due)) + self._interval_s
        return True

    def _refuse_frame(self, connection: Connection, payload: bytes) -> None:
        self.invalid += 1
        error = explain_command(payload, json=bool(connection.flags & JSON))
        match error:
            case CodecError():
                self._writer.close(connection, CloseCode.BAD_FRAME, str(error))
            case UnknownFrame(tag=tag, request_id=request_id):
                message = f"tag {tag} is no command of this version"
                self._edge.reply(connection, ErrorReply(request_id, ErrorCode.UNKNOWN_COMMAND, message))
            case InvalidFrame(request_id=request_id, code=code):
                self._edge.reply(connection, ErrorReply(request_id, code, str(error)))

    def _ping(self, connection: Connection, command: Ping) -> None:
        self._edge.reply(connection, Pong(command.id))
