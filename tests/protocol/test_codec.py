"""The codec: every frame survives both encodings; garbage raises only the documented errors; old and new can meet."""

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import frames
from protocol.codec import (
    CodecError,
    InvalidFrame,
    UnknownFrame,
    decode_command,
    decode_command_fast,
    decode_entry,
    decode_server_frame,
    encode_entry,
    encode_json,
    encode_msgpack,
    explain_command,
    to_json,
)
from protocol.errors import ErrorCode
from tests.protocol.strategies import COMMANDS, FRAMES, PUSHES, REPLIES, instances, tag_of

# There are 32 frames: a few dozen examples of each are a thousand in all.
few_examples = settings(max_examples=30)
DOCUMENTED = (CodecError, UnknownFrame, InvalidFrame)


def decode(frame: type, data: bytes, *, json: bool = False) -> Any:
    return decode_command(data, json=json) if frame in COMMANDS else decode_server_frame(data, json=json)


@pytest.mark.parametrize("frame", FRAMES)
@few_examples
@given(data=st.data())
def test_every_frame_survives_msgpack(frame: type, data: st.DataObject) -> None:
    value = data.draw(instances(frame))
    encoded = encode_msgpack(value)
    assert encoded[1] == tag_of(frame)
    assert decode(frame, encoded) == value


@pytest.mark.parametrize("frame", FRAMES)
@few_examples
@given(data=st.data())
def test_every_frame_survives_json(frame: type, data: st.DataObject) -> None:
    value = data.draw(instances(frame, json=True))
    assert decode(frame, encode_json(value), json=True) == value


@pytest.mark.parametrize("frame", [*REPLIES, *PUSHES])
@few_examples
@given(data=st.data())
def test_json_form_of_a_msgpack_frame_says_the_same(frame: type, data: st.DataObject) -> None:
    encoded = encode_msgpack(data.draw(instances(frame)))
    as_json = to_json(encoded)
    assert type(decode_server_frame(as_json, json=True)) is frame
    assert msgspec.json.decode(as_json) == msgspec.msgpack.decode(encoded)


@given(instances(frames.Entry), instances(frames.Conversation))
def test_node_may_put_an_encoded_entry_into_a_conversation(entry: frames.Entry, shown: frames.Conversation) -> None:
    encoded = msgspec.structs.replace(shown, last_entry=msgspec.Raw(encode_entry(entry)))
    reply = decode_server_frame(encode_msgpack(frames.ConversationReply(1, encoded)))
    assert reply.conversation == msgspec.structs.replace(shown, last_entry=entry)


@given(instances(frames.Entry))
def test_entry_survives(entry: frames.Entry) -> None:
    assert decode_entry(encode_entry(entry)) == entry


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("json", [False, True])
@few_examples
@given(data=st.data())
def test_unknown_trailing_fields_are_ignored(frame: type, json: bool, data: st.DataObject) -> None:
    """A frame of a newer version, with fields that this one does not know, is read as if they were not there."""
    codec = msgspec.json if json else msgspec.msgpack
    value = data.draw(instances(frame, json=json))
    fields = codec.decode(codec.encode(value))
    extra = data.draw(
        st.lists(st.none() | st.booleans() | st.text(max_size=5) | st.lists(st.integers(0, 9)), max_size=3)
    )
    newer = decode(frame, codec.encode([*fields, *extra]), json=json)
    assert codec.decode(codec.encode(newer)) == fields


@pytest.mark.parametrize("frame", FRAMES)
@few_examples
@given(data=st.data())
def test_fields_with_a_default_may_be_left_out(frame: type, data: st.DataObject) -> None:
    """A frame of an older version, without the fields added since, is read with their defaults."""
    fields = msgspec.structs.fields(frame)
    required = [field for field in fields if field.required]
    value = data.draw(instances(frame))
    older = decode(frame, encode_msgpack(msgspec.msgpack.decode(encode_msgpack(value))[: 1 + len(required)]))
    for field in fields:
        default = [] if field.default_factory is list else field.default
        assert getattr(older, field.name) == (getattr(value, field.name) if field.required else default)


@pytest.mark.parametrize("json", [False, True])
def test_short_forms(json: bool) -> None:
    encode = encode_json if json else encode_msgpack
    assert decode_command(encode([2]), json=json) == frames.Ping(0)
    assert decode_command(encode([3, 7, "d1", "m1", "hi"]), json=json) == frames.Send(7, "d1", "m1", "hi", None, 1)
    assert decode_command(encode([10, 7]), json=json) == frames.Sync(7, None, False)
    assert decode_server_frame(encode([86]), json=json) == frames.Resync([])


@pytest.mark.parametrize("json", [False, True])
@given(data=st.binary(max_size=80))
def test_garbage_raises_only_documented_errors(json: bool, data: bytes) -> None:
    for prefix in (b"", b"[3,1,", b"\x96\x03\x01", b"\x94\x0a\x01\x81"):
        with contextlib.suppress(*DOCUMENTED):
            decode_command(prefix + data, json=json)
        with contextlib.suppress(*DOCUMENTED):
            decode_server_frame(prefix + data, json=json)


