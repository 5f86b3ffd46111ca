"""The frames of ``tidegate.v1``: commands (client to node), replies (answers) and pushes (unasked).

A frame is an array whose first element is the tag, followed by the fields in the order written here. Fields are only
ever added at the end, with a default; a receiver ignores trailing fields it does not know. Tags 1-39 are commands,
40-79 replies, 80-127 pushes, so that every tag is one byte of msgpack.

``id`` of a command is chosen by the client (1 to 2**32 - 1, unique among its unanswered ones) and comes back in the
reply. ``id = 0`` asks for no reply: only an error is answered, with ``id`` 0.

Times are integers: ``time_us`` microseconds since the Unix epoch by the owner's hybrid clock (strictly increasing with
``seq`` in a conversation), ``*_ms`` milliseconds, ``*_s`` seconds.
"""

from enum import IntEnum, unique
from typing import Annotated

from msgspec import Meta, Raw, Struct

from protocol import limits

SUBPROTOCOL = "tidegate.v1"
SUBPROTOCOL_JSON = "tidegate.v1.json"

RequestId = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Seq = Annotated[int, Meta(ge=0, le=2**53 - 1)]  # 2**53: exact in JavaScript
Attempt = Annotated[int, Meta(ge=1, le=2**53 - 1)]
UserId = Annotated[str, Meta(min_length=1, max_length=limits.USER_ID_CHARS_MAX)]
DeviceId = Annotated[str, Meta(max_length=limits.DEVICE_ID_CHARS_MAX)]
ConversationId = Annotated[str, Meta(min_length=1, max_length=limits.CONVERSATION_ID_CHARS_MAX)]
ClientMsgId = Annotated[str, Meta(min_length=1, max_length=limits.CLIENT_MSG_ID_CHARS_MAX)]
Members = Annotated[list[UserId], Meta(max_length=limits.MEMBERS_PER_COMMAND_MAX)]
Metadata = dict[str, str]


def is_user_id(text: str) -> bool:
    """Whether a user can have this id: 1 to USER_ID_CHARS_MAX characters, all of them printable (``str.isprintable``).

    The one rule for tokens and for whoever is made a member. A command may name others: nobody is called that.
    """
    return 0 < len(text) <= limits.USER_ID_CHARS_MAX and text.isprintable()


@unique
class EntryKind(IntEnum):
    """What an entry of a conversation's log is. Receivers skip kinds they do not know, but count their seq."""

    MESSAGE = 1  # body, metadata
    CREATED = 2  # users: the first members; body: the title. Always seq 1.
    MEMBERS_ADDED = 3  # users
    MEMBERS_REMOVED = 4  # users
    RENAMED = 5  # body: the new title


@unique
class ConversationKind(IntEnum):
    """What a conversation is: between two users (or one: a note to self), a group, or a group too large to list."""

    DIRECT = 1
    GROUP = 2
    CHANNEL = 3


class Entry(Struct, array_like=True, frozen=True, gc=False):
    """One item of a conversation's log.

    ``kind`` is an int, not the enum, so that a receiver survives kinds newer than itself.
    """

    seq: Seq
    kind: int
    time_us: int
    sender: str
    client_msg_id: str
    body: str = ""
    metadata: Metadata | None = None
    users: list[str] | None = None


class Frame(Struct, array_like=True):
    """Base of all frames; its tag is the first element on the wire."""


# --- Commands -------------------------------------------------------------------------------------------------------


class Authenticate(Frame, tag=1):
    """First frame of a connection whose handshake carried no token; later: a fresh token for the same user."""

    id: RequestId
    token: str
    device: DeviceId = ""


class Ping(Frame, tag=2, gc=False):
    """Heartbeat. Answered by Pong, with id 0 too: silence would tell a client nothing."""

    id: RequestId = 0


class Send(Frame, tag=3, gc=False):
    """Append a message. ``attempt`` is 1 the first time, greater for every repeat of the same client_msg_id."""

    id: RequestId
    conversation_id: ConversationId
    client_msg_id: ClientMsgId
    body: str
    metadata: Metadata | None = None
    attempt: Attempt = 1


class CreateConversation(Frame, tag=4):
    """Create a conversation, or find it: a direct one by its two members, others by creator and client_msg_id.

    ``members`` names the others; the creator is always in. A direct conversation with nobody else is the note to self.
    """

    id: RequestId
    kind: ConversationKind
    members: Members
    client_msg_id: ClientMsgId
    title: str = ""


