"""What the store keeps of a conversation while its owner appends to it, and the rules of appending. Nothing here waits.

An append becomes one or more *flights*: rows sent together. Several may be under way; they are settled, and their
appends answered, in the order of their seqs. Three things keep a log sound when answers are missing:

- No row goes further than WINDOW_ENTRIES above the head, so that a later owner knows where a gap can be.
- Behind a flight that failed nothing more is sent until all is answered; then the caller brings the same rows again.
- Rows that may be in the store are remembered until they surely are: their seqs take nothing else.
"""

from collections import deque
from collections.abc import Sequence

from protocol.frames import ConversationKind
from store.entries import Append, StoredEntry
from store.interface import Done, NotWritten, OutcomeUnknown, StaleEpoch, StoreError
from store.segments import Segment, Segments
from store.tables import EntryWrite


class Ticket:
    """An append on its way. ``rest`` is what is not sent yet, None before its rows were judged."""

    __slots__ = ("append", "done", "error", "flights", "rest", "some_written")

    def __init__(self, append: Append, done: Done) -> None:
        self.append = append
        self.done = done
        self.rest: Sequence[StoredEntry] | None = None
        self.flights = 0
        self.error: StoreError | None = None
        self.some_written = False

    def note(self, error: StoreError | None) -> None:
        """Take what became of one of its flights."""
        if error is None:
            self.some_written = True
        elif self.error is None or isinstance(self.error, NotWritten):
            self.error = error

    @property
    def outcome(self) -> StoreError | None:
        """What became of all of it."""
        if self.some_written and isinstance(self.error, NotWritten):
            return OutcomeUnknown(f"a part is stored and the rest is not ({self.error})")
        return self.error


class Flight:
    """Rows sent together. ``entries`` is empty for what only has to be answered in its turn.

    Attributes:
        durable: its rows are in the store.
        answered: all that belongs to it is done, or ``error`` says what went wrong.
        changes: its last entry changes members or title, so its member rows have to follow.
    """

    __slots__ = ("answered", "changes", "durable", "entries", "error", "ticket")

    def __init__(self, ticket: Ticket, entries: Sequence[StoredEntry], changes: bool = False) -> None:
        self.ticket = ticket
        self.entries = entries
        self.changes = changes
        self.durable = False
        self.answered = False
        self.error: StoreError | None = None


class OpenLog:
    """One conversation as the store of its owner knows it.

    Attributes:
        segments: of its row, the last one being ours; ``nonce`` is that row's.
        head_seq: the last entry that is durable with all before it.
        sent_seq: the last one sent.
        rows: encoded entries above the head that were sent, by seq.
        bucket_bytes: about what the present bucket holds.
        title, member_count: as of the head.
        waiting: appends not sent yet; ``flights`` under way; both oldest first.
        busy: why nothing may be sent now, in words; empty: it may.
        failed: a flight went wrong; nothing more is sent until all are answered.
        doubt: rows above the head may be in the store.
        new_segment: a bucket that is being opened, until it is known whether that happened: its nonce and segments.
    """

    __slots__ = (
        "bucket_bytes", "busy", "conversation_id", "doubt", "failed", "flights", "head_seq", "kind", "loaded",
        "member_count", "new_segment", "nonce", "rows", "segments", "sent_seq", "title", "waiting",
    )  # fmt: skip

    def __init__(self, conversation_id: str) -> None:
        self.conversation_id = conversation_id
        self.loaded = False
        self.kind = ConversationKind.GROUP
        self.segments: Segments = ()
        self.nonce = ""
        self.head_seq = 0
        self.sent_seq = 0
        self.rows: dict[int, bytes] = {}
        self.bucket_bytes = 0
        self.title = ""
        self.member_count = 0
        self.waiting: deque[Ticket] = deque()
        self.flights: deque[Flight] = deque()
        self.busy = ""
        self.failed = False
        self.doubt = False
        self.new_segment: tuple[str, Segments] | None = None

    @property
    def last(self) -> Segment:
        """The segment that new entries belong to."""
        return self.segments[-1]

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self.flights and not self.waiting and not self.busy

    @property
    def forgettable(self) -> bool:
        """Whether the store's rows tell all that is known here."""
        return self.idle and not self.doubt and self.new_segment is None

    def refusal(self, append: Append) -> StoreError | None:
        """Why an append cannot be taken; what of it is durable already is not looked at."""
        epoch = self.last.epoch
        if append.epoch < epoch:
            return StaleEpoch(f"epoch {append.epoch} does not own {self.conversation_id} any more: epoch {epoch} does")
        if append.epoch > epoch:
            return NotWritten(f"epoch {append.epoch} has not taken {self.conversation_id} over; epoch {epoch} has")
        expected = None
        for stored in append.entries:
            seq = stored.entry.seq
            if expected is None and seq > self.sent_seq + 1:
                return NotWritten(f"seq {seq} does not follow {self.sent_seq} in {self.conversation_id}")
            if expected is not None and seq != expected:
                return NotWritten(f"seqs {expected - 1} and {seq} of one append do not follow each other")
            expected = seq + 1
            if self.rows.get(seq, stored.encoded) != stored.encoded:
                return NotWritten(f"seq {seq} of {self.conversation_id} is taken by another entry")
        return None

    def send(self, ticket: Ticket, entries: Sequence[StoredEntry], changes: bool) -> tuple[Flight, EntryWrite]:
        """Note that entries are sent now."""
        flight = Flight(ticket, entries, changes)
        ticket.flights += 1
        self.flights.append(flight)
        size = 0
        for stored in entries:
            self.rows[stored.entry.seq] = stored.encoded
            size += len(stored.encoded)
        self.bucket_bytes += size
        self.sent_seq = max(self.sent_seq, entries[-1].entry.seq)
        last = self.segments[-1]
        return flight, EntryWrite(self.conversation_id, last.bucket, last.epoch, entries)

    def answer_in_turn(self, ticket: Ticket, error: StoreError | None) -> None:
        """Answer what needs no rows, behind all that is under way."""
        flight = Flight(ticket, ())
        flight.answered, flight.error = True, error
        ticket.flights += 1
        self.flights.append(flight)

    def settle(self) -> list[Ticket]:
        """Take the flights that are answered, in order, and return the appends that are answered thereby."""
        answered = []
        while self.flights and self.flights[0].answered:
            flight = self.flights.popleft()
            if flight.entries:
                self._land(flight)
            ticket = flight.ticket
            ticket.flights -= 1
            ticket.note(flight.error)
            if not ticket.flights and not ticket.rest:
                answered.append(ticket)
        if not self.flights:
            self._rest()
        return answered

    def adjoins(self, flight: Flight) -> bool:
        """Whether everything before a flight is durable."""
        return flight.entries[0].entry.seq <= self.head_seq + 1

    def _land(self, flight: Flight) -> None:
        if flight.error is not None:
            self.failed = True
            self.doubt = self.doubt or not isinstance(flight.error, NotWritten)
        elif self.adjoins(flight):
            for stored in flight.entries:
                self.rows.pop(stored.entry.seq, None)
            self.head_seq = max(self.head_seq, flight.entries[-1].entry.seq)
        else:
            self.doubt = True

    def _rest(self) -> None:
        """Nothing is under way any more: what failed may be brought again."""
        if self.failed:
            self.failed = False
            self.sent_seq = self.head_seq
            if not self.doubt:
                self.rows.clear()
        if not self.rows:
            self.doubt = False