@pytest.mark.parametrize("frame", FRAMES)
@few_examples
@given(data=st.data())
def test_damaged_frames_raise_only_documented_errors(frame: type, data: st.DataObject) -> None:
    encoded = bytearray(encode_msgpack(data.draw(instances(frame))))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(*DOCUMENTED):
        decode(frame, bytes(encoded))
    with contextlib.suppress(*DOCUMENTED):
        decode(frame, bytes(encoded[:place]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91",
        b"\x90",
        b"\x03",
        b"\x91\xa3abc",
        b"\x92\x02\x01\x00",  # a ping and one byte too many
        b"\x92\x02",
        b"\x93\x02\x01" + b"\x91" * 60_000,  # nested deeper than anybody's stack
        b"\x93\x02\x01" + b"\x81\x01" * 30_000 + b"\x01",
        b"\xdd\xff\xff\xff\xff\x03",  # an array of 4 billion elements
        b"\xdf\xff\xff\xff\xff",
        b"\x96\x03\x01\xa1a\xa1b\xdb\xff\xff\xff\xff",  # a string of 4 GiB
        b"\x96\x03\x01\xa1a\xa1b\xa1c\xdf\xff\xff\xff\xff",
        b"\x95\x03\x01\xa1a\xa1b\xa1\xff",  # not UTF-8
    ],
)
def test_what_is_no_frame_at_all(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_command(data)
    assert isinstance(explain_command(data), CodecError)
    with pytest.raises((msgspec.DecodeError, RecursionError, UnicodeDecodeError)):
        decode_command_fast(data)


@pytest.mark.parametrize(
    "data", [b"", b"[", b"{}", b"3", b"[]", b'["a"]', b"[2,1]x", b"[" * 60_000, b"\xff", b'[13,1,"\xff"]']
)
def test_what_is_no_json_frame_at_all(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_command(data, json=True)


@pytest.mark.parametrize(
    ("fields", "tag", "request_id"),
    [([99, 7, "x"], 99, 7), ([0], 0, 0), ([-1, 5], -1, 5), ([40, 3], 40, 3), ([99, "x"], 99, 0), ([99, 2**32], 99, 0)],
)
def test_unknown_commands(fields: list[Any], tag: int, request_id: int) -> None:
    for data, json in ((encode_msgpack(fields), False), (encode_json(fields), True)):
        with pytest.raises(UnknownFrame) as caught:
            decode_command(data, json=json)
        assert (caught.value.tag, caught.value.request_id) == (tag, request_id)


@pytest.mark.parametrize("tag", [1, 14, 39, 51, 79, 88, 127, 128])
def test_unknown_frames_of_a_node(tag: int) -> None:
    with pytest.raises(UnknownFrame):
        decode_server_frame(encode_msgpack([tag, 1]))


@pytest.mark.parametrize(
    ("fields", "request_id", "part"),
    [
        ([3, 5, "d1", "m1"], 5, "Expected `body` of Send, got the end of the array - at `$[4]`"),
        ([3], 0, "Expected `id` of Send, got the end of the array - at `$[1]`"),
        ([3, 5, 6, "m1", "hi"], 5, "Expected `str`, got `int` - at `$[2]`"),
        ([3, 5, "", "m1", "hi"], 5, "length >= 1"),
        ([3, 5, "d" * 65, "m1", "hi"], 5, "length <= 64"),
        ([3, 5, "d1", "m1", "hi", {"k": 1}], 5, "Expected `str`, got `int`"),
        ([3, 5, "d1", "m1", "hi", None, 0], 5, ">= 1"),
        ([3, 5, "d1", "m1", "hi", None, 2**53], 5, "<= 9007199254740991"),
        ([3, -5, "d1", "m1", "hi"], 0, ">= 0"),
        ([3, 2**32, "d1", "m1", "hi"], 0, "<= 4294967295"),
        ([4, 5, 4, [], "m1"], 5, "Invalid enum value 4; allowed: 1, 2, 3 - at `$[2]`"),
        ([4, 5, 2, ["u"] * 257, "m1"], 5, "length <= 256"),
        ([8, 5, "d1", 2**53], 5, "<= 9007199254740991"),
        ([10, 5, {"d1": -1}], 5, ">= 0"),
        ([11, 5, "d1", None, None, 201], 5, "<= 200"),
        ([12, 5, "", 0], 5, ">= 1"),
        ([14, 5, ["u"] * 101], 5, "length <= 100"),
    ],
)
def test_bad_fields_are_named(fields: list[Any], request_id: int, part: str) -> None:
    for data, json in ((encode_msgpack(fields), False), (encode_json(fields), True)):
        with pytest.raises(InvalidFrame) as caught:
            decode_command(data, json=json)
        assert caught.value.code is ErrorCode.BAD_REQUEST
        assert caught.value.request_id == request_id
        assert part in str(caught.value)


def test_explaining_a_valid_command_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        explain_command(encode_msgpack(frames.Ping(1)))
