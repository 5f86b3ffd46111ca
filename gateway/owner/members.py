"""Creating conversations and changing who is in them: ids, rules, and the entries that say so."""

from base64 import urlsafe_b64encode
from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from msgspec import Struct

from gateway.broker import channel_id_of
from gateway.config import Settings
from gateway.owner.conversation import Conversation
from gateway.refusals import Refused, too_long
from protocol import limits
from protocol.errors import ErrorCode
from protocol.frames import (
    AddMembers,
    ConversationKind,
    CreateConversation,
    Entry,
    EntryKind,
    RemoveMembers,
    Rename,
    is_user_id,
)
from store.entries import ConversationRecord

ID_DIGEST_BYTES: Final = 18
"""Bytes of SHA-256 that make an id: 24 characters of base64, and 144 bits against collisions."""

_NAMES: Final = {ConversationKind.GROUP: "group", ConversationKind.CHANNEL: "channel"}

GroupChange = AddMembers | RemoveMembers | Rename


class Draft(Struct, frozen=True):
    """What an entry will say, before it has a seq."""

    kind: int
    body: str = ""
    users: list[str] | None = None


def direct_id(user: str, other: str) -> str:
    """The id of the conversation between two users, or of a user's note to self: nobody needs to remember it."""
    return "d" + _digest(*sorted((user, other)))


def group_id(creator: str, client_msg_id: str) -> str:
    """The id of a group: the same for each repeat of the command that created it."""
    return "g" + _digest(creator, client_msg_id)


def channel_id(creator: str, client_msg_id: str) -> str:
    """The id of a channel: the same for each repeat of the command that created it."""
    return channel_id_of(_digest(creator, client_msg_id))


def _digest(*parts: str) -> str:
    lengths_and_parts = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
    return urlsafe_b64encode(sha256(lengths_and_parts).digest()[:ID_DIGEST_BYTES]).decode()


def id_of(creator: str, command: CreateConversation) -> str:
    """The id that the conversation has or will have. Raises Refused where ``_others`` does."""
    if command.kind is ConversationKind.GROUP:
        return group_id(creator, command.client_msg_id)
    if command.kind is ConversationKind.CHANNEL:
        return channel_id(creator, command.client_msg_id)
    others = [user for user in dict.fromkeys(command.members) if user != creator]
    if len(others) > 1:
        raise Refused(
            ErrorCode.BAD_REQUEST,
            f"members names {len(others)} other users; a direct conversation has one, or none for a note to self: "
            "name one, or create a group",
        )
    return direct_id(creator, others[0] if others else creator)


def creation(
    creator: str, command: CreateConversation, time_us: int, settings: Settings
) -> tuple[ConversationRecord, Entry]:
    """The record of a new conversation and its first entry.

    Raises:
        Refused: too many members, one who cannot be a user, a title too long, or a title for a direct conversation.
    """
    users = list(dict.fromkeys((creator, *command.members)))
    _check_users(users)
    if command.kind is not ConversationKind.DIRECT:
        _check_title(command.title)
        _check_size(command.kind, len(users), settings)
    elif command.title:
        raise Refused(
            ErrorCode.BAD_REQUEST, "title is given, but a direct conversation has none: leave it out, or create a group"
        )
    record = ConversationRecord(id_of(creator, command), command.kind, command.title, creator, time_us)
    first = Entry(1, int(EntryKind.CREATED), time_us, creator, command.client_msg_id, body=command.title, users=users)
    return record, first


def same_creation(first: Entry, command: CreateConversation) -> bool:
    """Whether a command that names an existing conversation asks for what was created then."""
    return command.kind is ConversationKind.DIRECT or (
        first.body == command.title and set(first.users or ()) == {first.sender, *command.members}
    )


def draft(conversation: Conversation, user: str, command: GroupChange, settings: Settings) -> Draft | None:
    """The entry for a change of a group or channel; None when there is nothing to change.

    Who of those named is in has to be known.

    Raises:
        Refused: not a group, not allowed to this user, too many members, one who cannot be a user, or a title too long.
    """
    if conversation.kind is ConversationKind.DIRECT:
        raise Refused(
            ErrorCode.FORBIDDEN,
            "this is a direct conversation; its members and title cannot be changed: create a group instead",
        )
    if isinstance(command, Rename):
        _check_title(command.title)
        return None if command.title == conversation.title else Draft(int(EntryKind.RENAMED), body=command.title)
    if isinstance(command, AddMembers):
        added = [name for name in dict.fromkeys(command.users) if name not in conversation.members]
        _check_users(added)
        _check_size(conversation.kind, conversation.member_count + len(added), settings)
        return Draft(int(EntryKind.MEMBERS_ADDED), users=added) if added else None
    removed = [name for name in dict.fromkeys(command.users) if name in conversation.members]
    if user != conversation.creator and any(name != user for name in command.users):
        raise Refused(
            ErrorCode.FORBIDDEN,
            f"only the creator of a {_NAMES[conversation.kind]} may remove others, and anybody themselves: "
            "name only yourself to leave, or ask the creator",
        )
    return Draft(int(EntryKind.MEMBERS_REMOVED), users=removed) if removed else None


def _check_users(users: Iterable[str]) -> None:
    for user in users:
        if not is_user_id(user):
            raise Refused(
                ErrorCode.BAD_REQUEST,
                f"{user!r} cannot be a user: a user id has 1 to {limits.USER_ID_CHARS_MAX} characters, "
                "all of them printable; leave it out",
            )


def _check_title(title: str) -> None:
    if len(title) > limits.TITLE_CHARS_MAX:
        raise too_long("the title", len(title), limits.TITLE_CHARS_MAX, "characters")


def _check_size(kind: ConversationKind, members: int, settings: Settings) -> None:
    channel = kind is ConversationKind.CHANNEL
    members_max = settings.channel_members_max if channel else settings.group_members_max
    if members > members_max:
        raise Refused(
            ErrorCode.MEMBERS_LIMIT,
            f"the {_NAMES[kind]} would have {members} members, at most {members_max} are allowed; name fewer users",
        )
