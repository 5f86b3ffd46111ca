"""Authentication by the first frame, for clients that cannot set a header (browsers)."""

import socket

import trio

from gateway.auth import TokenRefused, Verifier
from gateway.edge.connection import CLOSED
from gateway.edge.farewell import farewell
from gateway.edge.outgoing import encode_for
from gateway.edge.parking import Parking
from gateway.edge.sessions import Sessions
from protocol import limits
from protocol.codec import CodecError, InvalidFrame, UnknownFrame, decode_command
from protocol.errors import CloseCode, ErrorCode
from protocol.frames import Authenticate, ErrorReply
from protocol.websocket import FrameError, FrameReader, Message, Opcode, encode_close, encode_frame


class _Ended(Exception):
    """The connection ends before it was authenticated; ``farewell`` are its last bytes."""

    def __init__(self, farewell: bytes = b"") -> None:
        super().__init__()
        self.farewell = farewell


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
            farewell(sock, ended.farewell)
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
            farewell(sock, _refused(command.id, ErrorCode.TOKEN_REFUSED, str(error), json).farewell)
            return
        connection = self._sessions.open(sock, identity, command.device or device, json=json)
        if not connection.flags & CLOSED:
            self._parking.adopt(connection, introduction.reader, introduction.rest)

    async def _receive(
        self, sock: socket.socket, reader: FrameReader, json: bool
    ) -> tuple[Authenticate, list[Message]]:
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                data = sock.recv(limits.COMMAND_BYTES_MAX)
            except BlockingIOError:
                continue
            if not data:
                raise _Ended
            try:
                messages = reader.feed(data)
            except FrameError as error:
                raise _Ended(encode_close(error.close_code, str(error))) from None
            for index, message in enumerate(messages):
                if message.opcode == Opcode.CLOSE:
                    raise _Ended(encode_close(CloseCode.NORMAL))
                if message.opcode == Opcode.PING:
                    sock.send(encode_frame(Opcode.PONG, message.payload))
                elif message.opcode == (Opcode.TEXT if json else Opcode.BINARY):
                    return _decode(message.payload, json), messages[index + 1 :]
                elif message.opcode != Opcode.PONG:
                    wanted = "text" if json else "binary"
                    raise _Ended(encode_close(CloseCode.UNSUPPORTED_DATA, f"send {wanted} messages"))


def _decode(payload: bytes, json: bool) -> Authenticate:
    try:
        command = decode_command(payload, json=json)
    except CodecError as error:
        raise _Ended(encode_close(CloseCode.BAD_FRAME, str(error))) from None
    except InvalidFrame as error:
        raise _refused(error.request_id, error.code, str(error), json) from None
    except UnknownFrame as error:
        raise _refused(error.request_id, ErrorCode.NOT_AUTHENTICATED, "authenticate first", json) from None
    if not isinstance(command, Authenticate):
        raise _refused(command.id, ErrorCode.NOT_AUTHENTICATED, "authenticate first", json)
    if not command.device.isprintable():
        # The rule of the URL.
        raise _refused(command.id, ErrorCode.BAD_REQUEST, "device must be of printable characters - at `$[3]`", json)
    return command


def _refused(request_id: int, code: ErrorCode, message: str, json: bool) -> _Ended:
    reply = encode_for(ErrorReply(request_id, code, message), json=json)
    return _Ended(reply + encode_close(CloseCode.TOKEN_REFUSED, message))