class AddMembers(Frame, tag=5):
    """Add users to a group or channel. Any member may. Those already in are passed over."""

    id: RequestId
    conversation_id: ConversationId
    client_msg_id: ClientMsgId
    users: Members
    attempt: Attempt = 1


class RemoveMembers(Frame, tag=6):
    """Remove users from a group or channel: oneself (leave), or, by the creator, anybody."""

    id: RequestId
    conversation_id: ConversationId
    client_msg_id: ClientMsgId
    users: Members
    attempt: Attempt = 1


class Rename(Frame, tag=7, gc=False):
    """Give a group or channel a new title."""

    id: RequestId
    conversation_id: ConversationId
    client_msg_id: ClientMsgId
    title: str
    attempt: Attempt = 1


class MarkReceipt(Frame, tag=8, gc=False):
    """All up to ``delivered_seq`` reached this user, up to ``read_seq`` was read. Lower than known: no change."""

    id: RequestId
    conversation_id: ConversationId
    delivered_seq: Seq
    read_seq: Seq = 0


class Typing(Frame, tag=9, gc=False):
    """The user types, or has stopped. Repeat every 3 s while it lasts; it ends by itself after 6 s."""

    id: RequestId
    conversation_id: ConversationId
    typing: bool = True


class Sync(Frame, tag=10):
    """Ask for all that is new. ``cursors`` maps conversation ids to the last seq that the client has without a gap;
    conversations of the user that it does not name count as 0, unless ``only_named``.
    """

    id: RequestId
    cursors: dict[ConversationId, Seq] | None = None
    only_named: bool = False


class History(Frame, tag=11, gc=False):
    """A page of a log, oldest first: after ``after_seq``, or before ``before_seq``, or (neither given) the newest."""

    id: RequestId
    conversation_id: ConversationId
    after_seq: Seq | None = None
    before_seq: Seq | None = None
    limit: Annotated[int, Meta(ge=1, le=limits.HISTORY_ENTRIES_MAX)] = limits.HISTORY_ENTRIES_DEFAULT


class ListConversations(Frame, tag=12, gc=False):
    """A page of the user's conversations, newest first. ``cursor`` is the ``next_cursor`` of the page before."""

    id: RequestId
    cursor: str = ""
    limit: Annotated[int, Meta(ge=1, le=limits.LIST_CONVERSATIONS_MAX)] = limits.LIST_CONVERSATIONS_DEFAULT


class GetConversation(Frame, tag=13, gc=False):
    """One conversation with its members and their receipts, if they are no more than GROUP_MEMBERS_MAX."""

    id: RequestId
    conversation_id: ConversationId


class WatchPresence(Frame, tag=14):
    """Replace the list of users whose presence this connection is told: of those who share a conversation."""

    id: RequestId
    users: Annotated[list[UserId], Meta(max_length=limits.PRESENCE_WATCH_USERS_MAX)]


class ListMembers(Frame, tag=15, gc=False):
    """A page of a conversation's members, ordered by the bytes of their ids: those behind ``after``."""

    id: RequestId
    conversation_id: ConversationId
    after: Annotated[str, Meta(max_length=limits.USER_ID_CHARS_MAX)] = ""
    limit: Annotated[int, Meta(ge=1, le=limits.LIST_MEMBERS_MAX)] = limits.LIST_MEMBERS_DEFAULT


Command = (
    Authenticate | Ping | Send | CreateConversation | AddMembers | RemoveMembers | Rename | MarkReceipt | Typing
    | Sync | History | ListConversations | GetConversation | WatchPresence
    | ListMembers
)  # fmt: skip

# --- Replies --------------------------------------------------------------------------------------------------------


class Member(Struct, array_like=True, frozen=True, gc=False):
    """A member of a conversation and how far that user is."""

    user: str
    delivered_seq: int = 0
    read_seq: int = 0


class Presence(Struct, array_like=True, frozen=True, gc=False):
    """Whether a user is online; ``last_seen_ms`` is 0 when never seen (or not since the node's records began)."""

    user: str
    online: bool
    last_seen_ms: int = 0


class Conversation(Struct, array_like=True, frozen=True):
    """A conversation as a list shows it, for one user. Unread is ``head_seq - read_seq``.

    ``members`` is complete in a direct conversation and, for a group of at most GROUP_MEMBERS_MAX, in answers to create
    and get; otherwise it is empty, and ListMembers gives them by pages.
    ``last_entry`` is decoded with the rest; a node may put it in encoded (Raw alone, or None, cannot be told apart
    by a decoder, so the type names all three).
    """

    conversation_id: str
    kind: int
    title: str
    head_seq: int
    read_seq: int
    delivered_seq: int
    last_entry: Entry | Raw | None = None
    members: list[Member] = []
    member_count: int = 0


