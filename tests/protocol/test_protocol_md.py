"""PROTOCOL.md says what the code does: its tables of frames, limits and codes and its examples are compared."""

import json
import re
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from gateway.edge import listener
from gateway.edge.catchup import SYNCS_EACH_MAX
from gateway.edge.presence import WATCH_COMMANDS_EACH_MAX
from gateway.owner.receipts import RECEIPT_PUSH_MEMBERS_MAX
from protocol import frames, handshake, limits
from protocol.codec import decode_command, decode_server_frame
from protocol.errors import CloseCode, ErrorCode
from protocol.handshake import accept_upgrade, parse_request_head, upgrade_response
from protocol.websocket import read_header, unmask
from tests.protocol.strategies import COMMANDS, FRAMES, tag_of

FOLDER = Path(frames.__file__).parent
TEXT = (FOLDER / "PROTOCOL.md").read_text()
PARTS = (frames.Entry, frames.Member, frames.Presence, frames.Conversation, frames.SyncedConversation)


def type_text(kind: inspect.Type) -> str:
    """How the document writes a type."""
    match kind:
        case inspect.BoolType():
            return "bool"
        case inspect.IntType(ge=None, le=None):
            return "int"
        case inspect.IntType(ge=ge, le=None):
            return f"int, at least {ge}"
        case inspect.IntType(ge=ge, le=le):
            return f"int, {ge} to {'2^53 - 1' if le == 2**53 - 1 else '2^32 - 1' if le == 2**32 - 1 else le}"
        case inspect.FloatType():
            return "float"
        case inspect.StrType(min_length=least, max_length=most):
            if most is None:
                return "str"
            return f"str, {least} to {most} characters" if least else f"str, at most {most} characters"
        case inspect.ListType(item_type=item, max_length=most):
            bound = f", at most {most}" if most else ""
            return f"array of {type_text(item)}{bound}"
        case inspect.DictType(key_type=key, value_type=value):
            return f"map of {type_text(key)} to {type_text(value)}"
        case inspect.EnumType(cls=cls):
            return cls.__name__
        case inspect.NoneType():
            return "nil"
        case inspect.UnionType(types=types):
            return " or ".join(type_text(part) for part in types if not isinstance(part, inspect.RawType))
        case inspect.RawType():
            return "Entry"
        case inspect.StructType(cls=cls):
            return cls.__name__
    raise AssertionError(f"no text for {kind}")


