"""Recognising a repeat: whether a command says what the entry under its client_msg_id says."""

from protocol.frames import AddMembers, Entry, EntryKind, RemoveMembers, Rename, Send

Appending = Send | AddMembers | RemoveMembers | Rename
"""The commands that append one entry to an existing conversation, each under a client_msg_id."""


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
