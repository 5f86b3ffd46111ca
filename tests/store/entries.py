"""Entries and appends for store tests."""

from protocol.codec import encode_entry
from protocol.frames import ConversationKind, Entry, EntryKind
from store.entries import Append, ConversationRecord, StoredEntry

T0_US = 1_700_000_000_000_000


def entry(seq: int, body: str = "", *, kind: int = EntryKind.MESSAGE, sender: str = "alice", **fields) -> StoredEntry:
    fields.setdefault("client_msg_id", f"c{seq}")
    made = Entry(seq, int(kind), T0_US + seq, sender, body=body or f"body {seq}", **fields)
    return StoredEntry(made, encode_entry(made))


def created(*users: str, title: str = "") -> StoredEntry:
    made = Entry(1, int(EntryKind.CREATED), T0_US + 1, users[0], "create", title, None, list(users))
    return StoredEntry(made, encode_entry(made))


def record(
    conversation_id: str, kind: ConversationKind = ConversationKind.GROUP, title: str = ""
) -> ConversationRecord:
    return ConversationRecord(conversation_id, kind, title, "alice", T0_US)


def append(conversation_id: str, *seqs: int, epoch: int = 1, body: str = "") -> Append:
    return Append(conversation_id, epoch, [entry(seq, body) for seq in seqs])
