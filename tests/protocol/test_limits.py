"""Limits: each has a unit and a reason, and what is within them fits what they are about."""

import ast
from pathlib import Path

import msgspec
import pytest

from protocol import frames, limits
from protocol.codec import decode_command, encode_json, encode_msgpack
from protocol.websocket import encode_frame

SOURCE = ast.parse(Path(limits.__file__).read_text()).body
NAMES = [name for name in vars(limits) if name.isupper()]
UNITS = (
    "_BYTES_",
    "_CHARS_",
    "_KEYS_",
    "_S",
    "MEMBERS_",
    "FRAGMENTS_",
    "_ENTRIES_",
    "_CURSORS_",
    "_USERS_",
    "_CONVERSATIONS_",
)


@pytest.mark.parametrize("name", NAMES)
def test_every_limit_is_positive_has_a_unit_and_a_reason(name: str) -> None:
    assert getattr(limits, name) > 0
    assert any(name.endswith(unit) if unit == "_S" else unit in name for unit in UNITS)
    place = next(
        index
        for index, node in enumerate(SOURCE)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name
    )
    reason = SOURCE[place + 1]
    assert isinstance(reason, ast.Expr)
    assert isinstance(reason.value, ast.Constant)
    assert len(str(reason.value.value)) > 20


def largest_send() -> frames.Send:
    wide = "\U0001f30a"  # 4 bytes of UTF-8
    metadata = {
        f"{place:02}" + wide * (limits.METADATA_KEY_CHARS_MAX - 2): wide * limits.METADATA_VALUE_CHARS_MAX
        for place in range(limits.METADATA_KEYS_MAX)
    }
    ids = wide * limits.CONVERSATION_ID_CHARS_MAX, wide * limits.CLIENT_MSG_ID_CHARS_MAX
    return frames.Send(2**32 - 1, *ids, wide * limits.BODY_CHARS_MAX, metadata, 1_000)


def test_largest_send_fits_a_command() -> None:
    send = largest_send()
    assert len(encode_msgpack(send)) <= limits.COMMAND_BYTES_MAX
    assert len(encode_json(send)) <= limits.COMMAND_BYTES_MAX
    assert decode_command(encode_msgpack(send)) == send


def test_lists_of_usual_names_fit_a_command() -> None:
    users = ["u" * limits.USER_ID_CHARS_MAX] * limits.MEMBERS_PER_COMMAND_MAX
    cursors = {f"g{place:024}": 2**53 - 1 for place in range(limits.SYNC_CURSORS_MAX)}
    watched = ["u" * limits.USER_ID_CHARS_MAX] * limits.PRESENCE_WATCH_USERS_MAX
    commands = [frames.AddMembers(1, "g", "m", users), frames.Sync(1, cursors), frames.WatchPresence(1, watched)]
    for command in commands:
        assert len(encode_msgpack(command)) <= limits.COMMAND_BYTES_MAX
        assert len(encode_json(command)) <= limits.COMMAND_BYTES_MAX


def test_page_with_one_more_largest_entry_fits_a_frame_to_a_client() -> None:
    send = largest_send()
    entry = frames.Entry(
        2**53, 1, 2**53, "\U0001f30a" * limits.USER_ID_CHARS_MAX, send.client_msg_id, send.body, send.metadata
    )
    page = frames.HistoryPage(1, "g" * 64, [msgspec.Raw(encode_msgpack(entry))], 2**53, True)
    largest = limits.PAGE_BYTES_MAX + len(encode_frame(2, encode_msgpack(page)))
    assert largest <= limits.SERVER_FRAME_BYTES_MAX


def test_times_leave_room_for_each_other() -> None:
    assert 2 * limits.HEARTBEAT_INTERVAL_S < limits.IDLE_TIMEOUT_S
    assert 2 * limits.TYPING_INTERVAL_S <= limits.TYPING_ENDS_S
    assert limits.RECONNECT_BASE_S < limits.RECONNECT_MAX_S
    assert limits.TOKEN_LEEWAY_S < limits.TOKEN_EXPIRY_NOTICE_S


def test_defaults_lie_within_their_maximum() -> None:
    assert limits.HISTORY_ENTRIES_DEFAULT <= limits.HISTORY_ENTRIES_MAX
    assert limits.LIST_CONVERSATIONS_DEFAULT <= limits.LIST_CONVERSATIONS_MAX
    assert limits.SYNC_ENTRIES_MAX <= limits.HISTORY_ENTRIES_MAX
