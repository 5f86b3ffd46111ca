"""What a history tells, put in order once, for all invariants to look at.

"When" is everywhere the place of a record in the history (an index), because records of equal time are ordered too.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec import Struct

from gateway.check.history import APPENDING, Record, SeenEntry

Key = tuple[str, str]
"""Who sent an entry and under which client_msg_id: what identifies it across retries."""


class Attempt(Struct):
    """One call that was to append an entry; ``ended`` is None when the history has no completion."""

    invoked: int
    invoke: Record
    ended: int | None = None
    end: Record | None = None

    @property
    def key(self) -> Key:
        """Identity of the entry."""
        return self.invoke.user, self.invoke.client_msg_id

    @property
    def conversation(self) -> str:
        """Where it went; the answer knows better, because it names a conversation that it created."""
        return (self.end.conversation if self.end is not None else "") or self.invoke.conversation

    @property
    def connection(self) -> str:
        """The connection that sent it, or an empty text when the history does not tell."""
        return self.invoke.connection or (self.end.connection if self.end is not None else "")

    @property
    def acknowledged(self) -> int | None:
        """The seq it was acknowledged with, else None. Finding an existing conversation acknowledges no entry."""
        if self.end is None or self.end.type != "ok" or (self.invoke.op == "create" and self.end.duplicate):
            return None
        return self.end.seq


class Read(Struct):
    """A read that was answered: it claims to hold every entry from ``first_seq`` to ``last_seq``."""

    invoked: int
    ended: int
    user: str
    process: str
    connection: str
    conversation: str
    entries: tuple[SeenEntry, ...]
    first_seq: int
    last_seq: int
    head_seq: int
    final: bool


class Resume(Struct):
    """A client came back with ``cursor`` and was told that it now has everything up to ``head_seq``.

    ``head_seq`` is None when nothing came of it.
    """

    invoked: int
    ended: int
    connection: str
    conversation: str
    cursor: int
    head_seq: int | None


class Sight(NamedTuple):
    """Somebody saw an entry: by a push, a delivery or a read."""

    when: int
    conversation: str
    entry: SeenEntry


class Logged(Struct):
    """What is known of one seq: the first identity seen there, and when it was seen and acknowledged."""

    key: Key
    entry: SeenEntry | None
    first: int
    last: int
    acknowledged: int | None = None


class Rising:
    """A maximum that grew as the history went on."""

    def __init__(self) -> None:
        self._when: list[int] = []
        self._value: list[int] = []

    def add(self, when: int, value: int) -> None:
        """Take in a value; calls come in the order of ``when``."""
        if not self._value or value > self._value[-1]:
            self._when.append(when)
            self._value.append(value)

    def before(self, when: int) -> int:
        """The maximum strictly before, or 0."""
        place = bisect_left(self._when, when)
        return self._value[place - 1] if place else 0


class Facts:
    """Attempts, reads, resumes and the log as all observers together saw it."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.attempts: list[Attempt] = []
        self.by_key: dict[Key, list[Attempt]] = {}
        self.reads: list[Read] = []
        self.resumes: list[Resume] = []
        self.log: dict[str, dict[int, Logged]] = {}
        self.seen: dict[str, Rising] = {}
        self.acknowledged: dict[str, Rising] = {}
        self.on_connection: dict[tuple[str, str], dict[int, int]] = {}
        self._invoked: dict[tuple[str, int], tuple[int, Record]] = {}
        self._attempt_of: dict[tuple[str, int], Attempt] = {}
        self.completed: dict[int, Attempt] = {}
        for when, record in enumerate(records):
            self._take(when, record)

    def sights(self) -> Iterator[Sight]:
        """Every sight of an entry, in order."""
        for when, record in enumerate(self.records):
            yield from _sights(when, record, self._conversation_of(record))

    def seen_on(self, connection: str, conversation: str) -> dict[int, int]:
        """Seqs that reached a connection in any way (push, read, acknowledgement), and when each first did."""
        return self.on_connection.get((connection, conversation), {})

    def final_reads(self) -> Iterator[Read]:
        """The full reads at the end."""
        return (read for read in self.reads if read.final)

    def sent_by(self, key: Key, *, connection: str = "", process: str = "") -> bool:
        """Whether that connection, or that process, ever sent the entry."""
        return any(
            (bool(connection) and attempt.connection == connection)
            or (bool(process) and attempt.invoke.process == process)
            for attempt in self.by_key.get(key, ())
        )

    def _take(self, when: int, record: Record) -> None:
        call = (record.process, record.call) if record.call is not None else None
        if call is not None and record.type == "invoke":
            self._invoked[call] = (when, record)
            if record.op in APPENDING:
                attempt = Attempt(when, record)
                self._attempt_of[call] = attempt
                self.attempts.append(attempt)
                self.by_key.setdefault(attempt.key, []).append(attempt)
        elif call is not None and record.op in APPENDING:
            attempt = self._attempt_of[call]
            attempt.ended, attempt.end = when, record
            self.completed[when] = attempt
            self._acknowledge(when, attempt)
        elif call is not None and (record.type == "ok" or record.op == "resume"):
            self._answer(when, record, *self._invoked[call])
        connection = record.connection or (self._invoked[call][1].connection if call is not None else "")
        for sight in _sights(when, record, self._conversation_of(record)):
            self._see(sight)
            self._reach(connection, sight.conversation, sight.entry.seq, when)

    def _answer(self, when: int, record: Record, invoked: int, invoke: Record) -> None:
        if record.op == "read":
            assert record.first_seq is not None
            assert record.last_seq is not None
            assert record.head_seq is not None
            self.reads.append(
                Read(
                    invoked,
                    when,
                    invoke.user,
                    invoke.process,
                    record.connection or invoke.connection,
                    invoke.conversation,
                    record.entries or (),
                    record.first_seq,
                    record.last_seq,
                    record.head_seq,
                    invoke.final or record.final,
                )
            )
        elif record.op == "resume":
            assert invoke.cursor is not None
            head_seq = record.head_seq if record.type == "ok" else None
            self.resumes.append(Resume(invoked, when, invoke.connection, invoke.conversation, invoke.cursor, head_seq))

    def _acknowledge(self, when: int, attempt: Attempt) -> None:
        seq = attempt.acknowledged
        if seq is None:
            return
        self._reach(attempt.connection, attempt.conversation, seq, when)
        self.acknowledged.setdefault(attempt.conversation, Rising()).add(when, seq)
        self.seen.setdefault(attempt.conversation, Rising()).add(when, seq)
        logged = self.log.setdefault(attempt.conversation, {}).get(seq)
        if logged is None:
            self.log[attempt.conversation][seq] = Logged(attempt.key, None, when, when, when)
        elif logged.key == attempt.key and logged.acknowledged is None:
            logged.acknowledged = when

    def _see(self, sight: Sight) -> None:
        entry = sight.entry
        self.seen.setdefault(sight.conversation, Rising()).add(sight.when, entry.seq)
        log = self.log.setdefault(sight.conversation, {})
        logged = log.get(entry.seq)
        if logged is None:
            log[entry.seq] = Logged((entry.sender, entry.client_msg_id), entry, sight.when, sight.when)
        else:
            logged.last = sight.when
            if logged.entry is None:
                logged.entry = entry

    def _reach(self, connection: str, conversation: str, seq: int, when: int) -> None:
        if connection:
            self.on_connection.setdefault((connection, conversation), {}).setdefault(seq, when)

    def _conversation_of(self, record: Record) -> str:
        """A read's answer stands for its invocation's conversation."""
        if record.op == "read" and record.call is not None:
            return self._invoked[record.process, record.call][1].conversation
        return record.conversation


def _sights(when: int, record: Record, conversation: str) -> Iterator[Sight]:
    if record.type != "ok":
        return
    if record.entry is not None:
        yield Sight(when, conversation, record.entry)
    for entry in record.entries or ():
        yield Sight(when, conversation, entry)
