"""A store in memory that keeps the rules of ``store.interface.Store`` and fails when told to.

By default appends are answered at the next scheduling pass. With ``held = True`` they wait for ``answer()``.
"""

from collections import deque
from collections.abc import Collection, Sequence

import trio

from protocol.codec import decode_entry
from protocol.frames import ConversationKind
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
    changes_of,
)
from store.interface import Done, NotWritten, Outcome, OutcomeUnknown, StaleEpoch, StoreError


class LostAnswer(OutcomeUnknown):
    """The rows were written, and the answer was lost: the caller sees an unknown outcome."""


class _Log:
    def __init__(self, record: ConversationRecord, epoch: int) -> None:
        self.record = record
        self.epoch = epoch
        self.title = record.title
        self.members: dict[str, MemberRecord] = {}
        self.entries: list[bytes] = []

    def write(self, encoded: bytes) -> None:
        entry = decode_entry(encoded)
        self.entries.append(encoded)
        changes = changes_of(entry)
        for user in changes.added:
            self.members.setdefault(user, MemberRecord(user, entry.seq))
        for user in changes.removed:
            self.members.pop(user, None)
        if changes.title is not None:
            self.title = changes.title


class MemoryStore:
    """Implements Store.

    Attributes:
        held: appends wait for ``answer()``.
        verdicts: what becomes of the next appends and creations, one each: None writes it, LostAnswer too, any other
            error does not; afterwards all are written.
        receipt_verdicts: raised by the next saves of receipts, one each.
        refused_receipts: conversation and user of receipts with which no save succeeds.
        slow_receipts: conversation and user of receipts with which no save ends.
        failing: raised by every read, load and receipt save while set.
        find_entry_s: seconds of an ``autojump_clock`` that a lookup takes for each entry that it looks at.
        gate: while set, reads, loads and lookups wait for this event.
        calls: how often each method was called.
        batches: for each call of append, how many entries it brought.
    """

    def __init__(self) -> None:
        self.held = False
        self.verdicts: deque[StoreError | None] = deque()
        self.receipt_verdicts: deque[StoreError] = deque()
        self.refused_receipts: set[tuple[str, str]] = set()
        self.slow_receipts: set[tuple[str, str]] = set()
        self.failing: StoreError | None = None
        self.gate: trio.Event | None = None
        self.find_entry_s = 0.0
        self.calls: dict[str, int] = {}
        self.batches: list[int] = []
        self.seen_ms: dict[str, int] = {}
        self.logs: dict[str, _Log] = {}
        self._queue: deque[tuple[Sequence[Append], Done]] = deque()
        self._wake = trio.Event()

    @property
    def writable(self) -> bool:
        return not isinstance(self.failing, NotWritten)

    @property
    def trouble(self) -> str:
        return str(self.failing or "")

    @property
    def queued(self) -> int:
        """Batches that wait for an answer."""
        return len(self._queue)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._queue and not self.held:
                self.answer()

    def append(self, batch: Sequence[Append], done: Done) -> None:
        assert batch, "an empty batch makes no sense"
        self._count("append")
        self.batches.append(sum(len(append.entries) for append in batch))
        self._queue.append((batch, done))
        self._wake.set()

    def answer(self) -> list[StoreError | None]:
        """Write, or not, the oldest batch, and answer it."""
        batch, done = self._queue.popleft()
        outcomes: list[Outcome] = []
        for append in batch:
            verdict = self.verdicts.popleft() if self.verdicts else None
            error = self._write(append) if verdict is None or isinstance(verdict, LostAnswer) else None
            outcomes.append((append, error or verdict))
        done(outcomes)
        return [error for _, error in outcomes]

    def release(self) -> None:
        """Answer what is held, and hold nothing any more."""
        self.held = False
        self._wake.set()

    def crash(self, batches_written: int) -> None:
        """Write the oldest batches that wait, lose the others, and answer none of them, as a killed node would."""
        for batch, _ in list(self._queue)[:batches_written]:
            for append in batch:
                self._write(append)
        self._queue.clear()
        self.verdicts.clear()

    def _write(self, append: Append) -> StoreError | None:
        log = self.logs[append.conversation_id]
        if append.epoch < log.epoch:
            return StaleEpoch(f"epoch {append.epoch} is older than {log.epoch}")
        first = append.entries[0].entry.seq
        encoded = [stored.encoded for stored in append.entries]
        assert [stored.entry.seq for stored in append.entries] == list(range(first, first + len(encoded)))
        there = log.entries[first - 1 : first - 1 + len(encoded)]
        if there:
            return None if there == encoded else NotWritten(f"seq {first} is taken by another entry")
        if first != len(log.entries) + 1:
            return NotWritten(f"seq {first} does not follow the head {len(log.entries)}")
        for each in encoded:
            log.write(each)
        return None

    def _count(self, method: str) -> None:
        self.calls[method] = self.calls.get(method, 0) + 1

    async def _begin(self, method: str) -> None:
        self._count(method)
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        if self.failing is not None:
            raise self.failing

    async def take_over(self, conversation_id: str, epoch: int, tail_entries_max: int) -> Loaded | None:
        await self._begin("take_over")
        log = self.logs.get(conversation_id)
        if log is None:
            return None
        if epoch < log.epoch:
            raise StaleEpoch(f"epoch {epoch} is older than {log.epoch}")
        log.epoch = epoch
        tail = [StoredEntry(decode_entry(encoded), encoded) for encoded in log.entries[-tail_entries_max:]]
        members = {user: _copy(member) for user, member in log.members.items()}
        count = len(members)
        if log.record.kind is ConversationKind.CHANNEL:
            members = {}
        old = log.record
        record = ConversationRecord(old.conversation_id, old.kind, log.title, old.creator, old.created_us)
        return Loaded(record, members, len(log.entries), decode_entry(log.entries[-1]).time_us, tail, count)

    async def create(self, record: ConversationRecord, first: StoredEntry, epoch: int) -> bool:
        self._count("create")
        await trio.lowlevel.checkpoint()
        verdict = self.verdicts.popleft() if self.verdicts else None
        if verdict is not None and not isinstance(verdict, LostAnswer):
            raise verdict
        created = record.conversation_id not in self.logs
        if created:
            log = self.logs[record.conversation_id] = _Log(record, epoch)
            log.write(first.encoded)
        if verdict is not None:
            raise verdict
        return created

    async def read(
        self, conversation_id: str, *, after_seq: int, before_seq: int, limit: int, newest: bool
    ) -> list[bytes]:
        await self._begin("read")
        log = self.logs.get(conversation_id)
        entries = log.entries[after_seq : max(0, before_seq - 1)] if log is not None else []
        return entries[-limit:] if newest else entries[:limit]

    async def find(
        self, conversation_id: str, sender: str, client_msg_id: str, since_us: int, *, after_seq: int, before_seq: int
    ) -> Search:
        # What is written while a lookup waits is not seen: the most awkward thing a store may do.
        log = self.logs.get(conversation_id)
        entries = log.entries[after_seq : max(0, before_seq - 1)] if log is not None else []
        await self._begin("find")
        if self.find_entry_s:
            await trio.sleep(self.find_entry_s * len(entries))
        for encoded in reversed(entries):
            entry = decode_entry(encoded)
            if entry.time_us < since_us:
                return Search(None, ended=True)
            if (entry.sender, entry.client_msg_id) == (sender, client_msg_id):
                return Search(StoredEntry(entry, encoded), ended=False)
        return Search(None, ended=False)

    async def find_members(self, conversation_id: str, users: Collection[str]) -> dict[str, MemberRecord]:
        # As with find: what is written while it waits is not seen.
        log = self.logs.get(conversation_id)
        members = log.members if log is not None else {}
        found = {user: _copy(members[user]) for user in users if user in members}
        await self._begin("find_members")
        return found

    async def list_members(self, conversation_id: str, *, after: str, limit: int) -> list[MemberRecord]:
        await self._begin("list_members")
        log = self.logs.get(conversation_id)
        members = log.members if log is not None else {}
        names = sorted((user for user in members if user.encode() > after.encode()), key=str.encode)
        return [_copy(members[user]) for user in names[:limit]]

    async def memberships(self, user: str, known: Sequence[Involvement | Membership] | None = None) -> list[Membership]:
        await self._begin("memberships")
        wanted = self.logs if known is None else {each.conversation_id for each in known}
        return [
            self._membership(log, user)
            for conversation_id, log in self.logs.items()
            if conversation_id in wanted and user in log.members
        ]

    def _membership(self, log: _Log, user: str) -> Membership:
        member = log.members[user]
        return Membership(
            log.record.conversation_id,
            log.record.kind,
            log.title,
            member.joined_seq,
            len(log.entries),
            decode_entry(log.entries[-1]).time_us,
            log.entries[-1],
            member.delivered_seq,
            member.read_seq,
            len(log.members),
            _peer(log, user),
        )

    async def involvements(self, user: str) -> list[Involvement]:
        await self._begin("involvements")
        return [
            Involvement(
                log.record.conversation_id,
                log.record.kind,
                member.joined_seq,
                member.delivered_seq,
                member.read_seq,
                _peer(log, user),
            )
            for log in self.logs.values()
            if (member := log.members.get(user)) is not None
        ]

    async def acquainted(self, user: str, others: Collection[str]) -> set[str]:
        await self._begin("acquainted")
        return {other for other in others for log in self.logs.values() if user in log.members and other in log.members}

    async def save_receipts(self, receipts: Sequence[ReceiptRecord]) -> None:
        await self._begin("save_receipts")
        if self.receipt_verdicts:
            raise self.receipt_verdicts.popleft()
        places = {(receipt.conversation_id, receipt.user) for receipt in receipts}
        if places & self.slow_receipts:
            await trio.sleep_forever()
        if places & self.refused_receipts:
            raise NotWritten("one of them cannot be written")
        for receipt in receipts:
            log = self.logs.get(receipt.conversation_id)
            member = log.members.get(receipt.user) if log is not None else None
            if member is not None and receipt.joined_seq in (0, member.joined_seq):
                member.delivered_seq = max(member.delivered_seq, receipt.delivered_seq)
                member.read_seq = max(member.read_seq, receipt.read_seq)

    async def save_last_seen(self, seen_ms: Sequence[tuple[str, int]]) -> None:
        await self._begin("save_last_seen")
        for user, time_ms in seen_ms:
            self.seen_ms[user] = max(time_ms, self.seen_ms.get(user, 0))

    async def last_seen(self, users: Collection[str]) -> dict[str, int]:
        await self._begin("last_seen")
        return {user: self.seen_ms[user] for user in users if user in self.seen_ms}


def _peer(log: _Log, user: str) -> str:
    if log.record.kind is not ConversationKind.DIRECT:
        return ""
    return next((member for member in log.members if member != user), user)


def _copy(member: MemberRecord) -> MemberRecord:
    return MemberRecord(member.user, member.joined_seq, member.delivered_seq, member.read_seq)
