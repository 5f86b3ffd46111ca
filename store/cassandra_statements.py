"""The CQL that a cluster runs, next to the tables of ``schema/cassandra/``. Prepared once per session."""

from typing import Any, Final

from cassandra.cluster import Session
from cassandra.query import PreparedStatement

_CONVERSATION: Final = "conversation_id, kind, creator, created_us, first_entry, segments, nonce"
_LEASE: Final = "incarnation, node, nonce, alive, address, owns, draining, protocol, datacenter"
_ENTRIES: Final = """
    SELECT seq, epoch, encoded FROM log_entries WHERE conversation_id = ? AND bucket = ? AND seq > ? AND seq < ?"""
_MEMBERS: Final = """
    SELECT title, member_count, WRITETIME(member_count), user, joined_seq, left_seq, delivered_seq, read_seq
    FROM members WHERE conversation_id = ?"""
_INVOLVEMENTS: Final = """
    SELECT conversation_id, joined_seq, left_seq, kind, peer, delivered_seq, read_seq
    FROM conversations_by_user WHERE user = ?"""

READS: Final = {
    "conversation": f"SELECT {_CONVERSATION} FROM conversations WHERE conversation_id = ?",  # noqa: S608  # names of columns
    "entries_oldest": f"{_ENTRIES} ORDER BY seq ASC, epoch ASC LIMIT ?",
    "entries_newest": f"{_ENTRIES} ORDER BY seq DESC, epoch DESC LIMIT ?",
    "members": f"{_MEMBERS} LIMIT ?",
    "members_after": f"{_MEMBERS} AND (user, joined_seq) > (?, ?) LIMIT ?",
    "stays": f"{_MEMBERS} AND user IN ?",
    "involvements": f"{_INVOLVEMENTS} LIMIT ?",
    "involvements_after": f"{_INVOLVEMENTS} AND (conversation_id, joined_seq) > (?, ?) LIMIT ?",
    "last_seen": "SELECT user, seen_ms FROM last_seen WHERE user IN ?",
    "leases": f"SELECT {_LEASE} FROM leases",  # noqa: S608  # names of columns
    "lease": f"SELECT {_LEASE} FROM leases WHERE incarnation = ?",  # noqa: S608  # names of columns
    "slots": "SELECT version, nonce, slots FROM slots WHERE id = 'slots'",
}

TRANSACTIONS: Final = {
    "insert_conversation": """
        INSERT INTO conversations (conversation_id, kind, creator, created_us, first_entry, segments, nonce)
        VALUES (?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS""",
    "change_segments": "UPDATE conversations SET segments = ?, nonce = ? WHERE conversation_id = ? IF nonce = ?",
    "insert_lease": """
        INSERT INTO leases (incarnation, node, nonce, alive, address, owns, draining, protocol, datacenter)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS""",
    "replace_lease": """
        UPDATE leases
        SET node = ?, nonce = ?, alive = ?, address = ?, owns = ?, draining = ?, protocol = ?, datacenter = ?
        WHERE incarnation = ? IF nonce = ? AND alive = true""",
    "mark_lease_dead": "UPDATE leases SET alive = false WHERE incarnation = ? IF nonce = ?",
    "delete_lease": "DELETE FROM leases WHERE incarnation = ? IF alive = false",
    "insert_slots": "INSERT INTO slots (id, version, nonce, slots) VALUES ('slots', ?, ?, ?) IF NOT EXISTS",
    "replace_slots": "UPDATE slots SET version = ?, nonce = ?, slots = ? WHERE id = 'slots' IF version = ?",
}

WRITES: Final = {
    "entry": """
        INSERT INTO log_entries (conversation_id, bucket, seq, epoch, encoded) VALUES (?, ?, ?, ?, ?)
        USING TIMESTAMP ?""",
    "joined": "INSERT INTO members (conversation_id, user, joined_seq) VALUES (?, ?, ?) USING TIMESTAMP ?",
    "joined_by_user": """
        INSERT INTO conversations_by_user (user, conversation_id, joined_seq, kind, peer) VALUES (?, ?, ?, ?, ?)
        USING TIMESTAMP ?""",
    "left": """
        UPDATE members USING TIMESTAMP ? SET left_seq = ? WHERE conversation_id = ? AND user = ? AND joined_seq = ?""",
    "left_by_user": """
        UPDATE conversations_by_user USING TIMESTAMP ? SET left_seq = ?
        WHERE user = ? AND conversation_id = ? AND joined_seq = ?""",
    "described": "UPDATE members USING TIMESTAMP ? SET title = ?, member_count = ? WHERE conversation_id = ?",
    "delivered": """
        UPDATE members USING TIMESTAMP ? SET delivered_seq = ?
        WHERE conversation_id = ? AND user = ? AND joined_seq = ?""",
    "delivered_by_user": """
        UPDATE conversations_by_user USING TIMESTAMP ? SET delivered_seq = ?
        WHERE user = ? AND conversation_id = ? AND joined_seq = ?""",
    "read": """
        UPDATE members USING TIMESTAMP ? SET read_seq = ? WHERE conversation_id = ? AND user = ? AND joined_seq = ?""",
    "read_by_user": """
        UPDATE conversations_by_user USING TIMESTAMP ? SET read_seq = ?
        WHERE user = ? AND conversation_id = ? AND joined_seq = ?""",
    "pointers": """
        UPDATE members USING TIMESTAMP ? SET delivered_seq = ?, read_seq = ?
        WHERE conversation_id = ? AND user = ? AND joined_seq = ?""",
    "pointers_by_user": """
        UPDATE conversations_by_user USING TIMESTAMP ? SET delivered_seq = ?, read_seq = ?
        WHERE user = ? AND conversation_id = ? AND joined_seq = ?""",
    "seen": "INSERT INTO last_seen (user, seen_ms) VALUES (?, ?) USING TIMESTAMP ?",
}


def prepare(session: Session) -> dict[str, PreparedStatement]:
    """Prepare all statements. Blocks. Raises the driver's errors."""
    prepared: dict[str, Any] = {}
    for statements, idempotent in ((READS, True), (TRANSACTIONS, False), (WRITES, False)):
        for name, text in statements.items():
            prepared[name] = session.prepare(" ".join(text.split()))
            prepared[name].is_idempotent = idempotent  # only what is idempotent may be sent twice by the driver
    return prepared
