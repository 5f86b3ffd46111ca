"""What an owner counts, for metrics: plain integers that only grow."""

from msgspec import Struct


class OwnerCounters(Struct):
    """Totals since the node started.

    Attributes:
        sends: send commands taken in hand, refused ones included.
        duplicates: repeats of a client_msg_id that were answered with their first seq.
        lookups: repeats that memory could not answer, so that the store was asked.
        member_lookups: commands for channels that had to wait until the store was asked who is in.
        appended: entries that became durable.
        batches: calls of ``store.append``.
        not_written: entries that the store refused.
        unknown_outcomes: appends whose outcome was unknown and that were repeated.
        unanswered: sends that were told OUTCOME_UNKNOWN because the store took too long.
        redelivered: entries delivered again because their send was repeated.
        loads: conversations taken over from the store.
        created: conversations created.
        evicted: conversations dropped from memory to make room.
        overloaded: commands refused because too many waited.
        rate_limited: entries refused because their conversation got too many.
        receipts: receipt commands that moved a pointer.
        receipts_saved: pointers written to the store.
        receipts_failed: pointers whose saving failed and is tried again.
        receipts_unpushed: receipts not pushed because the group is too large, may be another node's by now, or was
            forgotten while the store refused them.
        typing_pushed: typing pushes handed to the edge.
        typing_throttled: typing commands dropped because they came too soon.
        typing_shed: typing commands dropped because the group is too large or too many users type.
    """

    sends: int = 0
    duplicates: int = 0
    lookups: int = 0
    member_lookups: int = 0
    appended: int = 0
    batches: int = 0
    not_written: int = 0
    unknown_outcomes: int = 0
    unanswered: int = 0
    redelivered: int = 0
    loads: int = 0
    created: int = 0
    evicted: int = 0
    overloaded: int = 0
    rate_limited: int = 0
    receipts: int = 0
    receipts_saved: int = 0
    receipts_failed: int = 0
    receipts_unpushed: int = 0
    typing_pushed: int = 0
    typing_throttled: int = 0
    typing_shed: int = 0
