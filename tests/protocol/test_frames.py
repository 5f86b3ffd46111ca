"""The frames' tags and shapes, as far as the wire depends on them."""

import msgspec
import pytest

from protocol.codec import COMMAND_TAGS, SERVER_TAGS
from tests.protocol.strategies import COMMANDS, FRAMES, PUSHES, REPLIES, tag_of


@pytest.mark.parametrize(
    ("kind", "tags"), [(COMMANDS, range(1, 40)), (REPLIES, range(40, 80)), (PUSHES, range(80, 128))]
)
def test_tags_lie_in_their_range(kind: tuple[type, ...], tags: range) -> None:
    assert all(tag_of(frame) in tags for frame in kind)


def test_tags_are_one_byte_and_unique() -> None:
    tags = [tag_of(frame) for frame in FRAMES]
    assert len(set(tags)) == len(tags)
    assert all(len(msgspec.msgpack.encode(tag)) == 1 for tag in tags)


def test_codec_knows_exactly_these_tags() -> None:
    assert set(COMMAND_TAGS) == {tag_of(frame) for frame in COMMANDS}
    assert {tag_of(frame) for frame in (*REPLIES, *PUSHES)} == SERVER_TAGS


@pytest.mark.parametrize("frame", FRAMES)
def test_frames_are_arrays_that_tolerate_what_is_newer(frame: type) -> None:
    config = frame.__struct_config__
    assert config.array_like
    assert not config.forbid_unknown_fields
    assert frame.__doc__


@pytest.mark.parametrize("frame", [*COMMANDS, *REPLIES])
def test_commands_and_replies_begin_with_their_id(frame: type) -> None:
    assert msgspec.structs.fields(frame)[0].name == "id"


@pytest.mark.parametrize("frame", PUSHES)
def test_pushes_have_no_id(frame: type) -> None:
    assert "id" not in {field.name for field in msgspec.structs.fields(frame)}