def default_text(field: inspect.Field) -> str:
    if field.required:
        return "required"
    if field.default_factory is list or field.default == "":
        return "empty"
    if field.default is None:
        return "nil"
    return str(field.default).lower()


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the first table after a line that is exactly ``heading``; empty if the next heading comes first."""
    lines = TEXT.splitlines()
    assert lines.count(heading) == 1, f"PROTOCOL.md has {lines.count(heading)} lines {heading!r}, expected 1"
    table: list[str] = []
    for line in lines[lines.index(heading) + 1 :]:
        if line.startswith("|"):
            table.append(line)
        elif table or line.startswith("#"):
            break
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def expected_fields(struct: type) -> list[list[str]]:
    shape = inspect.type_info(struct)
    assert isinstance(shape, inspect.StructType)
    return [[f"`{field.name}`", type_text(field.type), default_text(field)] for field in shape.fields]


@pytest.mark.parametrize("frame", FRAMES)
def test_frames(frame: type) -> None:
    rows = rows_below(f"#### {tag_of(frame)} {frame.__name__}")
    assert [row[:3] for row in rows] == expected_fields(frame)
    assert all(row[3] for row in rows), "every field has a meaning"


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_frames(part: type) -> None:
    rows = rows_below(f"#### {part.__name__}")
    assert [row[:3] for row in rows] == expected_fields(part)
    assert all(row[3] for row in rows)


def test_no_frame_is_described_that_does_not_exist() -> None:
    described = set(re.findall(r"^#### (.+)$", TEXT, re.MULTILINE))
    named = {f"{tag_of(frame)} {frame.__name__}" for frame in FRAMES}
    assert described == named | {part.__name__ for part in (*PARTS, frames.EntryKind, frames.ConversationKind)}


@pytest.mark.parametrize("enum", [frames.EntryKind, frames.ConversationKind])
def test_kinds(enum: type[IntEnum]) -> None:
    assert [row[:2] for row in rows_below(f"#### {enum.__name__}")] == [[str(int(kind)), kind.name] for kind in enum]


def test_limits() -> None:
    found = {row[0]: row[1] for row in rows_below("## 13. Limits")}
    values = {f"`{name}`": value for name, value in vars(limits).items() if name.isupper()}
    assert found == {name: f"{value:,}" if isinstance(value, int) else f"{value:g}" for name, value in values.items()}


def test_error_codes() -> None:
    rows = rows_below("## 11. Error codes")
    assert [row[:4] for row in rows] == [
        [str(int(code)), code.name, "yes" if code.retry else "no", code.meaning] for code in ErrorCode
    ]


def test_close_codes() -> None:
    rows = rows_below("## 12. Close codes")
    assert [row[:4] for row in rows] == [
        [str(int(code)), code.name, code.reconnect, code.meaning] for code in CloseCode
    ]


def test_names_in_the_text_exist() -> None:
    """Whatever is written like a limit, a code or a frame's field is one."""
    known = {name for name in vars(limits) if name.isupper()}
    known |= {code.name for code in (*ErrorCode, *CloseCode, *frames.EntryKind, *frames.ConversationKind)}
    mentioned = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)`", TEXT))
    assert mentioned
    assert mentioned <= known


def test_numbers_in_the_text_are_the_limits() -> None:
    for text in (
        f"every {limits.HEARTBEAT_INTERVAL_S:g} s",
        f"{limits.IDLE_TIMEOUT_S:g} s of silence",
        f"{limits.TOKEN_EXPIRY_NOTICE_S:g} s before",
        f"min({limits.RECONNECT_MAX_S:g}, {limits.RECONNECT_BASE_S:g} × 2^(n - 1))",
        f"{limits.SYNC_ENTRIES_MAX} newest entries",
        f"{limits.COMMAND_BYTES_MAX:,} bytes",
        f"{limits.SERVER_FRAME_BYTES_MAX:,} bytes",
        f"{limits.AUTHENTICATE_TIMEOUT_S:g} s",
        f"at most {RECEIPT_PUSH_MEMBERS_MAX} members",
        f"{SYNCS_EACH_MAX} `Sync` and `ListConversations`, and {WATCH_COMMANDS_EACH_MAX} `WatchPresence`",
    ):
        assert text in TEXT, text


def test_statuses_of_a_refused_handshake() -> None:
    """All with which the code refuses one have a row that says what to do."""
    sources = [Path(module.__file__).read_text() for module in (handshake, listener)]
    refusals = re.findall(r"\b(?:Refused|BadRequest|UpgradeRefused)\(\s*(\d{3})\b", "".join(sources))
    rows = rows_below("A refused handshake is an HTTP response with one line of text that says what was wrong:")
    assert {status for row in rows for status in row[0].split(", ")} == set(refusals)
    assert all(all(row) for row in rows)


def test_handshake_example() -> None:
    request, response = re.findall(r"```http\n(.*?)```", TEXT, re.DOTALL)
    head = parse_request_head(request.replace("\n", "\r\n").encode(), 4096)
    assert head is not None
    upgrade = accept_upgrade(head, (frames.SUBPROTOCOL, frames.SUBPROTOCOL_JSON))
    assert upgrade_response(upgrade).decode() == response.replace("\n", "\r\n")


def hex_example(title: str) -> bytes:
    """The bytes of the block of annotated hex that follows ``title``: each line up to its first two spaces."""
    found = re.search(rf"{re.escape(title)}\n\n```text\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None, title
    return bytes.fromhex("".join(line.strip().partition("  ")[0] for line in found[1].splitlines()))


def vector(name: str) -> dict[str, Any]:
    return next(each for each in json.loads((FOLDER / "vectors.json").read_text()) if each["name"] == name)


def test_worked_examples() -> None:
    data = hex_example("Command `Ping` with id 1, in its WebSocket frame:")
    header = read_header(data)
    assert header is not None
    start = header.header_bytes
    assert decode_command(unmask(data[start:], data[start - 4 : start])) == frames.Ping(1)
    assert data.hex() == vector("ws: a ping command, masked")["hex"]
    send = hex_example("Command `Send`, the payload alone:")
    assert send.hex() == vector("send")["hex"]
    pushed = hex_example("Push `EntryPush`, the payload alone:")
    assert pushed.hex() == vector("entry pushed")["hex"]
    assert isinstance(decode_server_frame(pushed), frames.EntryPush)
    ack = hex_example("Reply `SendAck`, in its WebSocket frame:")
    assert ack[:2].hex() == f"82{len(ack) - 2:02x}"
    assert ack[2:].hex() == vector("send acknowledged")["hex"]


def test_json_examples() -> None:
    examples = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert examples
    lines = [line for example in examples for line in example.splitlines()]
    command_tags = {tag_of(frame) for frame in COMMANDS}
    for line in lines:
        decode = decode_command if msgspec.json.decode(line)[0] in command_tags else decode_server_frame
        decode(line.encode(), json=True)
