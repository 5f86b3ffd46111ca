"""What a storage backend must do. ``embedded.py`` does it with SQLite; one conformance suite tests every backend.

Epochs: a conversation belongs to one owner at a time, and each ownership has an epoch. ``take_over`` records the epoch;
from then on the store refuses to append for an older one. (The embedded store has one owner, the process that holds its
lock, and still keeps this rule, so that the two backends are one thing to their callers.)
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import trio

from store.entries import (
    Append,
    ConversationRecord,
    Involvement,
    Loaded,
    MemberRecord,
    Membership,
    ReceiptRecord,
    Search,
    StoredEntry,
)


class StoreError(Exception):
    """A store could not do what was asked. The message is fit for a log line; a subclass says what it means."""


class NotWritten(StoreError):
    """Nothing was stored and nothing will be: safe to forget or to try again (disk full, queue full, conflict)."""


class OutcomeUnknown(StoreError):
    """The rows may or may not be durable: append the same rows again until it is known."""


class Unavailable(StoreError):
    """The store cannot answer now (I/O error, no quorum). A read may be tried again."""


class StaleEpoch(StoreError):
    """A newer epoch owns the conversation: this owner must drop it at once and answer nothing more for it."""


Outcome = tuple[Append, StoreError | None]
"""One append and what became of it: None means durable."""

Done = Callable[[Sequence[Outcome]], None]
"""Receives outcomes in the trio thread, a batch at a time.

Appends of one conversation come out in the order they went in."""


class Store(Protocol):
    """A durable home for conversations. All methods but those said otherwise belong to the trio thread."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then finish the writes that were queued, tell their outcomes, and close."""

    @property
    def writable(self) -> bool:
        """False while the last write failed for a reason that concerns all of them (disk full); heals by itself."""

    @property
    def trouble(self) -> str:
        """What keeps the store from working as it should, in words for an operator; empty while all is well."""

    def append(self, batch: Sequence[Append], done: Done) -> None:
        """Make entries durable. A plain call: returns at once; ``done`` is called later, exactly once per append.

        Member and title changes that the entries imply (``changes_of``) become durable together with them.
        Several batches may be in flight; a backend commits what is waiting as one group.
        """

    async def take_over(self, conversation_id: str, epoch: int, tail_entries_max: int) -> Loaded | None:
        """Become the owner under ``epoch`` and read the conversation; None if there is none.

        Raises:
            StaleEpoch: a newer epoch is recorded.
            Unavailable: the store could not be read or the epoch not be recorded.

        Cancelling leaves the epoch either recorded or not; calling again is safe.
        """

    async def create(self, record: ConversationRecord, first: StoredEntry, epoch: int) -> bool:
        """Create a conversation with its first entry (seq 1, kind created); False if it exists already (unchanged).

        Raises NotWritten, OutcomeUnknown or Unavailable. After a cancellation it may or may not exist.
        """

    async def read(
        self, conversation_id: str, *, after_seq: int, before_seq: int, limit: int, newest: bool
    ) -> list[bytes]:
        """Encoded entries with after_seq < seq < before_seq, oldest first: the ``limit`` newest or oldest of them.

        Raises Unavailable. Cancelling is safe.
        """

    async def find(
        self, conversation_id: str, sender: str, client_msg_id: str, since_us: int, *, after_seq: int, before_seq: int
    ) -> Search:
        """The entry that ``sender`` appended under ``client_msg_id`` at ``since_us`` or later, between the two seqs.

        Both are excluded. What it costs grows with what lies between them. Raises Unavailable. Cancelling is safe.
        """

    async def find_members(self, conversation_id: str, users: Collection[str]) -> dict[str, MemberRecord]:
        """Those of ``users`` who are members now, after every change that was answered before. Raises Unavailable."""

    async def list_members(self, conversation_id: str, *, after: str, limit: int) -> list[MemberRecord]:
        """Members ordered by the bytes of their ids (UTF-8), those behind ``after``; fewer than ``limit``: the last.

        Raises Unavailable. Cancelling is safe.
        """

    async def memberships(self, user: str, known: Sequence[Involvement | Membership] | None = None) -> list[Membership]:
        """All conversations that the user is a member of now, in no particular order. Raises Unavailable.

        With ``known``, which were read before, only those. That the user is in them is not read again, so one that has
        ended since may still be told.
        """

    async def involvements(self, user: str) -> list[Involvement]:
        """The same conversations without anything of their logs: one read. Raises Unavailable."""

    async def acquainted(self, user: str, others: Collection[str]) -> set[str]:
        """Those of ``others`` who are in some conversation with ``user`` now. Raises Unavailable."""

    async def save_receipts(self, receipts: Sequence[ReceiptRecord]) -> None:
        """Raise pointers (never lower them; who is no member, or by a later entry, is passed over). Durable on return.

        Raises NotWritten or OutcomeUnknown. After a cancellation some may be stored; saving again is safe.
        """

    async def save_last_seen(self, seen_ms: Sequence[tuple[str, int]]) -> None:
        """Note when users were last online, milliseconds since the Unix epoch. Raises as save_receipts does."""

    async def last_seen(self, users: Collection[str]) -> dict[str, int]:
        """When users were last online; those never seen are missing. Raises Unavailable."""
