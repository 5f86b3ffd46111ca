"""The check itself: every invariant of one history, in time that grows with its length (and its logarithm)."""

from collections.abc import Sequence

from gateway.check import members, order, ownership, quiet, reads, writes
from gateway.check.facts import Facts
from gateway.check.history import Record
from gateway.check.report import INVARIANTS, Breach, Report
from gateway.check.sometimes import sometimes


def check(records: Sequence[Record]) -> Report:
    """Judge a history, its records in the order of time as ``history.parse`` gives them."""
    facts = Facts(records)
    who = members.Members(facts)
    found: list[Breach] = [
        *writes.lost_writes(facts),
        *writes.duplicates(facts),
        *writes.inconsistencies(facts),
        *writes.phantoms(facts),
        *order.ack_orders(facts),
        *order.pushes(facts),
        *order.deliveries(facts),
        *order.realtime(facts),
        *reads.holes(facts),
        *reads.late_sends(facts),
        *reads.stale_reads(facts),
        *reads.bucket_orders(facts),
        *ownership.split_brains(facts),
        *quiet.undelivered(facts, who),
        *quiet.unreturned(facts),
        *members.outsiders(facts, who),
    ]
    rank = {invariant.breach: place for place, invariant in enumerate(INVARIANTS)}
    found.sort(key=lambda breach: rank[breach.name])
    return Report(tuple(found), _counts(facts), _judged(facts, who), sometimes(facts))


def _counts(facts: Facts) -> dict[str, int]:
    ops = [record.op for record in facts.records]
    return {
        "records": len(ops),
        "conversations": len(facts.log),
        "entries": sum(len(log) for log in facts.log.values()),
        "sends": len(facts.attempts),
        "acknowledged": sum(attempt.acknowledged is not None for attempt in facts.attempts),
        "pushes": ops.count("push"),
        "deliveries": ops.count("deliver"),
        "reads": len(facts.reads),
        "connections": ops.count("connect"),
    }


def _judged(facts: Facts, who: members.Members) -> dict[str, int]:
    """How many things each invariant looked at."""
    finals = {read.conversation for read in facts.final_reads()}
    acknowledged = [attempt for attempt in facts.attempts if attempt.acknowledged is not None]
    entries = sum(len(log) for log in facts.log.values())
    received = [record for record in facts.records if record.entry is not None]
    ops = [record.op for record in facts.records]
    return {
        "lost-write": sum(attempt.conversation in finals for attempt in acknowledged),
        "duplicate": len(facts.by_key),
        "inconsistent": entries,
        "nonmonotonic-send": sum(bool(attempt.connection) for attempt in acknowledged),
        "poll-skip": len(received) + len(facts.resumes),
        "late-arrival": entries,
        "stale-read": len(facts.reads),
        "phantom": sum(1 for _ in facts.sights()),
        "realtime": entries,
        "split-brain": sum(record.epoch is not None for record in facts.records),
        "bucket-gap": len(facts.reads),
        "leak": ops.count("quiet") + sum(1 for _ in quiet.compared(facts)),
        "leak-to-outsider": sum(who.known(record.conversation) for record in received)
        + sum(who.known(read.conversation) for read in facts.reads)
        + sum(who.known(attempt.conversation) for attempt in acknowledged),
    }
