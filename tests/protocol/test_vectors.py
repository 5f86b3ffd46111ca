"""The golden vectors: the code must read and write these very bytes.

They were worked out by hand and are changed by hand only: nothing here writes them.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol.codec import decode_command, decode_entry, decode_server_frame, encode_msgpack
from protocol.websocket import (
    FrameReader,
    Opcode,
    encode_close,
    encode_frame,
    encode_masked_frame,
    parse_close,
    read_header,
    unmask,
)
from tests.protocol.strategies import COMMANDS, FRAMES

PATH = Path(__file__).parents[2] / "protocol" / "vectors.json"
VECTORS: list[dict[str, Any]] = json.loads(PATH.read_text())
FRAME_VECTORS = [vector for vector in VECTORS if "ws" not in vector["decoded"]]
WS_VECTORS = [vector for vector in VECTORS if "ws" in vector["decoded"]]
COMMAND_NAMES = {frame.__name__ for frame in COMMANDS}


def name_of(vector: dict[str, Any]) -> str:
    return vector["name"].replace(" ", "-")


def plain(value: Any) -> Any:
    """A frame, or a part of one, as the vectors write it: structs as objects of their fields."""
    if isinstance(value, msgspec.Raw):
        return plain(decode_entry(bytes(value)))
    if isinstance(value, msgspec.Struct):
        fields = {field: plain(getattr(value, field)) for field in value.__struct_fields__}
        return {"frame": type(value).__name__, **fields} if type(value) in FRAMES else fields
    if isinstance(value, list):
        return [plain(part) for part in value]
    return value


def decoded(payload: bytes, frame: str, *, as_json: bool = False) -> Any:
    if frame in COMMAND_NAMES:
        return decode_command(payload, json=as_json)
    return decode_server_frame(payload, json=as_json)


def test_names_are_unique() -> None:
    names = [vector["name"] for vector in VECTORS]
    assert len(set(names)) == len(names)


def test_every_frame_has_a_vector() -> None:
    assert {vector["decoded"]["frame"] for vector in FRAME_VECTORS} == {frame.__name__ for frame in FRAMES}
    assert {vector["decoded"]["ws"] for vector in WS_VECTORS} == {opcode.name for opcode in Opcode}


@pytest.mark.parametrize("vector", FRAME_VECTORS, ids=name_of)
def test_frames(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    frame = decoded(data, vector["decoded"]["frame"], as_json=data[:1] == b"[")
    assert plain(frame) == vector["decoded"]
    if vector.get("decode_only"):  # another spelling of the frame, which receivers accept
        assert encode_msgpack(frame) != data
    else:
        assert encode_msgpack(frame) == data


@pytest.mark.parametrize("vector", WS_VECTORS, ids=name_of)
def test_ws_frames(vector: dict[str, Any]) -> None:
    data, expected = bytes.fromhex(vector["hex"]), vector["decoded"]
    header = read_header(data)
    assert header is not None
    opcode, payload = Opcode[expected["ws"]], bytes.fromhex(expected["payload"])
    assert (header.opcode, header.fin, header.masked) == (opcode, expected["fin"], expected["mask"] is not None)
    assert len(data) == header.header_bytes + header.payload_bytes
    if expected["mask"]:
        mask = bytes.fromhex(expected["mask"])
        assert unmask(data[header.header_bytes :], mask) == payload
        assert encode_masked_frame(opcode, payload, mask, fin=expected["fin"]) == data
    else:
        assert encode_frame(opcode, payload) == data
    if "frame" in expected:
        inner = decoded(payload, expected["frame"]["frame"], as_json=opcode == Opcode.TEXT)
        assert plain(inner) == expected["frame"]
    if opcode == Opcode.CLOSE:
        assert parse_close(payload) == (expected["code"], expected["reason"])
        if not expected["mask"]:
            assert encode_close(expected["code"], expected["reason"]) == data


def test_client_vectors_are_what_a_reader_reads() -> None:
    masked = [vector for vector in WS_VECTORS if vector["decoded"]["mask"]]
    messages = FrameReader(65_536, 128).feed(bytes.fromhex("".join(vector["hex"] for vector in masked)))
    assert [message.opcode.name for message in messages] == ["BINARY", "TEXT", "BINARY", "BINARY", "PING", "CLOSE"]
    assert messages[3].payload.hex() == "920201"
