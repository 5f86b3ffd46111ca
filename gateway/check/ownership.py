"""I10: one owner at a time. Judged only where the records carry epochs."""

from collections.abc import Iterator

from gateway.check.facts import Facts, Rising
from gateway.check.report import Breach


def split_brains(facts: Facts) -> Iterator[Breach]:
    """I10: an acknowledgement of an old epoch for what was sent once a newer one had begun, or behind a newer one."""
    begun: dict[str, Rising] = {}
    for when, record in enumerate(facts.records):
        attempt = facts.completed.get(when)
        if record.type == "ok" and record.epoch is not None:
            conversation = attempt.conversation if attempt is not None else record.conversation
            begun.setdefault(conversation, Rising()).add(when, record.epoch)
    for when in sorted(facts.completed):
        attempt = facts.completed[when]
        end = attempt.end
        if end is None or end.epoch is None or attempt.acknowledged is None or end.duplicate:
            continue
        newest = begun[attempt.conversation].before(attempt.invoked)
        if newest > end.epoch:
            what = f"seq {attempt.acknowledged} was sent after epoch {newest} began and acknowledged in {end.epoch}"
            yield Breach("split-brain", attempt.conversation, what)
    yield from _epochs_in_log(facts)


def _epochs_in_log(facts: Facts) -> Iterator[Breach]:
    for conversation, log in facts.log.items():
        newest = 0
        for seq in sorted(log):
            entry = log[seq].entry
            if entry is None or entry.epoch is None:
                continue
            if entry.epoch < newest:
                what = f"seq {seq} is of epoch {entry.epoch}, behind an entry of epoch {newest}"
                yield Breach("split-brain", conversation, what)
            newest = max(newest, entry.epoch)
