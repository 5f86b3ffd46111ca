"""I12: after a quiet time everybody has everything, and what a node took for it is given back."""

from collections.abc import Iterator
from typing import NamedTuple

from gateway.check.facts import Attempt, Facts
from gateway.check.members import Members
from gateway.check.report import Breach


def undelivered(facts: Facts, members: Members) -> Iterator[Breach]:
    """I12: acknowledged before a quiet record, and never arrived where a member was connected.

    Wanted on a connection is what was sent while it was open, and what lies behind the cursor that it resumed from; but
    who was removed while resuming may not read any more what was lost on the way.
    """
    opened: dict[str, tuple[int, str, str]] = {}
    cursors: dict[tuple[str, str], int] = {}
    fresh: dict[str, list[Attempt]] = {}
    ended = {resume.ended: resume for resume in facts.resumes if resume.head_seq is not None}
    for when, record in enumerate(facts.records):
        if record.op == "connect":
            opened[record.connection] = (when, record.user, record.process)
        elif record.op == "disconnect":
            opened.pop(record.connection, None)
        elif when in ended:
            resume = ended[when]
            cursors[resume.connection, resume.conversation] = resume.cursor
        elif when in facts.completed:
            attempt = facts.completed[when]
            if attempt.acknowledged is not None:
                fresh.setdefault(attempt.conversation, []).append(attempt)
        elif record.op == "quiet":
            for connection, (since, user, process) in opened.items():
                for conversation in members.conversations(user):
                    cursor = cursors.get((connection, conversation))
                    reader = _Reader(connection, user, process, conversation, since, cursor)
                    yield from _missing(facts, members, reader, when, fresh.get(conversation, []))
            fresh = {}


def unreturned(facts: Facts) -> Iterator[Breach]:
    """I12: a resource of a node that is above what it was before."""
    for process, name, was, found in compared(facts):
        if found > was:
            yield Breach("leak", "", f"{process} has {found:g} {name}; allowed are {was:g}")


def compared(facts: Facts) -> Iterator[tuple[str, str, float, float]]:
    """Node, resource, its number before and after, wherever the history tells both."""
    before: dict[str, dict[str, float]] = {}
    for record in facts.records:
        if record.op != "resources" or record.resources is None:
            continue
        if record.phase == "before":
            before[record.process] = record.resources
            continue
        allowed = before.get(record.process, {})
        for name, found in record.resources.items():
            if name in allowed:
                yield record.process, name, allowed[name], found


class _Reader(NamedTuple):
    """One connection and one conversation of its user; ``cursor`` is None when it was not resumed there.

    What ``process`` sent itself on whatever connection, it need not be given.
    """

    connection: str
    user: str
    process: str
    conversation: str
    since: int
    cursor: int | None


def _missing(facts: Facts, members: Members, reader: _Reader, quiet: int, wanted: list[Attempt]) -> Iterator[Breach]:
    seen = facts.seen_on(reader.connection, reader.conversation)
    for attempt in wanted:
        seq = attempt.acknowledged
        assert seq is not None
        behind_cursor = reader.cursor is not None and seq > reader.cursor
        if facts.by_key[attempt.key][0].invoked < reader.since and not behind_cursor:
            continue
        if seen.get(seq, quiet) < quiet or not members.at(reader.conversation, reader.user, seq):
            continue
        if _removed_while_resuming(facts, members, reader, seq):
            continue
        if not facts.sent_by(attempt.key, connection=reader.connection, process=reader.process):
            what = f"connection {reader.connection} of {reader.user} never got seq {seq}"
            yield Breach("leak", reader.conversation, what)


def _removed_while_resuming(facts: Facts, members: Members, reader: _Reader, seq: int) -> bool:
    """Whether the reader knew that it had missed something, and was removed before it could read that."""
    left = any(stay.joined <= seq and stay.left is not None for stay in members.stays(reader.conversation, reader.user))
    logged = facts.log[reader.conversation][seq]
    return left and any(
        resume.head_seq is None
        and (resume.connection, resume.conversation) == (reader.connection, reader.conversation)
        and resume.ended > logged.first
        for resume in facts.resumes
    )
