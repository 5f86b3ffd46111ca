"""Recognising a repeat: whether a command says what the entry under its client_msg_id says."""

from typing import Final

from protocol.frames import AddMembers, Entry, EntryKind, RemoveMembers, Rename, Send

Appending = Send | AddMembers | RemoveMembers | Rename
"""The commands that append one entry to an existing conversation, each under a client_msg_id."""

Key = str
"""What makes a repeat recognisable, as ``key_of`` makes it."""

REPEATS_MAX: Final = 16_384
"""Repeats that an owner remembers, the last ones: some 250 B each. Few commands are repeated, so that this reaches back
for minutes even where a whole node's clients have come back."""


def key_of(sender: str, client_msg_id: str) -> Key:
    """The key of a command or an entry. A user's id has no unprintable character (``is_user_id``).

    One string and no tuple: Python's collector looks at each new tuple. (They were nine of ten objects that it looked
    at, up to 26,000 at a time for 50 ms.)
    """
    return f"{sender}\0{client_msg_id}"


class Repeats:
    """The repeats that came last, so that a first attempt which comes after its repeat is looked up as well.

    A first attempt that the tail does not know is taken for new, which saves a look into the store. But its client may
    have given it up, on a connection or a node that was silent for a while, and repeated it on another one; and what
    lay in between may come after so many other entries that the tail has forgotten the repeat.

    Attributes:
        seen: conversation and key of each, oldest first.
    """

    def __init__(self) -> None:
        self.seen: dict[tuple[str, Key], None] = {}

    def note(self, conversation_id: str, key: Key) -> None:
        """Remember a repeat as the last one."""
        repeat = conversation_id, key
        self.seen.pop(repeat, None)
        self.seen[repeat] = None
        if len(self.seen) > REPEATS_MAX:
            del self.seen[next(iter(self.seen))]


def same_content(entry: Entry, command: Appending) -> bool:
    """True if ``command`` is a repeat of the one that made ``entry``.

    The entry of a membership change names only those whom it concerned: who was in (or out) already was passed over
    then, so a repeat names them all or more.
    """
    match command:
        case Send():
            return (
                entry.kind == EntryKind.MESSAGE
                and entry.body == command.body
                and (entry.metadata or None) == (command.metadata or None)
            )
        case AddMembers():
            return entry.kind == EntryKind.MEMBERS_ADDED and set(entry.users or ()) <= set(command.users)
        case RemoveMembers():
            return entry.kind == EntryKind.MEMBERS_REMOVED and set(entry.users or ()) <= set(command.users)
        case Rename():
            return entry.kind == EntryKind.RENAMED and entry.body == command.title
