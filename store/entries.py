"""Records that a store keeps, and what an entry changes besides the log it stands in."""

from msgspec import Struct

from protocol.frames import ConversationKind, Entry, EntryKind


class ConversationRecord(Struct, frozen=True):
    """What is known of a conversation besides its log. ``created_us``: microseconds since the Unix epoch."""

    conversation_id: str
    kind: ConversationKind
    title: str
    creator: str
    created_us: int


class MemberRecord(Struct, gc=False):
    """A member and its pointers. ``joined_seq``: seq of the entry that made the user a member."""

    user: str
    joined_seq: int
    delivered_seq: int = 0
    read_seq: int = 0


class StoredEntry(Struct, frozen=True, gc=False):
    """An entry and its encoded form, the msgpack of ``protocol.frames.Entry`` as it goes on the wire."""

    entry: Entry
    encoded: bytes


class Loaded(Struct):
    """A conversation as its owner finds it when it takes it over.

    ``tail`` holds the newest entries (at most the number asked for), oldest first; ``head_seq`` is the seq of the last
    entry and ``head_time_us`` its time. ``members`` maps user ids to records, in order of joining; a channel's are not
    read, as there may be very many (``Store.find_members`` asks about some).
    """

    record: ConversationRecord
    members: dict[str, MemberRecord]
    head_seq: int
    head_time_us: int
    tail: list[StoredEntry]
    member_count: int


class Append(Struct, frozen=True, gc=False):
    """Entries to append to one conversation: seqs follow each other, the first is the head + 1.

    Appending the very same rows again (same seqs, same epoch) is allowed and changes nothing.
    """

    conversation_id: str
    epoch: int
    entries: list[StoredEntry]


class ReceiptRecord(Struct, frozen=True, gc=False):
    """How far one member is. A store never lowers a pointer.

    ``joined_seq`` is that of the member; 0: not told, a store that needs it looks it up.
    """

    conversation_id: str
    user: str
    delivered_seq: int
    read_seq: int
    joined_seq: int = 0


class Involvement(Struct, frozen=True, gc=False):
    """That a user is in a conversation, and how far: all that is known of it without asking for its log.

    ``peer`` is the other user of a direct conversation (the user itself in a note to self), empty in groups.
    """

    conversation_id: str
    kind: ConversationKind
    joined_seq: int
    delivered_seq: int
    read_seq: int
    peer: str = ""


class Membership(Struct, frozen=True, gc=False):
    """One conversation of a user, as the store sees it now.

    ``joined_seq`` is the seq of the entry by which the user is in; ``last_encoded`` the encoded last entry; ``peer`` as
    in Involvement.
    """

    conversation_id: str
    kind: ConversationKind
    title: str
    joined_seq: int
    head_seq: int
    head_time_us: int
    last_encoded: bytes
    delivered_seq: int
    read_seq: int
    member_count: int
    peer: str = ""


class Search(Struct, frozen=True, gc=False):
    """What a search through a part of a log came to. ``ended``: at entries that are too old, as are all before."""

    entry: StoredEntry | None
    ended: bool


class MemberChanges(Struct, frozen=True, gc=False):
    """What an entry does to its conversation's members and title; ``title`` is None when it stays."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    title: str | None = None


NO_CHANGES = MemberChanges()


def changes_of(entry: Entry) -> MemberChanges:
    """The one place that says which entry kinds change members or the title. Owner and stores use it alike."""
    match entry.kind:
        case EntryKind.MESSAGE:
            return NO_CHANGES
        case EntryKind.CREATED:
            return MemberChanges(added=tuple(entry.users or ()), title=entry.body)
        case EntryKind.MEMBERS_ADDED:
            return MemberChanges(added=tuple(entry.users or ()))
        case EntryKind.MEMBERS_REMOVED:
            return MemberChanges(removed=tuple(entry.users or ()))
        case EntryKind.RENAMED:
            return MemberChanges(title=entry.body)
        case _:
            return NO_CHANGES
