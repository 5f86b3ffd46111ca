"""Appending: what waits in each conversation's log goes out in order, as much at once as the rules allow.

Ordinary entries cost one write. Three things make a conversation stand still for a moment: an entry that changes
members (its member rows follow before anything else does), a bucket that is full or old (a new one is opened by
changing the conversation's row, when all before is durable), and rows that were appended before (they are read and
compared).
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import trio

from store.cassandra_load import Loader, change_segments, new_nonce
from store.cassandra_log import Flight, OpenLog, Ticket
from store.cassandra_members import Roster, change_rows, read_stays
from store.cassandra_reads import read_between
from store.entries import NO_CHANGES, Append, StoredEntry, changes_of
from store.interface import Done, NotWritten, Outcome, OutcomeUnknown, StaleEpoch, StoreError, Unavailable
from store.segments import WINDOW_ENTRIES, Segment, with_segment
from store.tables import EntryWrite, Tables

MIB: Final = 2**20

BUCKET_BYTES_MAX: Final = 16 * MIB
"""Bytes of entries after which a bucket takes no more: with what Cassandra adds to each row, its partition stays near
the 20 MB up to which reads are quick."""

BUCKET_AGE_US: Final = 10 * 24 * 3600 * 1_000_000
"""Microseconds after which a bucket takes no more, so that old history lies in files that nobody writes any more."""

AWAITING_MEMBERS: Final = "an entry that changes members is under way"
WRITING_MEMBERS: Final = "member rows are being written"
COMPARING: Final = "rows that were appended before are being compared"
OPENING_BUCKET: Final = "a new bucket is being opened"
LOADING: Final = "the conversation is being read"


class Appender:
    """Appends to the logs of a store. Needs ``start`` before the first append."""

    def __init__(
        self,
        tables: Tables,
        loader: Loader,
        may_speak: Callable[[str, int], bool],
        rested: Callable[[OpenLog], None],
        noted: Callable[[StoreError | None], None],
    ) -> None:
        """Make one.

        Args:
            tables: where entries go.
            loader: reads conversations that memory does not know any more.
            may_speak: whether this node is sure to own a conversation under an epoch.
            rested: told of each log that has nothing under way any more.
            noted: told of each outcome of a write.
        """
        self._tables = tables
        self._loader = loader
        self._may_speak = may_speak
        self._rested = rested
        self._noted = noted
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._outbox: list[EntryWrite] = []
        self._under_way: dict[int, tuple[EntryWrite, OpenLog, Flight]] = {}
        self._finished: list[Ticket] = []

    def start(self, nursery: trio.Nursery) -> None:
        """Let what cannot be done at once run in ``nursery``."""
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()

    def append(self, logs: Sequence[OpenLog], batch: Sequence[Append], done: Done) -> None:
        """See ``Store.append``; ``logs`` are those of the batch, one for each append."""
        for log, append in zip(logs, batch, strict=True):
            log.waiting.append(Ticket(append, done))
            if not log.loaded and not log.busy:
                self._begin(log, LOADING, self._load)
            else:
                self._advance(log)
        self._send()
        if self._finished:
            self.tell_soon()

    def advance(self, log: OpenLog) -> None:
        """Go on with a log that stood still."""
        self._advance(log)
        self._send()
        self._tell()

    def fail_waiting(self, log: OpenLog, error: StoreError) -> None:
        """Answer all that is not sent yet."""
        while log.waiting:
            ticket = log.waiting.popleft()
            ticket.rest = None
            log.answer_in_turn(ticket, error)

    def end(self, logs: Sequence[OpenLog]) -> None:
        """Answer what never will be, when nothing runs any more."""
        error = OutcomeUnknown("the store ended before an answer came")
        for log in logs:
            tickets = {id(ticket): ticket for ticket in (*(flight.ticket for flight in log.flights), *log.waiting)}
            log.flights.clear()
            log.waiting.clear()
            for ticket in tickets.values():
                ticket.error = error
                self._finished.append(ticket)
        self._under_way.clear()
        self._tell()

    def tell_soon(self) -> None:
        """Tell outcomes, though not from inside the caller's call."""
        assert self._token is not None, "started"
        self._token.run_sync_soon(self._tell, idempotent=True)

    def _advance(self, log: OpenLog) -> None:
        """Settle what is answered and send what may be sent, until neither changes anything."""
        while True:
            self._finished += log.settle()
            front = log.flights[0] if log.flights else None
            if front is not None and front.changes and front.durable and log.busy == AWAITING_MEMBERS:
                self._follow_up(log, front)
            self._pump(log)
            if not (log.flights and log.flights[0].answered):
                break
        if log.idle:
            self._rested(log)

    def _follow_up(self, log: OpenLog, flight: Flight) -> None:
        """An entry that changes members is durable and its turn has come."""
        if log.adjoins(flight):
            log.busy = ""
            self._begin(log, WRITING_MEMBERS, lambda log: self._write_members(log, flight))
        else:
            log.busy = ""
            flight.error = OutcomeUnknown("the entry is stored, and an earlier one is not known to be")
            flight.answered = True

    def _pump(self, log: OpenLog) -> None:
        waiting = log.waiting
        while waiting and not log.busy:
            if log.failed:
                self.fail_waiting(log, NotWritten("an earlier append of this conversation failed: append it first"))
                return
            ticket = waiting[0]
            if ticket.rest is None and not self._judge(log, ticket):
                continue
            rest = ticket.rest
            assert rest is not None, "judged"
            count, changes = self._sendable(log, rest)
            if not count:
                return
            ticket.rest = rest[count:]
            if not ticket.rest:
                waiting.popleft()
            flight, write = log.send(ticket, rest[:count], changes)
            if changes:
                log.busy = AWAITING_MEMBERS
            self._under_way[id(write)] = write, log, flight
            self._outbox.append(write)

    def _judge(self, log: OpenLog, ticket: Ticket) -> bool:
        """Whether the first waiting append may be sent; if not, it is answered or being looked into."""
        entries = ticket.append.entries
        error = log.refusal(ticket.append)
        if error is None and entries and entries[0].entry.seq <= log.head_seq:
            self._begin(log, COMPARING, lambda log: self._compare(log, ticket))
            return False
        if error is not None or not entries:
            log.waiting.popleft()
            log.answer_in_turn(ticket, error)
            return False
        ticket.rest = entries
        return True

    def _sendable(self, log: OpenLog, rest: Sequence[StoredEntry]) -> tuple[int, bool]:
        """How many entries may be sent now (0: something has to happen first), and if the last changes members."""
        first = rest[0].entry
        if self._bucket_ended(log, first.time_us):
            if not log.flights:
                self._begin(log, OPENING_BUCKET, lambda log: self._open_bucket(log, first.time_us))
            return 0, False
        count = min(len(rest), log.head_seq + WINDOW_ENTRIES + 1 - first.seq)
        for at in range(count):
            if changes_of(rest[at].entry) is not NO_CHANGES:
                return at + 1, True
        return max(0, count), False

    @staticmethod
    def _bucket_ended(log: OpenLog, time_us: int) -> bool:
        if log.new_segment is not None:
            return True
        last = log.segments[-1]
        if log.bucket_bytes < BUCKET_BYTES_MAX and time_us - last.opened_us < BUCKET_AGE_US:
            return False
        return not log.rows or bool(log.flights)  # rows in doubt go where they went before

    # --- What becomes of writes ---------------------------------------------------------------------------------

    def _send(self) -> None:
        if self._outbox:
            writes, self._outbox = self._outbox, []
            self._tables.write_entries(writes, self._written)

    def _written(self, results: Sequence[tuple[EntryWrite, StoreError | None]]) -> None:
        logs: dict[str, OpenLog] = {}
        for write, error in results:
            known = self._under_way.pop(id(write), None)
            if known is None:
                continue  # answered when the store ended
            _, log, flight = known
            self._noted(error)
            flight.durable = error is None
            flight.error = error
            if error is not None or not flight.changes:
                flight.answered = True
                if flight.changes:
                    log.busy = ""
            logs[log.conversation_id] = log
        for log in logs.values():
            self._advance(log)
        self._send()
        self._tell()

    def _tell(self) -> None:
        """Tell outcomes, those of one caller together."""
        finished, self._finished = self._finished, []
        outcomes: dict[Done, list[Outcome]] = {}
        for ticket in finished:
            outcomes.setdefault(ticket.done, []).append((ticket.append, ticket.outcome))
        for done, told in outcomes.items():
            done(told)

    # --- What takes more than a write ---------------------------------------------------------------------------

    def _begin(self, log: OpenLog, why: str, work: Callable[[OpenLog], Coroutine[Any, Any, None]]) -> None:
        """Let the log stand still until ``work`` is done."""
        assert not log.busy, log.busy
        assert self._nursery is not None, "started"
        log.busy = why
        self._nursery.start_soon(self._work, log, work)

    async def _work(self, log: OpenLog, work: Callable[[OpenLog], Coroutine[Any, Any, None]]) -> None:
        """Do it; a cancellation leaves the log standing still for ever, as the store has ended then."""
        await work(log)
        log.busy = ""
        self.advance(log)

    async def _load(self, log: OpenLog) -> None:
        try:
            opened = await self._loader.open(log, None, 1)
            described = await self._tables.members(log.conversation_id, after=None, limit=1)
        except (Unavailable, StaleEpoch) as error:
            log.loaded = False
            self.fail_waiting(log, NotWritten(f"the conversation could not be read ({error})"))
            return
        if opened is None:
            self.fail_waiting(log, NotWritten(f"there is no conversation {log.conversation_id}"))
            return
        log.title, log.member_count = described.title, described.member_count

    async def _compare(self, log: OpenLog, ticket: Ticket) -> None:
        """Look whether rows that are durable already are the very ones that the append brings."""
        entries, head_seq = ticket.append.entries, log.head_seq
        first_seq = entries[0].entry.seq
        old = entries[: head_seq + 1 - first_seq]
        error: StoreError | None = None
        try:
            rows = await read_between(
                self._tables, log.conversation_id, log.segments, first_seq - 1, first_seq + len(old), len(old),
                newest=False,
            )  # fmt: skip
        except Unavailable as trouble:
            error = OutcomeUnknown(f"what was appended before cannot be read ({trouble})")
        else:
            if [row.encoded for row in rows] != [stored.encoded for stored in old]:
                error = NotWritten(f"seq {first_seq} of {log.conversation_id} is taken by another entry")
        rest = entries[len(old) :]
        if error is None and rest:
            ticket.rest = rest
        else:
            log.waiting.popleft()
            log.answer_in_turn(ticket, error)

    async def _write_members(self, log: OpenLog, flight: Flight) -> None:
        entry = flight.entries[-1].entry
        changes = changes_of(entry)
        try:
            stays = await read_stays(self._tables, log.conversation_id, {*changes.added, *changes.removed})
            before = Roster(log.title, log.member_count, stays)
            changed = change_rows(log.conversation_id, log.kind, entry, before)
            if not self._may_speak(log.conversation_id, log.last.epoch):
                raise OutcomeUnknown("this node is not sure to be the owner any more")
            await self._tables.write(changed.rows)
        except StoreError as error:
            flight.error = OutcomeUnknown(f"the entry is stored, its member rows may not be ({error})")
        else:
            log.title, log.member_count = changed.title, changed.member_count
        flight.answered = True

    def finish_buckets(self, logs: Sequence[OpenLog]) -> None:
        """Find out of buckets whose opening is unknown, though nobody appends: until then the rows do not tell all."""
        for log in logs:
            if log.new_segment is not None and log.idle:
                self._begin(log, OPENING_BUCKET, lambda log: self._open_bucket(log, 0))

    async def _open_bucket(self, log: OpenLog, time_us: int) -> None:
        try:
            await self.open_bucket(log, time_us)
        except StaleEpoch as error:
            self.fail_waiting(log, error)
        except (NotWritten, OutcomeUnknown) as error:
            self._noted(error)
            self.fail_waiting(log, NotWritten(f"a new bucket could not be opened ({error})"))

    async def open_bucket(self, log: OpenLog, time_us: int) -> None:
        """Begin a new segment of the same epoch in a new bucket; what was begun before is finished first.

        Raises:
            NotWritten, OutcomeUnknown: it may happen yet, so it has to be called again before anything is appended.
            StaleEpoch: the row was changed by somebody else.
        """
        if log.new_segment is None:
            last = log.last
            new = Segment(last.epoch, log.head_seq + 1, last.bucket + 1, time_us)
            log.new_segment = new_nonce(), with_segment(log.segments, new)
        nonce, taken = log.new_segment
        applied = await change_segments(self._tables, log.conversation_id, log.nonce, nonce, taken)
        log.new_segment = None
        if not applied:
            log.loaded = False
            raise StaleEpoch(f"conversation {log.conversation_id} was taken over by another owner")
        log.segments, log.nonce, log.bucket_bytes = taken, nonce, 0
