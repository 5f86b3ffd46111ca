"""Authentication by the first frame, for clients that cannot set a header (browsers)."""

import socket

import trio

from gateway.auth import Identity, TokenRefused, Verifier
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


class FirstFrame:
    """Waits for the authenticate command of a fresh WebSocket and opens the connection."""

    def __init__(self, verifier: Verifier, sessions: Sessions, parking: Parking) -> None:
        self._verifier = verifier
        self._sessions = sessions
        self._parking = parking

    async def authenticate(self, sock: socket.socket, device: str, *, json: bool) -> None:
        """Open a connection on ``sock`` or close it; ``device`` is the one named in the URL, if any.

        A cancellation (the deadline, the end of the node) leaves the socket open, for the caller to close.
        """
        reader = FrameReader(limits.COMMAND_BYTES_MAX, limits.FRAGMENTS_MAX)
        try:
            command, rest = await self._receive(sock, reader, json)
            identity = await self._verify(command, json)
        except _Ended as ended:
            farewell(sock, ended.farewell)
            return
        connection = self._sessions.open(sock, identity, command.device or device, json=json)
        if connection.fd >= 0:
            self._parking.adopt(connection, reader, rest)

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

    async def _verify(self, command: Authenticate, json: bool) -> Identity:
        try:
            return await self._verifier.verify_fresh(command.token)
        except TokenRefused as error:
            raise _refused(command.id, ErrorCode.TOKEN_REFUSED, str(error), json) from None


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
    return command


def _refused(request_id: int, code: ErrorCode, message: str, json: bool) -> _Ended:
    reply = encode_for(ErrorReply(request_id, code, message), json=json)
    return _Ended(reply + encode_close(CloseCode.TOKEN_REFUSED, message))
