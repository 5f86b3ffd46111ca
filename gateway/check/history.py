"""A history: what clients asked and saw, one JSON object a line. docs/history.md describes it for authors of harnesses.

A call is an ``invoke`` record and at most one completion with the same ``process`` and ``call``: ``ok`` (it happened),
``fail`` (it surely did not) or ``info`` (nobody knows). What nobody asked for (a push, a fault) is a lone record.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta, Struct

LINE_BYTES_MAX = 16 * 1024 * 1024
"""Length of one line, bytes: a read of 100,000 entries fits."""

Type = Literal["invoke", "ok", "fail", "info"]
Op = Literal[
    "send", "create", "add", "remove", "rename", "read", "resume", "push", "deliver", "connect", "disconnect",
    "receipt", "fault", "commit", "speak", "quiet", "resources",
]  # fmt: skip
Kind = Literal["message", "created", "added", "removed", "renamed", "other"]

APPENDING: dict[str, Kind] = {
    "send": "message", "create": "created", "add": "added", "remove": "removed", "rename": "renamed",
}  # fmt: skip
"""Operations that append one entry, and the kind of that entry."""

CALLS = frozenset((*APPENDING, "read", "resume", "receipt"))
"""Operations with an invocation and a completion; all others are lone records."""

Natural = Annotated[int, Meta(ge=0)]


class SeenEntry(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """An entry as a client saw it. ``payload`` is any digest of its content; empty ones are not compared."""

    seq: Annotated[int, Meta(ge=1)]
    sender: str
    client_msg_id: str
    payload: str = ""
    kind: Kind = "message"
    users: tuple[str, ...] = ()
    epoch: int | None = None
    bucket: int | None = None


class Record(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One line. ``time``: nanoseconds of one monotonic clock; records of equal time keep the order of the file."""

    time: Natural
    type: Type
    op: Op
    process: str
    call: Natural | None = None
    user: str = ""
    connection: str = ""
    conversation: str = ""
    client_msg_id: str = ""
    payload: str = ""
    attempt: Annotated[int, Meta(ge=1)] = 1
    users: tuple[str, ...] = ()
    seq: Natural | None = None
    duplicate: bool = False
    error: str = ""
    entry: SeenEntry | None = None
    entries: tuple[SeenEntry, ...] | None = None
    first_seq: Natural | None = None
    last_seq: Natural | None = None
    head_seq: Natural | None = None
    final: bool = False
    cursor: Natural | None = None
    epoch: int | None = None
    fault: str = ""
    phase: Literal["", "before", "after"] = ""
    resources: dict[str, float] | None = None
    note: str = ""


class HistoryError(Exception):
    """The lines are not a history. ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


# What a record must have, by operation and type; "*" is every type that the operation may have.
_NEEDED: dict[tuple[str, str], tuple[str, ...]] = {
    ("send", "invoke"): ("user", "conversation", "client_msg_id"),
    ("send", "ok"): ("seq",),
    ("create", "invoke"): ("user", "client_msg_id"),
    ("create", "ok"): ("conversation", "seq"),
    ("add", "invoke"): ("user", "conversation", "client_msg_id", "users"),
    ("add", "ok"): ("seq",),
    ("remove", "invoke"): ("user", "conversation", "client_msg_id", "users"),
    ("remove", "ok"): ("seq",),
    ("rename", "invoke"): ("user", "conversation", "client_msg_id"),
    ("rename", "ok"): ("seq",),
    ("read", "invoke"): ("conversation",),
    ("read", "ok"): ("entries", "first_seq", "last_seq", "head_seq"),
    ("receipt", "invoke"): ("user", "conversation", "seq"),
    ("resume", "invoke"): ("connection", "conversation", "cursor"),
    ("resume", "ok"): ("head_seq",),
    ("push", "ok"): ("user", "connection", "conversation", "entry"),
    ("deliver", "ok"): ("user", "conversation", "entry"),
    ("connect", "ok"): ("user", "connection"),
    ("disconnect", "info"): ("connection",),
    ("fault", "info"): ("fault",),
    ("commit", "ok"): ("conversation", "epoch"),
    ("speak", "ok"): ("conversation", "epoch"),
    ("quiet", "info"): (),
    ("resources", "info"): ("phase", "resources"),
}

_DECODER = msgspec.json.Decoder(Record)
_ENCODER = msgspec.json.Encoder()


def encode(record: Record) -> bytes:
    """One line, with its line feed."""
    return _ENCODER.encode(record) + b"\n"


def parse(lines: Iterable[bytes]) -> list[Record]:
    """Read a history and bring it into the order of time. Empty lines are passed over.

    Raises:
        HistoryError: a line is no record, or does not fit those before it (a completion without its invocation).
    """
    records: list[Record] = []
    states: dict[tuple[str, int], str] = {}
    for number, line in enumerate(lines, start=1):
        if len(line) > LINE_BYTES_MAX:
            raise HistoryError(number, f"{len(line)} bytes are too long for a record; allowed are {LINE_BYTES_MAX}")
        if line.strip():
            record = _record(number, line)
            if record.op in CALLS:
                _pair(number, record, states)
            records.append(record)
    if not records:
        raise HistoryError(1, "there is no record at all; a history has at least one")
    records.sort(key=lambda record: record.time)
    return records


def _record(number: int, line: bytes) -> Record:
    try:
        record = _DECODER.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise HistoryError(number, f"not a record: {error}") from None
    needed = _NEEDED.get((record.op, record.type))
    if needed is None and record.op not in CALLS:
        allowed = [kind for kind in get_args(Type) if (record.op, kind) in _NEEDED]
        raise HistoryError(number, f"a {record.op} record of type {record.type}; its type is {' or '.join(allowed)}")
    for name in needed or ():
        if getattr(record, name) in (None, "", ()) and not (name == "entries" and record.entries == ()):
            raise HistoryError(number, f"a {record.op} record of type {record.type} needs the field {name}")
    return record


def _pair(number: int, record: Record, states: dict[tuple[str, int], str]) -> None:
    if record.call is None:
        raise HistoryError(number, f"a {record.op} record needs the field call, which pairs it with its other half")
    key = (record.process, record.call)
    state = states.get(key)
    if record.type == "invoke":
        if state is not None:
            raise HistoryError(number, f"call {record.call} of process {record.process} was invoked before")
        states[key] = record.op
        return
    if state is None:
        raise HistoryError(number, f"call {record.call} of process {record.process} was never invoked")
    if state != record.op:
        ended = "ended already" if not state else f"was invoked as {state}"
        raise HistoryError(number, f"call {record.call} of process {record.process} {ended}, not as {record.op}")
    states[key] = ""
