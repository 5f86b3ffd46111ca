"""The protocol's structs as JSON objects, and the way from one to the other.

Field types, and with them all limits, are those of ``protocol.frames``; here are only names instead of positions, and
descriptions for the API page. Fields that a node does not know are ignored, as everywhere in the protocol.
"""

from typing import Annotated, Final, Literal

from msgspec import Meta, Raw, Struct

from gateway.api.ports import Check
from protocol import frames, limits
from protocol.codec import decode_entry
from protocol.frames import ConversationKind, EntryKind

KindName = Literal["direct", "group", "channel"]

Body = Annotated[
    str,
    # Told, not enforced here: the owner answers with codes of their own (BODY_EMPTY, TOO_LONG), as for every client
    Meta(description="text of the message", extra_json_schema={"minLength": 1, "maxLength": limits.BODY_CHARS_MAX}),
]
Title = Annotated[str, Meta(description="title of the group", extra_json_schema={"maxLength": limits.TITLE_CHARS_MAX})]
Metadata = Annotated[
    frames.Metadata,
    Meta(
        description=f"annotations: keys of at most {limits.METADATA_KEY_CHARS_MAX} characters, "
        f"values of at most {limits.METADATA_VALUE_CHARS_MAX}",
        extra_json_schema={"maxProperties": limits.METADATA_KEYS_MAX},
    ),
]
ClientMsgId = Annotated[
    frames.ClientMsgId,
    Meta(description="chosen by the client, new for every intent; repeating a request with the same one is safe"),
]
Attempt = Annotated[frames.Attempt, Meta(description="1 the first time, greater for every repeat")]

# --- Requests -------------------------------------------------------------------------------------------------------


class ConversationsQuery(Struct, frozen=True):
    """Which page of the conversation list."""

    limit: Annotated[
        int, Meta(ge=1, le=limits.LIST_CONVERSATIONS_MAX, description="conversations of the page, at most")
    ] = limits.LIST_CONVERSATIONS_DEFAULT
    cursor: Annotated[str, Meta(description="next_cursor of the page before; empty for the first page")] = ""


class EntriesQuery(Struct, frozen=True):
    """Which page of a log: after a seq, before a seq, or (neither given) the newest."""

    after_seq: Annotated[frames.Seq, Meta(description="entries with a greater seq, the oldest of them")] | None = None
    before_seq: Annotated[frames.Seq, Meta(description="entries with a smaller seq, the newest of them")] | None = None
    limit: Annotated[int, Meta(ge=1, le=limits.HISTORY_ENTRIES_MAX, description="entries of the page, at most")] = (
        limits.HISTORY_ENTRIES_DEFAULT
    )


class MembersQuery(Struct, frozen=True):
    """Which page of a conversation's members, who are ordered by the bytes of their ids."""

    after: Annotated[str, Meta(max_length=limits.USER_ID_CHARS_MAX, description="last user of the page before")] = ""
    limit: Annotated[int, Meta(ge=1, le=limits.LIST_MEMBERS_MAX, description="members of the page, at most")] = (
        limits.LIST_MEMBERS_DEFAULT
    )


class RemoveMemberQuery(Struct, frozen=True):
    """Identity of the removal, for a client that repeats it; without one every request is a new intent."""

    client_msg_id: ClientMsgId | None = None
    attempt: Attempt = 1


class CreateConversation(Struct, frozen=True):
    """Create a conversation, or find it: a direct one by its two members, others by creator and client_msg_id."""

    kind: KindName
    client_msg_id: ClientMsgId
    members: Annotated[
        frames.Members, Meta(description="the others; a direct conversation with nobody else is the note to self")
    ] = []
    title: Title = ""


class SendMessage(Struct, frozen=True):
    """Append a message."""

    client_msg_id: ClientMsgId
    body: Body
    metadata: Metadata | None = None
    attempt: Attempt = 1


class AddMembers(Struct, frozen=True):
    """Add users to a group. Those already in are passed over."""

    client_msg_id: ClientMsgId
    users: frames.Members
    attempt: Attempt = 1


class RenameConversation(Struct, frozen=True):
    """Give a group a new title."""

    client_msg_id: ClientMsgId
    title: Title
    attempt: Attempt = 1


class Receipts(Struct, frozen=True):
    """How far the user is: all up to ``delivered_seq`` arrived, up to ``read_seq`` was read. Never goes back."""

    delivered_seq: frames.Seq
    read_seq: frames.Seq = 0


# --- Answers --------------------------------------------------------------------------------------------------------