class SyncedConversation(Struct, array_like=True, frozen=True):
    """The newest entries after one cursor, oldest first. ``has_more``: older ones after the cursor were left out.

    ``entries[0].seq`` is then greater than cursor + 1, and history fills what lies between.
    ``removed``: the user is not, or no longer, in the conversation that the cursor named.
    """

    conversation_id: str
    head_seq: int
    read_seq: int
    entries: list[Raw]  # of Entry
    has_more: bool = False
    removed: bool = False


class Ok(Frame, tag=40, gc=False):
    """Done; there is nothing more to tell."""

    id: int


class ErrorReply(Frame, tag=41, gc=False):
    """The command was refused. ``code`` is an ErrorCode; ``retry_after_ms`` counts where the code says retry."""

    id: int
    code: int
    message: str
    retry_after_ms: int = 0


class Pong(Frame, tag=42, gc=False):
    """Answer to Ping."""

    id: int


class SendAck(Frame, tag=43, gc=False):
    """The entry is durable. A repeat gets the same answer, with ``duplicate`` set."""

    id: int
    seq: int
    time_us: int
    duplicate: bool = False


class ConversationReply(Frame, tag=44):
    """Answer to CreateConversation (``created`` tells whether it is new) and GetConversation."""

    id: int
    conversation: Conversation
    created: bool = False


class SyncPage(Frame, tag=45):
    """Answer to Sync: one or more of these, the last with ``done``.

    ``resumed``, meaningful in the last: every cursor was continued without a gap (no ``has_more`` anywhere).
    Conversations in which nothing is new are left out.
    """

    id: int
    conversations: list[SyncedConversation]
    done: bool
    resumed: bool = False


class HistoryPage(Frame, tag=46):
    """Answer to History, oldest first. ``has_more``: the log goes on in the direction asked."""

    id: int
    conversation_id: str
    entries: list[Raw]  # of Entry
    head_seq: int
    has_more: bool


class ConversationList(Frame, tag=47):
    """Answer to ListConversations; ``next_cursor`` is empty on the last page."""

    id: int
    conversations: list[Conversation]
    next_cursor: str = ""


class PresenceReply(Frame, tag=48):
    """Answer to WatchPresence: how things stand now; changes follow as pushes."""

    id: int
    users: list[Presence]


class Authenticated(Frame, tag=49, gc=False):
    """A fresh token was accepted; the connection lives on until it runs out."""

    id: int
    token_expires_in_s: int


class MembersPage(Frame, tag=50):
    """Answer to ListMembers. ``has_more``: there are others behind the last of these."""

    id: int
    conversation_id: str
    members: list[Member]
    has_more: bool


Reply = (
    Ok | ErrorReply | Pong | SendAck | ConversationReply | SyncPage | HistoryPage | ConversationList | PresenceReply
    | Authenticated | MembersPage
)  # fmt: skip

# --- Pushes ---------------------------------------------------------------------------------------------------------


class Welcome(Frame, tag=80, gc=False):
    """First push of every authenticated connection: pushes of entries begin right behind it."""

    user: str
    device: str
    node: str
    heartbeat_interval_s: float
    idle_timeout_s: float
    token_expires_in_s: int
    time_us: int


class EntryPush(Frame, tag=81, gc=False):
    """A new entry of a conversation the user is in."""

    conversation_id: str
    entry: Raw  # an Entry


class ReceiptPush(Frame, tag=82, gc=False):
    """How far another member (or another device of the same user) is."""

    conversation_id: str
    user: str
    delivered_seq: int
    read_seq: int


class TypingPush(Frame, tag=83, gc=False):
    """A member began to type, or stopped."""

    conversation_id: str
    user: str
    typing: bool


class PresencePush(Frame, tag=84, gc=False):
    """A watched user came or went."""

    user: str
    online: bool
    last_seen_ms: int = 0


class TokenExpiring(Frame, tag=85, gc=False):
    """The token runs out in so many seconds: authenticate with a fresh one to stay."""

    expires_in_s: int


class Resync(Frame, tag=86):
    """The node may have missed something for this connection: sync (these conversations, or all when empty)."""

    conversation_ids: list[str] = []


class GoAway(Frame, tag=87, gc=False):
    """The node closes this connection soon: reconnect (it may be elsewhere) not before ``after_ms``."""

    after_ms: int


Push = Welcome | EntryPush | ReceiptPush | TypingPush | PresencePush | TokenExpiring | Resync | GoAway
