"""An echo endpoint on the framing of ``protocol`` and a plain trio socket, for a conformance suite to talk to."""

from functools import partial

import trio

from protocol.handshake import accept_upgrade, parse_request_head, upgrade_response
from protocol.websocket import FrameError, FrameReader, Message, Opcode, encode_close, encode_frame, parse_close

MESSAGE_BYTES_MAX = 32 * 1024 * 1024
FRAGMENTS_MAX = 1_000_000
HEAD_BYTES_MAX = 16 * 1024


async def serve_echo(*, task_status: trio.TaskStatus[int]) -> None:
    """Serve until cancelled; reports its port when it accepts connections."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, _echo, 0, host="127.0.0.1"))
        task_status.started(listeners[0].socket.getsockname()[1])


async def _echo(stream: trio.SocketStream) -> None:
    try:
        rest = await _shake_hands(stream)
        reader = FrameReader(MESSAGE_BYTES_MAX, FRAGMENTS_MAX)
        data = rest or await stream.receive_some(65_536)
        while data:
            if await _answer(stream, reader, data):
                await stream.send_eof()
                break
            data = await stream.receive_some(65_536)
        while data:  # closing with bytes unread would reset the connection, and the close frame be lost
            data = await stream.receive_some(65_536)
    except trio.BrokenResourceError:
        return  # the suite cuts connections in some cases


async def _shake_hands(stream: trio.SocketStream) -> bytes:
    data = b""
    while (head := parse_request_head(data, HEAD_BYTES_MAX)) is None:
        chunk = await stream.receive_some(4096)
        if not chunk:
            raise trio.BrokenResourceError
        data += chunk
    await stream.send_all(upgrade_response(accept_upgrade(head, ())))
    return data[head.length :]


async def _answer(stream: trio.SocketStream, reader: FrameReader, data: bytes) -> bool:
    """Answer what the bytes complete; whether the closing handshake was sent."""
    try:
        messages, error = reader.feed(data), None
    except FrameError as caught:
        messages, error = caught.messages, caught
    reply = b"".join(_reply(message) for message in messages)
    closing = error is not None or any(message.opcode == Opcode.CLOSE for message in messages)
    if error is not None:
        reply += encode_close(error.close_code, str(error))
    await stream.send_all(reply)
    return closing


def _reply(message: Message) -> bytes:
    if message.opcode == Opcode.PING:
        return encode_frame(Opcode.PONG, message.payload)
    if message.opcode == Opcode.PONG:
        return b""
    if message.opcode == Opcode.CLOSE:
        return encode_close(*parse_close(message.payload))
    return encode_frame(message.opcode, message.payload)
