"""What is fuzzed: functions of bytes that raise, or fail an assertion, only where the code breaks its promise."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.cli.captures import CaptureError, Messages, parse_file, read_capture
from protocol.codec import (
    CodecError,
    InvalidFrame,
    UnknownFrame,
    decode_command,
    decode_server_frame,
    encode_json,
    encode_msgpack,
)
from protocol.handshake import BadRequest, UpgradeRefused, accept_upgrade, is_upgrade, parse_request_head
from protocol.websocket import FrameError, FrameReader, Message, read_small_frame, read_whole_frames

ROOT = Path(__file__).parents[2]
HEAD_LIMIT = 512
MESSAGE_BYTES_MAX = 300
FRAGMENTS_MAX = 4

REQUEST = (
    b"GET /v1/connect?device=a HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: tidegate.v1\r\n\r\n"
)


def fuzz_commands(data: bytes) -> None:
    """Commands: only documented errors; what was decoded survives being encoded again."""
    for as_json in (False, True):
        with contextlib.suppress(CodecError, UnknownFrame, InvalidFrame):
            command = decode_command(data, json=as_json)
            encoded = encode_json(command) if as_json else encode_msgpack(command)
            assert decode_command(encoded, json=as_json) == command


def fuzz_server_frames(data: bytes) -> None:
    """Replies and pushes: only documented errors."""
    for as_json in (False, True):
        with contextlib.suppress(CodecError, UnknownFrame, InvalidFrame):
            decode_server_frame(data, json=as_json)


def fuzz_frame_reader(data: bytes) -> None:
    """WebSocket frames: only FrameError, and any split gives the same. The first byte chooses the split."""
    if not data:
        return
    step, stream = data[0] % 16 + 1, data[1:]
    whole = _read([stream])
    assert _read([stream[place : place + step] for place in range(0, len(stream), step)]) == whole
    small, several = read_small_frame(stream), read_whole_frames(stream)
    if small is not None:
        assert several == [small]
    if several is not None and all(len(payload) <= MESSAGE_BYTES_MAX for payload in several):
        assert [message.payload for message in whole[0]] == several


def _read(pieces: list[bytes]) -> tuple[list[Message], int]:
    """Messages, and the close code of the error (0: none)."""
    reader, messages = FrameReader(MESSAGE_BYTES_MAX, FRAGMENTS_MAX), []
    for piece in pieces:
        try:
            messages += reader.feed(piece)
        except FrameError as error:
            return messages + error.messages, int(error.close_code)
    return messages, 0


def fuzz_request_head(data: bytes) -> None:
    """Request heads: only the two refusals; what comes in two parts is read as if it came in one."""
    try:
        head = parse_request_head(data, HEAD_LIMIT)
    except BadRequest:
        return
    if head is None:
        return
    assert 0 < head.length <= min(len(data), HEAD_LIMIT)
    assert parse_request_head(data[: head.length], HEAD_LIMIT) == head
    assert parse_request_head(data[: head.length - 1], HEAD_LIMIT) is None
    if is_upgrade(head):
        with contextlib.suppress(UpgradeRefused):
            accept_upgrade(head, ("tidegate.v1",))


def fuzz_captures(data: bytes) -> None:
    """What people give ``tidegate decode``: shown or refused."""
    messages: Messages = {}
    with contextlib.suppress(CaptureError):
        for capture in parse_file(data):
            for _ in read_capture(capture, messages):
                pass


def fuzz_planted(data: bytes) -> None:
    """Broken on purpose, where only a fuzzer gets that sees which lines an input reaches (1 in 2**40 by chance)."""
    reached = data[:1] == b"t" and data[1:2] == b"i" and data[2:3] == b"d" and data[3:4] == b"e" and data[4:5] == b"!"
    assert not reached, "planted"


TARGETS: dict[str, Callable[[bytes], None]] = {
    "commands": fuzz_commands,
    "server-frames": fuzz_server_frames,
    "frame-reader": fuzz_frame_reader,
    "request-head": fuzz_request_head,
    "captures": fuzz_captures,
}


def seeds(target: str) -> Iterator[bytes]:
    """Inputs to begin with: valid ones, so that mutations reach beyond the first byte."""
    vectors = [bytes.fromhex(vector["hex"]) for vector in json.loads((ROOT / "protocol" / "vectors.json").read_text())]
    match target:
        case "request-head":
            yield REQUEST
        case "frame-reader":
            yield from (b"\x02" + vector for vector in vectors if vector[1:2] >= b"\x80")
        case "captures":
            yield from vectors
            yield from (vector.hex().encode() for vector in vectors)
        case "planted":
            yield b"gate"
        case _:
            yield from vectors
