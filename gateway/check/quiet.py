"""I12: after a quiet time everybody has everything, and what a node took for it is given back."""

from collections.abc import Iterator

from gateway.check.facts import Attempt, Facts
from gateway.check.members import Members
from gateway.check.report import Breach


def undelivered(facts: Facts, members: Members) -> Iterator[Breach]:
    """I12: acknowledged before a quiet record, sent while a member was connected, and never arrived there."""
    opened: dict[str, tuple[int, str]] = {}
    fresh: dict[str, list[Attempt]] = {}
    for when, record in enumerate(facts.records):
        if record.op == "connect":
            opened[record.connection] = (when, record.user)
        elif record.op == "disconnect":
            opened.pop(record.connection, None)
        elif when in facts.completed:
            attempt = facts.completed[when]
            if attempt.acknowledged is not None:
                fresh.setdefault(attempt.conversation, []).append(attempt)
        elif record.op == "quiet":
            for connection, (since, user) in opened.items():
                for conversation in members.conversations(user):
                    wanted = fresh.get(conversation, [])
                    yield from _missing(facts, members, connection, user, conversation, since, when, wanted)
            fresh = {}


def unreturned(facts: Facts) -> Iterator[Breach]:
    """I12: a resource of a node that is above what it was before."""
    before: dict[str, dict[str, float]] = {}
    for record in facts.records:
        if record.op != "resources" or record.resources is None:
            continue
        if record.phase == "before":
            before[record.process] = record.resources
            continue
        for name, value in record.resources.items():
            was = before.get(record.process, {}).get(name)
            if was is not None and value > was:
                yield Breach("leak", "", f"{record.process} has {value:g} {name}; allowed are {was:g}")


def _missing(
    facts: Facts,
    members: Members,
    connection: str,
    user: str,
    conversation: str,
    since: int,
    quiet: int,
    wanted: list[Attempt],
) -> Iterator[Breach]:
    seen = facts.seen_on(connection, conversation)
    for attempt in wanted:
        seq = attempt.acknowledged
        assert seq is not None
        first = facts.by_key[attempt.key][0].invoked
        if first < since or seen.get(seq, quiet) < quiet or not members.at(conversation, user, seq):
            continue
        if not facts.sent_by(attempt.key, connection=connection):
            yield Breach("leak", conversation, f"connection {connection} of {user} never got seq {seq}")
