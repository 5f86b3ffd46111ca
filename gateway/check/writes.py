"""I1, I2, I3, I8: what became of each entry that somebody sent."""

from collections.abc import Iterator

from gateway.check.facts import Attempt, Facts, Key
from gateway.check.history import APPENDING, SeenEntry
from gateway.check.report import Breach


def lost_writes(facts: Facts) -> Iterator[Breach]:
    """I1: acknowledged before a final read began, and not in it. One breach per entry, however many reads miss it."""
    acknowledged: dict[str, list[Attempt]] = {}
    for attempt in facts.attempts:
        if attempt.acknowledged is not None:
            acknowledged.setdefault(attempt.conversation, []).append(attempt)
    told: set[Key] = set()
    for read in facts.final_reads():
        present = {(entry.sender, entry.client_msg_id) for entry in read.entries}
        for attempt in acknowledged.get(read.conversation, ()):
            assert attempt.ended is not None
            if attempt.ended < read.invoked and attempt.key not in present and attempt.key not in told:
                told.add(attempt.key)
                what = f"{_name(attempt.key)} was acknowledged as seq {attempt.acknowledged}"
                yield Breach("lost-write", read.conversation, f"{what}; the final read by {read.process} lacks it")


def duplicates(facts: Facts) -> Iterator[Breach]:
    """I2: one client_msg_id in two places."""
    places: dict[Key, tuple[str, int]] = {}
    told: set[tuple[Key, str, int]] = set()
    for key, conversation, seq in _placed(facts):
        first = places.setdefault(key, (conversation, seq))
        if first != (conversation, seq) and (key, conversation, seq) not in told:
            told.add((key, conversation, seq))
            where = f"seq {first[1]}" if first[0] == conversation else f"seq {first[1]} of {first[0]}"
            yield Breach("duplicate", conversation, f"{_name(key)} is at {where} and at seq {seq}")


def inconsistencies(facts: Facts) -> Iterator[Breach]:
    """I3: one seq with two contents."""
    known: dict[tuple[str, int], SeenEntry] = {}
    told: set[tuple[str, int]] = set()
    for conversation, entry in _contents(facts):
        place = (conversation, entry.seq)
        first = known.setdefault(place, entry)
        if first is not entry and place not in told and not _same(first, entry):
            told.add(place)
            yield Breach(
                "inconsistent", conversation, f"seq {entry.seq} is {_describe(first)} and also {_describe(entry)}"
            )


def phantoms(facts: Facts) -> Iterator[Breach]:
    """I8: visible, although nobody sent it, or before it was sent, or although every attempt was refused for good."""
    told: set[Key] = set()
    for sight in facts.sights():
        key = (sight.entry.sender, sight.entry.client_msg_id)
        if key in told:
            continue
        reason = _why_phantom(facts.by_key.get(key, []), sight.when)
        if reason:
            told.add(key)
            yield Breach("phantom", sight.conversation, f"{_name(key)} is visible at seq {sight.entry.seq}, {reason}")


def _why_phantom(attempts: list[Attempt], when: int) -> str:
    if not attempts:
        return "and nobody sent it"
    if attempts[0].invoked > when:
        return "before it was sent"
    if all(attempt.end is not None and attempt.end.type == "fail" for attempt in attempts):
        end = attempts[-1].end
        assert end is not None
        return f"although it was refused for good ({end.error or 'no error named'})"
    return ""


def _placed(facts: Facts) -> Iterator[tuple[Key, str, int]]:
    for attempt in facts.attempts:
        if attempt.acknowledged is not None:
            yield attempt.key, attempt.conversation, attempt.acknowledged
    for sight in facts.sights():
        yield (sight.entry.sender, sight.entry.client_msg_id), sight.conversation, sight.entry.seq


def _contents(facts: Facts) -> Iterator[tuple[str, SeenEntry]]:
    for attempt in facts.attempts:
        if attempt.acknowledged:
            invoke = attempt.invoke
            kind = APPENDING[invoke.op]
            user, client_msg_id = attempt.key
            yield (
                attempt.conversation,
                SeenEntry(attempt.acknowledged, user, client_msg_id, invoke.payload, kind),
            )
    for sight in facts.sights():
        yield sight.conversation, sight.entry


def _same(one: SeenEntry, other: SeenEntry) -> bool:
    return (
        (one.sender, one.client_msg_id, one.kind) == (other.sender, other.client_msg_id, other.kind)
        and (one.payload == other.payload or not one.payload or not other.payload)
        and (one.users == other.users or not one.users or not other.users)
    )


def _describe(entry: SeenEntry) -> str:
    return f"{entry.kind} {entry.client_msg_id} of {entry.sender} (payload {entry.payload or 'not told'})"


def _name(key: Key) -> str:
    return f"{key[1]} of {key[0]}"
