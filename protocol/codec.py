"""Frames to bytes and back: msgpack under ``tidegate.v1``, JSON under ``tidegate.v1.json``.

Both carry the same arrays. Decoding garbage raises only the errors named here, whatever the bytes.
"""

import re
from typing import Any, Final, Protocol, get_args, get_type_hints

import msgspec

from protocol.errors import ErrorCode
from protocol.frames import Command, Entry, Push, Reply


class CodecError(Exception):
    """The bytes are no frame at all (malformed msgpack or JSON, not an array with a tag): the peer is broken."""


class UnknownFrame(Exception):
    """A well-formed frame with a tag this version does not know.

    Attributes:
        tag: its first element.
        request_id: its second element where that can be a request id, else 0.
    """

    def __init__(self, tag: int, request_id: int) -> None:
        super().__init__(f"unknown frame: tag {tag}")
        self.tag = tag
        self.request_id = request_id


class InvalidFrame(Exception):
    """A frame of a known tag with a field missing, of the wrong type or out of range.

    Attributes:
        code: the error code to answer with.
        request_id: as in UnknownFrame.
    """

    def __init__(self, message: str, request_id: int) -> None:
        super().__init__(message)
        self.code: Final = ErrorCode.BAD_REQUEST
        self.request_id = request_id


class EntryHead(msgspec.Struct, array_like=True, gc=False):
    """The first fields of an encoded entry, for those who need no more of it."""

    seq: int
    kind: int
    time_us: int


class _Head(msgspec.Struct, array_like=True, gc=False):
    tag: int
    request_id: msgspec.Raw = msgspec.Raw(b"")


class _Decoder(Protocol):
    def decode(self, buf: bytes, /) -> Any: ...


COMMAND_TAGS: Final = range(1, 16)
SERVER_TAGS: Final = frozenset((*range(40, 51), *range(80, 88)))

_TOO_SHORT: Final = re.compile(r"Expected `array` of at least length \d+, got (\d+)")
_NOT_IN_ENUM: Final = re.compile(r"(?P<said>Invalid enum value .*) - at `\$\[(?P<place>\d+)\]`")
_BY_TAG: Final[dict[int, type[msgspec.Struct]]] = {
    frame.__struct_config__.tag: frame for frame in get_args(Command | Reply | Push)
}

encode_msgpack: Final = msgspec.msgpack.Encoder().encode
encode_json: Final = msgspec.json.Encoder().encode
decode_entry: Final = msgspec.msgpack.Decoder(Entry).decode
decode_entry_head: Final = msgspec.msgpack.Decoder(EntryHead).decode
encode_entry: Final = encode_msgpack

_COMMANDS: Final = msgspec.msgpack.Decoder(Command)
_COMMANDS_JSON: Final = msgspec.json.Decoder(Command)
_SERVER: Final = msgspec.msgpack.Decoder(Reply | Push)
_SERVER_JSON: Final = msgspec.json.Decoder(Reply | Push)
_HEAD: Final = msgspec.msgpack.Decoder(_Head)
_HEAD_JSON: Final = msgspec.json.Decoder(_Head)
_ID: Final = msgspec.msgpack.Decoder(int)
_ID_JSON: Final = msgspec.json.Decoder(int)

_ANY: Final = msgspec.msgpack.Decoder()

decode_command_fast: Final = _COMMANDS.decode
"""The msgpack decoder of commands itself: raises msgspec.DecodeError and RecursionError, to be explained by
``explain_command`` off the hot path."""


def decode_command(data: bytes, *, json: bool = False) -> Command:
    """Decode a client's frame.

    Raises:
        CodecError: not a frame at all.
        UnknownFrame: a command of a newer version.
        InvalidFrame: a known command with a bad field; the message names the field and what is allowed.
    """
    return _decode(_COMMANDS_JSON if json else _COMMANDS, data, json, COMMAND_TAGS)  # type: ignore[no-any-return]


def decode_server_frame(data: bytes, *, json: bool = False) -> Reply | Push:
    """Decode a node's frame; raises as ``decode_command`` does. A client ignores UnknownFrame."""
    return _decode(_SERVER_JSON if json else _SERVER, data, json, SERVER_TAGS)  # type: ignore[no-any-return]


def to_json(frame: bytes) -> bytes:
    """The JSON form of one msgpack-encoded frame of ours (embedded raw entries included)."""
    return encode_json(_ANY.decode(frame))


def explain_command(data: bytes, *, json: bool = False) -> CodecError | UnknownFrame | InvalidFrame:
    """Say what is wrong with bytes that a command decoder refused."""
    try:
        decode_command(data, json=json)
    except (CodecError, UnknownFrame, InvalidFrame) as error:
        return error
    raise AssertionError("explain_command was given a valid command")


def _decode(decoder: _Decoder, data: bytes, json: bool, known: range | frozenset[int]) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        tag, request_id = _head(data, json)
        if tag not in known:
            raise UnknownFrame(tag, request_id) from None
        raise InvalidFrame(_explained(str(error), _BY_TAG[tag]), request_id) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CodecError(str(error)) from None


def _explained(message: str, frame: type[msgspec.Struct]) -> str:
    """What msgspec says of a frame; with the missing field, where it tells a length, and with what an enum allows."""
    if (found := _TOO_SHORT.fullmatch(message)) is not None:
        length = int(found[1])
        field = frame.__struct_fields__[length - 1]  # behind the tag
        return f"Expected `{field}` of {frame.__name__}, got the end of the array - at `$[{length}]`"
    if (found := _NOT_IN_ENUM.fullmatch(message)) is not None:
        kinds = get_type_hints(frame)[frame.__struct_fields__[int(found["place"]) - 1]]
        return f"{found['said']}; allowed: {', '.join(str(int(kind)) for kind in kinds)} - at `$[{found['place']}]`"
    return message


def _head(data: bytes, json: bool) -> tuple[int, int]:
    """Tag and request id of a frame that failed validation; CodecError when it has no tag."""
    try:
        head = (_HEAD_JSON if json else _HEAD).decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CodecError(f"not an array that begins with a tag: {error}") from None
    try:
        request_id = (_ID_JSON if json else _ID).decode(bytes(head.request_id))
    except (msgspec.DecodeError, RecursionError):
        request_id = 0
    return head.tag, request_id if 0 <= request_id < 2**32 else 0
