"""Every limit of the protocol: named with its unit, with the reason for its value, in this one place.

A client may rely on these numbers: they are part of ``tidegate.v1`` and are repeated in PROTOCOL.md, which a test
holds to this file. Limits that an operator may change live in the node's configuration instead.
"""

from typing import Final

# --- Frames ---------------------------------------------------------------------------------------------------------

COMMAND_BYTES_MAX: Final = 65_536
"""Payload of one WebSocket message from a client, bytes. The largest body (4,000 characters of 4 bytes) with the
largest metadata map needs about 53 KB; 64 KiB leaves room and still bounds what one connection can make a node hold."""

SERVER_FRAME_BYTES_MAX: Final = 1_048_576
"""Payload of one WebSocket message to a client, bytes: what a client must be able to receive."""

PAGE_BYTES_MAX: Final = 163_840
"""Entries of one page (history, sync, list) stop at this many bytes of msgpack even when the page could hold more of
them; ``has_more`` tells. A byte may become six in JSON (a control character), and such a page still has to fit
SERVER_FRAME_BYTES_MAX."""

CONTROL_PAYLOAD_BYTES_MAX: Final = 125
"""Payload of a WebSocket control frame, bytes (RFC 6455 section 5.5)."""

FRAGMENTS_MAX: Final = 128
"""WebSocket frames that one message may be split into. No client of ours fragments; 128 allows a 64 KiB command in
512-byte pieces and ends a stream of empty fragments."""

# --- Names ----------------------------------------------------------------------------------------------------------

USER_ID_CHARS_MAX: Final = 128
"""Characters of a user id (the token's ``sub``): room for any identity provider's subject."""

DEVICE_ID_CHARS_MAX: Final = 64
"""Characters of a device id: room for a UUID and a prefix."""

CONVERSATION_ID_CHARS_MAX: Final = 64
"""Characters of a conversation id. The node makes them; today's are 25 characters long."""

CLIENT_MSG_ID_CHARS_MAX: Final = 64
"""Characters of a ``client_msg_id``: room for a UUID and a prefix."""

TITLE_CHARS_MAX: Final = 200
"""Characters of the title of a group or channel: more than a list shows of it."""

# --- Messages -------------------------------------------------------------------------------------------------------

BODY_CHARS_MAX: Final = 4_000
"""Characters (Unicode code points) of a message's body."""

METADATA_KEYS_MAX: Final = 16
"""Keys of a message's metadata map: annotations, not a second body."""

METADATA_KEY_CHARS_MAX: Final = 64
"""Characters of one metadata key."""

METADATA_VALUE_CHARS_MAX: Final = 512
"""Characters of one metadata value."""

DEDUPLICATION_WINDOW_S: Final = 86_400
"""Seconds for which a repeated ``client_msg_id`` is answered with the first one's ``seq`` (24 h)."""

# --- Conversations --------------------------------------------------------------------------------------------------

GROUP_MEMBERS_MAX: Final = 1_024
"""Members of a group (default of the node's ``group_members_max``): everything is pushed to all of them. Answers name
the members of a group up to this number, whatever the node's setting."""

CHANNEL_MEMBERS_MAX: Final = 100_000
"""Members of a channel (default of the node's ``channel_members_max``): pushed to those who are connected and have
synced; nobody holds a list of all."""

MEMBERS_PER_COMMAND_MAX: Final = 256
"""Users named in one create, add or remove command: 256 ids of 128 characters fit a command's 64 KiB."""

TYPING_MEMBERS_MAX: Final = 20
"""Members above which a group has no typing pushes: they would cost more than the messages."""

TYPING_INTERVAL_S: Final = 3.0
"""Seconds between two typing pushes of one user in one conversation; more frequent commands are dropped, counted."""

TYPING_ENDS_S: Final = 6.0
"""Seconds after which typing ends by itself: two intervals, so that one lost repeat does not flicker."""

PRESENCE_WATCH_USERS_MAX: Final = 100
"""Users whose presence one connection may watch."""

# --- Coming back ----------------------------------------------------------------------------------------------------

SYNC_ENTRIES_MAX: Final = 100
"""Newest entries that a sync answers for each conversation: what a screen shows; the rest comes by history."""

SYNC_CURSORS_MAX: Final = 1_000
"""Cursors of one sync command: 1,000 of about 30 bytes fit a command's 64 KiB. A client with more sends several."""

HISTORY_ENTRIES_MAX: Final = 200
"""Entries of one history page."""

HISTORY_ENTRIES_DEFAULT: Final = 50
"""Entries of one history page when the command names no limit."""

LIST_CONVERSATIONS_MAX: Final = 100
"""Conversations of one page of the conversation list."""

LIST_CONVERSATIONS_DEFAULT: Final = 50
"""Conversations of one page of the conversation list when the command names no limit."""

LIST_MEMBERS_MAX: Final = 256
"""Members of one page: 256 ids of 128 characters and their receipts fit a page's PAGE_BYTES_MAX."""

LIST_MEMBERS_DEFAULT: Final = 100
"""Members of one page when the command names no limit."""

# --- Time -----------------------------------------------------------------------------------------------------------

HEARTBEAT_INTERVAL_S: Final = 30.0
"""Seconds between two heartbeats of a client (default; the welcome push tells the one in force)."""

IDLE_TIMEOUT_S: Final = 90.0
"""Seconds of silence after which a connection is cut (default): two heartbeats may be lost."""

AUTHENTICATE_TIMEOUT_S: Final = 10.0
"""Seconds from the first byte of a handshake to an authenticated connection."""

TOKEN_EXPIRY_NOTICE_S: Final = 60.0
"""Seconds before a token runs out at which its connection is told."""

TOKEN_LEEWAY_S: Final = 30
"""Seconds of clock difference that a token's ``exp`` and ``nbf`` may be off."""

TOKEN_CHARS_MAX: Final = 8_192
"""Characters of a token: what HTTP proxies commonly let through in one header. Checked before anything is decoded, so
that a token costs a stranger's node at most a fraction of a millisecond."""

RECONNECT_BASE_S: Final = 1.0
"""Seconds: upper bound of the first reconnect delay; doubles with each failure."""

RECONNECT_MAX_S: Final = 30.0
"""Seconds: upper bound of any reconnect delay. The delay itself is uniform between 0 and the bound (full jitter)."""

RECEIPT_DELAY_S: Final = 2.0
"""Seconds that a receipt may be held back to be coalesced with newer ones."""

PRESENCE_GRACE_S: Final = 30.0
"""Seconds after a user's last connection ended until the user counts as offline."""

assert (
    BODY_CHARS_MAX * 4 + METADATA_KEYS_MAX * 4 * (METADATA_KEY_CHARS_MAX + METADATA_VALUE_CHARS_MAX) < COMMAND_BYTES_MAX
)
assert MEMBERS_PER_COMMAND_MAX * (USER_ID_CHARS_MAX + 3) < COMMAND_BYTES_MAX
assert LIST_MEMBERS_MAX * (4 * USER_ID_CHARS_MAX + 22) < PAGE_BYTES_MAX
assert 6 * PAGE_BYTES_MAX + COMMAND_BYTES_MAX <= SERVER_FRAME_BYTES_MAX
assert IDLE_TIMEOUT_S > 2 * HEARTBEAT_INTERVAL_S
assert TYPING_ENDS_S > TYPING_INTERVAL_S
