"""Authentication by the first frame, for clients that cannot set a header (browsers)."""

import socket
from typing import Final

import trio

from gateway.auth import TokenRefused, Verifier
from gateway.edge.connection import CLOSED
from gateway.edge.outgoing import encode_for
from gateway.edge.parking import Parking
from gateway.edge.sessions import Sessions
from protocol import limits
from protocol.codec import CodecError, InvalidFrame, UnknownFrame, decode_command
from protocol.errors import CloseCode, ErrorCode
from protocol.frames import Authenticate, ErrorReply
from protocol.websocket import FrameError, FrameReader, Message, Opcode, encode_frame

FIRST_READ_BYTES: Final = 4_096
"""Bytes read of a stranger in one turn: most tokens fit, and of the smallest ws frames no more than a few
milliseconds of work."""

_BEGIN: Final = "the first frame is not Authenticate: connect again and begin with it (tag 1)"


class _Ended(Exception):
    """The WebSocket is closed before it was authenticated.

    Attributes:
        code: the close code.
        first: ws frames before the close.
    """

    def __init__(self, code: CloseCode, reason: str = "", first: bytes = b"") -> None:
        super().__init__(reason)
        self.code = code
        self.first = first


class Introduction:
    """The authenticate command of a fresh WebSocket, and what was read beyond it."""

    __slots__ = ("command", "reader", "rest")

    def __init__(self, command: Authenticate, reader: FrameReader, rest: list[Message]) -> None:
        self.command = command
        self.reader = reader
        self.rest = rest


class FirstFrame:
    """Waits for the authenticate command of a fresh WebSocket and opens the connection."""

    def __init__(self, verifier: Verifier, sessions: Sessions, parking: Parking) -> None:
        self._verifier = verifier
        self._sessions = sessions
        self._parking = parking

    async def receive(self, sock: socket.socket, *, json: bool) -> Introduction | None:
        """What the client begins with; None when the socket was closed instead.

        A cancellation (the deadline, the end of the node) leaves the socket open, for the caller to close.
        """
        reader = FrameReader(limits.COMMAND_BYTES_MAX, limits.FRAGMENTS_MAX)
        try:
            command, rest = await self._receive(sock, reader, json)
        except _Ended as ended:
            self._end(sock, ended)
            return None
        if command is None:
            sock.close()
            return None
        return Introduction(command, reader, rest)

    async def open(self, sock: socket.socket, device: str, introduction: Introduction, *, json: bool) -> None:
        """Open a connection for who proves to be somebody, or close the socket.

        ``device`` is the one named in the URL, if any. A cancellation leaves the socket open.
        """
        command = introduction.command
        try:
            identity = await self._verifier.verify_fresh(command.token)
        except TokenRefused as error:
            self._end(sock, _refused(command.id, ErrorCode.TOKEN_REFUSED, str(error), json))
            return
        connection = self._sessions.open(sock, identity, command.device or device, json=json)
        if not connection.flags & CLOSED:
            self._parking.adopt(connection, introduction.reader, introduction.rest)

    def _end(self, sock: socket.socket, ended: _Ended) -> None:
        self._sessions.turn_away(sock, ended.code, str(ended), first=ended.first)

    async def _receive(
        self, sock: socket.socket, reader: FrameReader, json: bool
    ) -> tuple[Authenticate | None, list[Message]]:
        """The first command and the messages behind it; None: the client has gone. Raises _Ended."""
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                data = sock.recv(FIRST_READ_BYTES)
            except BlockingIOError:
                continue
            if not data:
                return None, []
            try:
                messages = reader.feed(data)
            except FrameError as error:
                raise _Ended(error.close_code, str(error)) from None
            ping: Message | None = None
            for index, message in enumerate(messages):
                if message.opcode == Opcode.CLOSE:
                    raise _Ended(CloseCode.NORMAL)
                if message.opcode == Opcode.PING:
                    ping = message
                elif message.opcode == (Opcode.TEXT if json else Opcode.BINARY):
                    _answer(sock, ping)
                    return _decode(message.payload, json), messages[index + 1 :]
                elif message.opcode != Opcode.PONG:
                    wanted = "text" if json else "binary"
                    raise _Ended(CloseCode.UNSUPPORTED_DATA, f"send {wanted} messages")
            _answer(sock, ping)


def _answer(sock: socket.socket, ping: Message | None) -> None:
    """Answer the last of several pings, if there was one: it is enough (RFC 6455 section 5.5.3)."""
    if ping is not None:
        sock.send(encode_frame(Opcode.PONG, ping.payload))


def _decode(payload: bytes, json: bool) -> Authenticate:
    try:
        command = decode_command(payload, json=json)
    except CodecError as error:
        raise _Ended(CloseCode.BAD_FRAME, str(error)) from None
    except InvalidFrame as error:
        raise _refused(error.request_id, error.code, str(error), json) from None
    except UnknownFrame as error:
        raise _refused(error.request_id, ErrorCode.NOT_AUTHENTICATED, _BEGIN, json) from None
    if not isinstance(command, Authenticate):
        raise _refused(command.id, ErrorCode.NOT_AUTHENTICATED, _BEGIN, json)
    if not command.device.isprintable():
        # The rule of the URL.
        raise _refused(command.id, ErrorCode.BAD_REQUEST, "device must be of printable characters - at `$[3]`", json)
    return command


def _refused(request_id: int, code: ErrorCode, message: str, json: bool) -> _Ended:
    reply = encode_for(ErrorReply(request_id, code, message), json=json)
    return _Ended(CloseCode.TOKEN_REFUSED, message, reply)
