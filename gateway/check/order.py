"""I4, I5, I9: the order in which things reached a connection, and in which they were sent."""

from collections.abc import Container, Iterator

from msgspec import Struct

from gateway.check.facts import Facts, Resume
from gateway.check.members import told_again
from gateway.check.report import Breach


def ack_orders(facts: Facts) -> Iterator[Breach]:
    """I4: on one connection, first acknowledgements of one conversation come in seq order.

    An answer marked as a duplicate repeats what was acknowledged before and may come at any time.
    """
    last: dict[tuple[str, str], int] = {}
    for when in sorted(facts.completed):
        attempt = facts.completed[when]
        seq, connection, end = attempt.acknowledged, attempt.connection, attempt.end
        if seq is None or not connection or end is None or end.duplicate:
            continue
        place = (connection, attempt.conversation)
        if seq <= last.get(place, 0):
            what = f"connection {connection} was answered seq {seq} after seq {last[place]}"
            yield Breach("nonmonotonic-send", attempt.conversation, what)
        last[place] = max(seq, last.get(place, 0))


def realtime(facts: Facts) -> Iterator[Breach]:
    """I9: an entry first sent after a greater seq had been acknowledged."""
    for conversation, log in facts.log.items():
        acknowledged = facts.acknowledged.get(conversation)
        for seq, logged in log.items():
            attempts = facts.by_key.get(logged.key)
            if not attempts or acknowledged is None or logged.first < attempts[0].invoked:
                continue
            greatest = acknowledged.before(attempts[0].invoked)
            if greatest >= seq:
                what = f"{logged.key[1]} of {logged.key[0]} was first sent after seq {greatest} was acknowledged"
                yield Breach("realtime", conversation, f"{what}, and stands at seq {seq}")


class _Line(Struct):
    """How far one stream of entries came.

    ``position``: everything up to it has come, or need not; None until there is something to go by.
    ``greatest``: of all that came. ``resuming``: resumes under way, while which pushes may run ahead of the reads.
    """

    position: int | None = None
    greatest: int = 0
    resuming: int = 0


def pushes(facts: Facts) -> Iterator[Breach]:
    """I5 on a connection: pushes (and the acknowledgements of own sends, which stand in for them) skip nothing.

    A push of a seq that was passed already is a repeat, which receivers drop; I3 sees to its content. While a resume is
    under way nothing is judged; at its end, everything from its cursor on must be there.
    """
    lines: dict[tuple[str, str], _Line] = {}
    begun = {resume.invoked: resume for resume in facts.resumes}
    ended = {resume.ended: resume for resume in facts.resumes}
    for when, record in enumerate(facts.records):
        if when in begun or when in ended:
            resume = begun.get(when) or ended[when]
            line = lines.setdefault((resume.connection, resume.conversation), _Line())
            line.resuming += 1 if when in begun else -1
            if when in ended:
                yield from _resumed(facts, resume, line)
            continue
        if record.op == "push" and record.entry is not None:
            place, seq, user = (record.connection, record.conversation), record.entry.seq, record.user
        elif (attempt := facts.completed.get(when)) is not None:
            acknowledged, end = attempt.acknowledged, attempt.end
            if acknowledged is None or not attempt.connection or end is None or end.duplicate:
                continue
            place, seq, user = (attempt.connection, attempt.conversation), acknowledged, attempt.invoke.user
        else:
            continue
        yield from _advance(facts, lines.setdefault(place, _Line()), place, seq, user, when)


def deliveries(facts: Facts) -> Iterator[Breach]:
    """I5 behind deduplication: what an application was handed repeats nothing and skips nothing but its own sends."""
    last: dict[tuple[str, str], int] = {}
    for record in facts.records:
        if record.op != "deliver" or record.entry is None:
            continue
        place, seq = (record.process, record.conversation), record.entry.seq
        before = last.get(place)
        if before is not None and seq <= before:
            yield Breach("poll-skip", record.conversation, f"{record.process} was handed seq {seq} after seq {before}")
            continue
        last[place] = seq
        if before is None or _was_out(facts, record.conversation, record.user, before, seq):
            continue
        skipped = _skipped(facts, record.conversation, before, seq, process=record.process)
        if skipped is not None:
            what = f"{record.process} was handed seq {seq} after seq {before}, without {skipped}"
            yield Breach("poll-skip", record.conversation, what)


def _advance(facts: Facts, line: _Line, place: tuple[str, str], seq: int, user: str, when: int) -> Iterator[Breach]:
    connection, conversation = place
    line.greatest = max(line.greatest, seq)
    before = line.position
    if line.resuming or (before is not None and seq <= before):
        return
    if before is None:
        # The first one may be an old entry, pushed again because its sender repeated it: nothing follows from that.
        if not _repeated(facts, conversation, seq):
            line.position = seq
        return
    line.position = seq
    if seq == before + 1 or _was_out(facts, conversation, user, before, seq) or _moved(facts, conversation, user, seq):
        return
    # What was pushed during a resume that came to nothing is there, too.
    reached = {each for each, at in facts.seen_on(connection, conversation).items() if at < when}
    skipped = _skipped(facts, conversation, before, seq, connection=connection, reached=reached)
    if skipped is not None:
        what = f"connection {connection} got seq {seq} when it was at {before}, without {skipped}"
        yield Breach("poll-skip", conversation, what)


def _repeated(facts: Facts, conversation: str, seq: int) -> bool:
    logged = facts.log.get(conversation, {}).get(seq)
    return logged is not None and len(facts.by_key.get(logged.key, ())) > 1


def _resumed(facts: Facts, resume: Resume, line: _Line) -> Iterator[Breach]:
    """All from the cursor to the head, and to the last push so far, has reached the connection."""
    if resume.head_seq is None:
        return
    upper = max(resume.head_seq, line.greatest)
    line.position = max(upper, line.position or 0)
    seen = facts.seen_on(resume.connection, resume.conversation)
    for seq in range(resume.cursor + 1, upper + 1):
        if seen.get(seq, resume.ended) < resume.ended or _own(facts, resume.conversation, seq, resume.connection, ""):
            continue
        what = f"connection {resume.connection} resumed from {resume.cursor} to {upper}, without {seq}"
        yield Breach("poll-skip", resume.conversation, what)
        return


def _skipped(
    facts: Facts,
    conversation: str,
    before: int,
    seq: int,
    *,
    connection: str = "",
    process: str = "",
    reached: Container[int] = (),
) -> int | None:
    """The first seq between the two that the observer neither got nor sent itself."""
    for between in range(before + 1, seq):
        if between not in reached and not _own(facts, conversation, between, connection, process):
            return between
    return None


def _own(facts: Facts, conversation: str, seq: int, connection: str, process: str) -> bool:
    logged = facts.log.get(conversation, {}).get(seq)
    return logged is not None and facts.sent_by(logged.key, connection=connection, process=process)


def _moved(facts: Facts, conversation: str, user: str, seq: int) -> bool:
    logged = facts.log.get(conversation, {}).get(seq)
    return logged is not None and logged.entry is not None and told_again(conversation, logged.entry, user)


def _was_out(facts: Facts, conversation: str, user: str, before: int, seq: int) -> bool:
    """Whether the user left with the entry ``before`` and came back with the entry ``seq``."""
    log = facts.log.get(conversation, {})
    left = log[before].entry if before in log else None
    back = log[seq].entry if seq in log else None
    return (
        left is not None
        and back is not None
        and left.kind == "removed"
        and user in left.users
        and back.kind == "added"
        and user in back.users
    )
