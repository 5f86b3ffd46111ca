"""I6, I7, I11: what a read must not lack.

A hole in a read has three names. If the missing entry shows up afterwards, it came late; if it had been seen before,
the read was stale; if nobody ever sees it, the numbers themselves have a gap.
"""

from collections.abc import Iterator
from itertools import pairwise

from gateway.check.facts import Facts, Logged, Read, Rising
from gateway.check.report import Breach

HOLES_TOLD_MAX = 20
"""Missing seqs of one read that are named; the breach is the same for thousands."""


def holes(facts: Facts) -> Iterator[Breach]:
    """I6, I7 and I11: seqs missing inside the range that a read claims to hold."""
    for read in facts.reads:
        for seq in _missing(read):
            yield from _hole(facts, read, seq)


def late_sends(facts: Facts) -> Iterator[Breach]:
    """I6: an entry that was first sent after somebody saw its seq, or a greater one (where I9 does not say it)."""
    for conversation, log in facts.log.items():
        for seq, logged in log.items():
            attempts = facts.by_key.get(logged.key)
            if not attempts:
                continue
            invoked = attempts[0].invoked
            acknowledged = facts.acknowledged.get(conversation)
            if acknowledged is not None and acknowledged.before(invoked) >= seq:
                continue
            if facts.seen[conversation].before(invoked) >= seq and logged.first > invoked:
                what = f"{logged.key[1]} of {logged.key[0]} was first sent after seq {seq} or a later one was seen"
                yield Breach("late-arrival", conversation, f"{what}, and stands at seq {seq}")


def stale_reads(facts: Facts) -> Iterator[Breach]:
    """I7: a head lower than the same user knew, and entries of one read out of order.

    What a final read lacks although it was acknowledged is a lost write and not told again here.
    """
    known = _known_heads(facts)
    for read in facts.reads:
        yield from _disorder(read)
        if read.final:
            expected = _expected_of_final(facts, read)
        else:
            rising = known.get((read.user, read.conversation))
            expected = rising.before(read.invoked) if rising is not None else 0
        if expected > read.head_seq:
            what = f"a read by {read.process} says that the head is {read.head_seq}; seq {expected} had been seen"
            yield Breach("stale-read", read.conversation, what)


def bucket_orders(facts: Facts) -> Iterator[Breach]:
    """I11: a seq is in one bucket, and buckets go up with seq, whichever reads together told it."""
    placed: dict[str, dict[int, int]] = {}
    for read in facts.reads:
        buckets = placed.setdefault(read.conversation, {})
        for entry in read.entries:
            if entry.bucket is not None and buckets.setdefault(entry.seq, entry.bucket) != entry.bucket:
                what = f"seq {entry.seq} is in bucket {buckets[entry.seq]} and in bucket {entry.bucket}"
                yield Breach("bucket-gap", read.conversation, what)
    for conversation, buckets in placed.items():
        for before, seq in pairwise(sorted(buckets)):
            if buckets[seq] < buckets[before]:
                what = f"seq {seq} is in bucket {buckets[seq]}, behind seq {before} in bucket {buckets[before]}"
                yield Breach("bucket-gap", conversation, what)


def _claimed(read: Read) -> tuple[int, int]:
    """First and last seq of what a read has to hold: a final one everything, whatever it says of its range."""
    return (1, read.head_seq) if read.final else (read.first_seq, read.last_seq)


def _missing(read: Read) -> Iterator[int]:
    told = 0
    place, last = _claimed(read)
    present = sorted({entry.seq for entry in read.entries if place <= entry.seq <= last})
    for upper in (*present, last + 1):
        for seq in range(max(place, 1), upper):
            if told == HOLES_TOLD_MAX:
                return
            told += 1
            yield seq
        place = upper + 1


def _hole(facts: Facts, read: Read, seq: int) -> Iterator[Breach]:
    logged = facts.log.get(read.conversation, {}).get(seq)
    first, last = _claimed(read)
    what = f"a read by {read.process} should hold {first} to {last}, and lacks {seq}"
    if logged is None:
        yield Breach("bucket-gap", read.conversation, f"{what}, which nobody ever saw")
    elif logged.last > read.ended:
        yield Breach("late-arrival", read.conversation, f"{what}, which came later")
    elif not (read.final and acknowledged_before(logged, read.invoked)):
        yield Breach("stale-read", read.conversation, f"{what}, which had been seen before")


def _expected_of_final(facts: Facts, read: Read) -> int:
    """The greatest seq that anybody saw before a final read, without those above its head that I1 speaks of."""
    rising = facts.seen.get(read.conversation)
    expected = rising.before(read.invoked) if rising is not None else 0
    log = facts.log.get(read.conversation, {})
    while expected > read.head_seq and expected in log and acknowledged_before(log[expected], read.invoked):
        expected -= 1
    return expected


def acknowledged_before(logged: Logged, when: int) -> bool:
    """Whether an entry was acknowledged by then."""
    return logged.acknowledged is not None and logged.acknowledged < when


def _disorder(read: Read) -> Iterator[Breach]:
    for one, other in pairwise(read.entries):
        if other.seq <= one.seq:
            yield Breach(
                "stale-read", read.conversation, f"a read by {read.process} has seq {other.seq} behind {one.seq}"
            )


def _known_heads(facts: Facts) -> dict[tuple[str, str], Rising]:
    """The greatest seq that each user knew of each conversation, as time went on."""
    known: dict[tuple[str, str], Rising] = {}
    reads = {read.ended: read for read in facts.reads}
    for when, record in enumerate(facts.records):
        if when in facts.completed:
            attempt = facts.completed[when]
            seq, user, conversation = attempt.acknowledged, attempt.invoke.user, attempt.conversation
        elif when in reads:
            read = reads[when]
            seq, user, conversation = read.head_seq, read.user, read.conversation
        elif record.entry is not None:
            seq, user, conversation = record.entry.seq, record.user, record.conversation
        else:
            continue
        if seq is not None and user:
            known.setdefault((user, conversation), Rising()).add(when, seq)
    return known
