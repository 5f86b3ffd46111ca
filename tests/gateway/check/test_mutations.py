"""Good histories pass; the same history with any single lie in it does not."""

from collections.abc import Iterator

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.check.checker import check
from gateway.check.history import APPENDING, Record
from tests.gateway.check.simulator import Simulation

CHOICES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=14)

replace = msgspec.structs.replace


@given(CHOICES)
@settings(max_examples=150)
def test_an_honest_service_breaks_no_promise(choices: list[tuple[int, int]]) -> None:
    report = check(Simulation().run(choices))
    assert report.ok, report.as_text()
    assert report.judged["lost-write"] > 0
    assert report.judged["poll-skip"] > 0


@given(CHOICES)
@settings(max_examples=100)
def test_every_single_lie_is_caught(choices: list[tuple[int, int]]) -> None:
    records = Simulation().run(choices)
    for lie, spoilt in _lies(records):
        assert not check(spoilt).ok, lie


def _lies(records: list[Record]) -> Iterator[tuple[str, list[Record]]]:
    # What was under way when a connection ended may be lost with it: that alone breaks no promise.
    ended = {record.connection for record in records if record.op == "disconnect"}
    for place, record in enumerate(records):
        for lie, changed in _changes(record):
            if changed is None and record.connection in ended:
                continue
            spoilt = [*records[:place], *([changed] if changed is not None else []), *records[place + 1 :]]
            yield f"record {place}: {lie}: {record}", spoilt


def _changes(record: Record) -> Iterator[tuple[str, Record | None]]:
    if record.op == "push" and record.entry is not None:
        entry = record.entry
        yield "a push left out", None
        yield "a push of another content", replace(record, entry=replace(entry, client_msg_id="forged"))
        yield "a push under another seq", replace(record, entry=replace(entry, seq=entry.seq + 1))
        yield "a push to somebody else", replace(record, user="mallory", connection="mallory-1")
        if entry.payload:
            yield "a push of another payload", replace(record, entry=replace(entry, payload="forged"))
    elif record.op in APPENDING and record.type == "ok" and record.seq is not None:
        yield "an acknowledgement of another seq", replace(record, seq=record.seq + 1)
        if not record.duplicate:  # of an entry with an earlier attempt of unknown outcome, a refusal proves nothing
            yield "an acknowledged entry said to be refused", replace(record, type="fail", seq=None)
    elif record.op in APPENDING and record.type == "fail":
        yield "a refused entry acknowledged", replace(record, type="ok", seq=1)
    elif record.op == "read" and record.type == "ok" and record.entries:
        yield from _read_changes(record)


def _read_changes(record: Record) -> Iterator[tuple[str, Record]]:
    entries = record.entries
    assert entries is not None
    for place in range(len(entries)):
        yield "an entry missing in a read", replace(record, entries=(*entries[:place], *entries[place + 1 :]))
    last = entries[-1]
    yield "another content in a read", replace(record, entries=(*entries[:-1], replace(last, sender="mallory")))
    yield "an entry twice in a read", replace(record, entries=(*entries, last))
    if len(entries) > 1:
        swapped = (*entries[:-2], replace(last, seq=last.seq - 1), replace(entries[-2], seq=last.seq))
        yield "two entries that changed places", replace(record, entries=swapped)
