"""What happened at all: a green check of a run in which nothing went wrong proves little."""

from collections import Counter

from gateway.check.facts import Facts

NAMES = (
    "kill", "kill-with-sends-in-flight", "fault", "reconnect", "resume", "resume-with-news", "repeated-send",
    "duplicate-answered", "unknown-outcome", "refused-send", "concurrent-sends", "repeated-push", "takeover",
    "new-bucket", "member-removed",
)  # fmt: skip
"""Everything that is counted; ``tidegate check --sometimes NAME`` demands it."""


def sometimes(facts: Facts) -> dict[str, int]:
    """Counts by name, all names present."""
    counts: Counter[str] = Counter()
    _calls(facts, counts)
    _faults(facts, counts)
    _connections(facts, counts)
    for resume in facts.resumes:
        if resume.head_seq is not None:
            counts["resume"] += 1
            counts["resume-with-news"] += resume.head_seq > resume.cursor
    buckets = {(read.conversation, entry.bucket) for read in facts.reads for entry in read.entries if entry.bucket}
    counts["new-bucket"] = len(buckets)
    return {name: counts[name] for name in NAMES}


def _calls(facts: Facts, counts: Counter[str]) -> None:
    for attempt in facts.attempts:
        kind = attempt.end.type if attempt.end is not None else "info"
        counts["repeated-send"] += attempt.invoke.attempt > 1
        counts["unknown-outcome"] += kind == "info"
        counts["refused-send"] += kind == "fail"
        counts["duplicate-answered"] += attempt.end is not None and kind == "ok" and attempt.end.duplicate
    counts["member-removed"] = sum(attempt.invoke.op == "remove" for attempt in facts.attempts)


def _faults(facts: Facts, counts: Counter[str]) -> None:
    under_way: Counter[str] = Counter()
    invoked = {attempt.invoked: attempt for attempt in facts.attempts}
    epochs: dict[str, int] = {}
    for when, record in enumerate(facts.records):
        if when in invoked:
            conversation = invoked[when].conversation
            counts["concurrent-sends"] += under_way[conversation] > 0
            under_way[conversation] += 1
        elif when in facts.completed:
            under_way[facts.completed[when].conversation] -= 1
        elif record.op == "fault":
            counts["fault"] += 1
            if record.fault == "kill":
                counts["kill"] += 1
                counts["kill-with-sends-in-flight"] += any(count > 0 for count in under_way.values())
        if record.epoch is not None:
            counts["takeover"] += record.epoch > epochs.setdefault(record.conversation, record.epoch)
            epochs[record.conversation] = max(record.epoch, epochs[record.conversation])


def _connections(facts: Facts, counts: Counter[str]) -> None:
    came: set[str] = set()
    pushed: set[tuple[str, str, int]] = set()
    for record in facts.records:
        if record.op == "connect":
            counts["reconnect"] += record.process in came
            came.add(record.process)
        elif record.op == "push" and record.entry is not None:
            push = (record.connection, record.conversation, record.entry.seq)
            counts["repeated-push"] += push in pushed
            pushed.add(push)
