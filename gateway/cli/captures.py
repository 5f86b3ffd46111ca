"""Captured bytes into frames that a person can read. What ``tidegate decode`` shows.

A capture is one payload (msgpack or JSON), or WebSocket frames one behind the other, of either direction or both. They
cannot be mistaken for each other: a payload begins with an array, whose first byte in msgpack would be a WebSocket
frame with reserved bits, and in JSON one with a reserved opcode.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from protocol.codec import CodecError, InvalidFrame, UnknownFrame, decode_command, decode_server_frame
from protocol.errors import CloseCode, ErrorCode
from protocol.frames import Authenticate, Entry, EntryKind, ErrorReply, Reply
from protocol.websocket import FrameError, FrameHeader, Opcode, parse_close, read_header, unmask

_HEX: Final = re.compile(r"(?:0x)?(?:[0-9a-fA-F]{2}[\s:,-]*)+")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_SHOWN_TOKEN_CHARS: Final = 8
"""Characters shown of a token: they tell a JWT from garbage, and are of no use to whoever finds the output."""

_AUTHENTICATE_TAG: Final = Authenticate.__struct_config__.tag
_CLOSE_CODES: Final = {int(code): code for code in CloseCode}
_ERROR_NAMES: Final = {int(code): code.name for code in ErrorCode}

Messages = dict[bool, tuple[int, bytes]]
"""Messages in progress, by whether they are masked: opcode and payload so far."""


class CaptureError(Exception):
    """The capture cannot be read; the message says where and why."""


class Shown(Struct, omit_defaults=True):
    """One thing found in a capture: a WebSocket frame, a frame of ours, or one within the other.

    Attributes:
        ws: opcode, direction and size of the WebSocket frame, if there is one.
        frame: name of our frame; empty when there is none or it is unknown.
        kind: command, reply or push.
        fields: its fields, or what else there is to say.
        problem: what is wrong with it.
    """

    ws: dict[str, Any] | None = None
    frame: str = ""
    kind: str = ""
    fields: dict[str, Any] = {}
    problem: str = ""


def parse_text(text: str) -> bytes:
    """Bytes of one capture given as text: hex (spaces, colons and 0x allowed), base64 (also URL-safe), or JSON itself.

    Raises CaptureError.
    """
    stripped = text.strip()
    if not stripped:
        raise CaptureError("nothing to decode: give hex, base64 or JSON")
    if stripped.startswith("["):
        return stripped.encode()
    if _HEX.fullmatch(stripped):
        return bytes.fromhex(re.sub(r"0x|[\s:,-]", "", stripped))
    decoded = _from_base64("".join(stripped.split()))
    # Hex with a slip in it is base64, too, of bytes that begin nothing
    if decoded and (_begins_payload(decoded[0]) or _begins_ws_frame(decoded[0])):
        return decoded
    raise CaptureError(
        f"{stripped[:40]!a} is neither hex (pairs of the digits 0-9 and a-f), nor base64 of a frame, nor JSON: "
        "give one of them"
    )


def _from_base64(text: str) -> bytes:
    """The bytes; empty if it is no base64."""
    if not _BASE64.fullmatch(text):
        return b""
    text = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return b""


def _begins_payload(first: int) -> bool:
    """Whether a payload can begin with this byte: an array of JSON, or of msgpack."""
    return first == ord("[") or 0x90 <= first <= 0x9F or first in (0xDC, 0xDD)


def _begins_ws_frame(first: int) -> bool:
    return not first & 0x70 and first & 0x0F in set(Opcode)


def parse_file(data: bytes) -> list[bytes]:
    """Captures of a file: one a line of text (not empty ones and those with ``#``), or else all its bytes.

    Raises CaptureError.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return [data]
    if not all(char.isprintable() or char in "\r\n\t" for char in text):
        return [data]
    captures = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                captures.append(parse_text(line))
            except CaptureError as error:
                raise CaptureError(f"line {number}: {error}") from None
    if not captures:
        raise CaptureError("the file is empty: it should hold captured bytes, or hex, base64 or JSON in each line")
    return captures


def read_capture(data: bytes, messages: Messages) -> Iterator[Shown]:
    """What is in one capture, in order; ``messages`` keeps fragmented messages from one capture to the next.

    Raises CaptureError where it cannot be read any further.
    """
    first = data[0]
    if _begins_payload(first):
        yield show_payload(data, json=first == ord("["))
    else:
        yield from _read_ws(data, messages)


def _read_ws(data: bytes, messages: Messages) -> Iterator[Shown]:
    place = 0
    while place < len(data):
        try:
            header = read_header(data[place : place + 14])
        except FrameError as error:
            raise CaptureError(f"offset {place}: {error}") from None
        _check(header, data, place)
        assert header is not None
        start = place + header.header_bytes
        payload = data[start : start + header.payload_bytes]
        if header.masked:
            payload = unmask(payload, data[start - 4 : start])
        yield _show_ws(header, payload, messages)
        place = start + header.payload_bytes


def _check(header: FrameHeader | None, data: bytes, place: int) -> None:
    if place == 0 and not _begins_ws_frame(data[0]):
        raise CaptureError(
            f"byte 0x{data[0]:02x} at offset 0 begins neither an array of msgpack or JSON nor a WebSocket frame"
        )
    if header is None:
        raise CaptureError(f"offset {place}: the capture ends within a WebSocket frame's header")
    if header.rsv or header.opcode not in set(Opcode):
        raise CaptureError(f"offset {place}: byte 0x{data[place]:02x} begins no WebSocket frame")
    missing = place + header.header_bytes + header.payload_bytes - len(data)
    if missing > 0:
        raise CaptureError(
            f"offset {place}: the WebSocket frame has {header.payload_bytes} bytes of payload, "
            f"but the capture ends {missing} bytes too early"
        )


def _show_ws(header: FrameHeader, payload: bytes, messages: Messages) -> Shown:
    opcode = Opcode(header.opcode)
    ws: dict[str, Any] = {
        "opcode": opcode.name,
        "fin": header.fin,
        "masked": header.masked,
        "from": "client" if header.masked else "node",
        "payload_bytes": header.payload_bytes,
    }
    if opcode == Opcode.CLOSE:
        return _show_close(ws, payload)
    if opcode in (Opcode.PING, Opcode.PONG):
        return Shown(ws=ws, fields={"payload": payload.hex()})
    begun, before = messages.pop(header.masked, (header.opcode, b""))
    if not header.fin:
        messages[header.masked] = (begun, before + payload)
        return Shown(ws=ws, fields={"fragment": payload.hex()})
    if begun == Opcode.CONTINUATION:
        return Shown(
            ws=ws, fields={"fragment": payload.hex()}, problem="continues a message that is not in the capture"
        )
    shown = show_payload(before + payload, json=begun == Opcode.TEXT)
    shown.ws = ws
    return shown


def _show_close(ws: dict[str, Any], payload: bytes) -> Shown:
    try:
        code, reason = parse_close(payload)
    except FrameError as error:
        return Shown(ws=ws, fields={"payload": payload.hex()}, problem=str(error))
    fields: dict[str, Any] = {"code": code, "reason": reason}
    known = _CLOSE_CODES.get(code)
    if known is not None:
        fields |= {"name": known.name, "meaning": known.meaning, "reconnect": known.reconnect}
    return Shown(ws=ws, fields=fields)


def show_payload(payload: bytes, *, json: bool) -> Shown:
    """What one payload says; ``problem`` is set where it is no valid frame of this version."""
    try:
        return _show_frame(decode_command(payload, json=json), "command", json=json)
    except InvalidFrame as error:
        return Shown(kind="command", fields=_raw_fields(payload, json), problem=str(error))
    except CodecError as error:
        return Shown(fields={"payload": payload.hex()}, problem=f"not a frame: {error}")
    except UnknownFrame:
        pass  # not a command: a frame of a node, or of another version
    try:
        frame = decode_server_frame(payload, json=json)
    except (InvalidFrame, UnknownFrame, CodecError) as error:
        return Shown(fields=_raw_fields(payload, json), problem=str(error))
    return _show_frame(frame, "reply" if isinstance(frame, Reply) else "push", json=json)


def _raw_fields(payload: bytes, json: bool) -> dict[str, Any]:
    try:
        values = (msgspec.json if json else msgspec.msgpack).decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {"payload": payload.hex()}  # valid as far as the tag, not behind it
    shown = [_plain(value, json) for value in values[1:]]
    if values[0] == _AUTHENTICATE_TAG:
        shown = [_shortened(value) if isinstance(value, str) else value for value in shown]
    return {"tag": values[0], "values": shown}


def _shortened(token: str) -> str:
    return f"{token[:_SHOWN_TOKEN_CHARS]}… ({len(token)} characters, not shown)"


def _show_frame(frame: Struct, kind: str, *, json: bool) -> Shown:
    fields = {name: _plain(getattr(frame, name), json) for name in frame.__struct_fields__}
    if isinstance(frame, Authenticate):
        fields["token"] = _shortened(frame.token)
    elif isinstance(frame, ErrorReply) and frame.code in _ERROR_NAMES:
        fields["name"] = _ERROR_NAMES[frame.code]
    _add_time(fields)
    return Shown(frame=type(frame).__name__, kind=kind, fields=fields)


def _plain(value: Any, json: bool) -> Any:
    """``value`` of plain types: structs as maps, entries in them decoded, bytes as hex."""
    if isinstance(value, msgspec.Raw):
        try:
            value = (msgspec.json if json else msgspec.msgpack).decode(value, type=Entry)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return f"not an entry: {error}"
    if isinstance(value, Struct):
        fields = {name: _plain(getattr(value, name), json) for name in value.__struct_fields__}
        if isinstance(value, Entry):
            fields = {name: field for name, field in fields.items() if field is not None}
            if value.kind in set(EntryKind):
                fields["kind_name"] = EntryKind(value.kind).name
        _add_time(fields)
        return fields
    if isinstance(value, list | tuple):
        return [_plain(part, json) for part in value]
    if isinstance(value, dict):
        return {str(key): _plain(part, json) for key, part in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, msgspec.msgpack.Ext):
        return {"extension": value.code, "data": bytes(value.data).hex()}
    return value


def _add_time(fields: dict[str, Any]) -> None:
    time_us = fields.get("time_us")
    if isinstance(time_us, int) and 0 < time_us < 253_402_300_800_000_000:  # year 10000, where datetime ends
        seconds, micros = divmod(time_us, 1_000_000)
        fields["time"] = datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros).isoformat()
