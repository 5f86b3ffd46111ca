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
    yield from _speakers(facts)


def _speakers(facts: Facts) -> Iterator[Breach]:
    """What the nodes themselves say: one speaks under an epoch, and nobody under an older one once it has begun.

    A node may be paused at any moment, so a commit that is recorded late proves nothing against its node; a speak does:
    its time is from before the node made sure that it may.
    """
    newest: dict[str, int] = {}
    speaker: dict[tuple[str, int], str] = {}
    for record in facts.records:
        if record.op not in ("commit", "speak") or record.epoch is None:
            continue
        conversation, epoch, process = record.conversation, record.epoch, record.process
        before = newest.get(conversation, epoch)
        newest[conversation] = max(before, epoch)
        if record.op == "commit":
            continue
        if epoch < before:
            what = f"{process} spoke under epoch {epoch} after epoch {before} began"
            yield Breach("split-brain", conversation, what)
        other = speaker.setdefault((conversation, epoch), process)
        if other != process:
            yield Breach("split-brain", conversation, f"{other} and {process} both spoke under epoch {epoch}")


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