class Entry(Struct, frozen=True):
    """One item of a conversation's log. ``kind`` names an entry kind; clients skip kinds they do not know."""

    seq: int
    kind: Annotated[str, Meta(examples=[kind.name.lower() for kind in EntryKind])]
    time_us: Annotated[int, Meta(description="microseconds since the Unix epoch")]
    sender: str
    client_msg_id: str
    body: str
    metadata: dict[str, str]
    users: list[str]


class Member(Struct, frozen=True):
    """A member of a conversation and how far that user is."""

    user: str
    delivered_seq: int
    read_seq: int


class Conversation(Struct, frozen=True):
    """A conversation as the user sees it. ``member_count`` always counts.

    ``members`` is empty in lists of groups, in groups of more than 1,024, and in channels: list them by pages.
    """

    conversation_id: str
    kind: KindName
    title: str
    head_seq: int
    read_seq: int
    delivered_seq: int
    unread: int
    last_entry: Entry | None
    members: list[Member]
    member_count: int


class MembersPage(Struct, frozen=True):
    """A page of members. ``has_more``: there are others behind the last of these."""

    members: list[Member]
    has_more: bool


class ConversationList(Struct, frozen=True):
    """A page of conversations, newest first; ``next_cursor`` is empty on the last page."""

    conversations: list[Conversation]
    next_cursor: str


class EntryPage(Struct, frozen=True):
    """A page of a log, oldest first. ``has_more``: the log goes on in the direction asked."""

    conversation_id: str
    entries: list[Entry]
    head_seq: int
    has_more: bool


class Appended(Struct, frozen=True):
    """The entry is durable. ``duplicate``: this client_msg_id was answered before, with the same seq."""

    seq: int
    time_us: int
    duplicate: bool


class Live(Struct, frozen=True):
    """The node's loop runs."""

    status: Literal["live"] = "live"


class Readiness(Struct, frozen=True):
    """Whether the node takes new work, and each condition of it."""

    ready: bool
    checks: list[Check]


# --- From the protocol's structs ------------------------------------------------------------------------------------


def kind_of(name: KindName) -> ConversationKind:
    """The protocol's conversation kind of that name."""
    return ConversationKind[name.upper()]


def entry(encoded: Raw | frames.Entry) -> Entry:
    """An entry out of its encoded form."""
    decoded = encoded if isinstance(encoded, frames.Entry) else decode_entry(bytes(encoded))
    known = decoded.kind in _ENTRY_KIND_NAMES
    return Entry(
        seq=decoded.seq,
        kind=_ENTRY_KIND_NAMES[decoded.kind] if known else f"kind-{decoded.kind}",
        time_us=decoded.time_us,
        sender=decoded.sender,
        client_msg_id=decoded.client_msg_id,
        body=decoded.body,
        metadata=decoded.metadata or {},
        users=decoded.users or [],
    )


def conversation(shown: frames.Conversation) -> Conversation:
    """A conversation as the API shows it."""
    return Conversation(
        conversation_id=shown.conversation_id,
        kind=_KIND_NAMES.get(shown.kind, "group"),
        title=shown.title,
        head_seq=shown.head_seq,
        read_seq=shown.read_seq,
        delivered_seq=shown.delivered_seq,
        unread=max(0, shown.head_seq - shown.read_seq),
        last_entry=None if shown.last_entry is None else entry(shown.last_entry),
        members=[Member(member.user, member.delivered_seq, member.read_seq) for member in shown.members],
        member_count=shown.member_count,
    )


def members_page(reply: frames.MembersPage) -> MembersPage:
    """A page of members."""
    return MembersPage(
        [Member(member.user, member.delivered_seq, member.read_seq) for member in reply.members], reply.has_more
    )


def conversation_list(reply: frames.ConversationList) -> ConversationList:
    """A page of the conversation list."""
    return ConversationList([conversation(shown) for shown in reply.conversations], reply.next_cursor)


def entry_page(reply: frames.HistoryPage) -> EntryPage:
    """A page of a log."""
    return EntryPage(reply.conversation_id, [entry(raw) for raw in reply.entries], reply.head_seq, reply.has_more)


def appended(reply: frames.SendAck) -> Appended:
    """The acknowledgement of an append."""
    return Appended(reply.seq, reply.time_us, reply.duplicate)


_KIND_NAMES: Final[dict[int, KindName]] = {1: "direct", 2: "group", 3: "channel"}

_ENTRY_KIND_NAMES = {int(kind): kind.name.lower() for kind in EntryKind}
