"""What a check found: breaches by invariant, counts, and what happened at all."""

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct

SHOWN_MAX = 10
"""Breaches of one invariant that a text report shows in full; it says how many more there are."""


class Invariant(Struct, frozen=True):
    """A promise, and the name of its breach."""

    number: str
    breach: str
    meaning: str


INVARIANTS = (
    Invariant("I1", "lost-write", "every acknowledged entry is in the final full read"),
    Invariant("I2", "duplicate", "a client_msg_id has exactly one conversation and seq"),
    Invariant("I3", "inconsistent", "a seq has one content in every acknowledgement, push and read"),
    Invariant("I4", "nonmonotonic-send", "acknowledgements of one sender come in seq order"),
    Invariant("I5", "poll-skip", "pushes run on without a skip, also across a resume, and repeat nothing"),
    Invariant("I6", "late-arrival", "behind a seq that somebody saw, no new entry appears"),
    Invariant("I7", "stale-read", "reads never go back, and senders read what was acknowledged to them"),
    Invariant("I8", "phantom", "a send refused for good, or never made, is never visible"),
    Invariant("I9", "realtime", "what was sent after an acknowledgement has a greater seq"),
    Invariant("I10", "split-brain", "nothing of an epoch is acknowledged once a newer one has begun"),
    Invariant("I11", "bucket-gap", "seqs run on without a hole, across buckets too"),
    Invariant("I12", "leak", "after a quiet time readers have everything and resources are back"),
    Invariant("I13", "leak-to-outsider", "who is not a member receives nothing"),
)

_NUMBERS = {invariant.breach: invariant.number for invariant in INVARIANTS}


class Breach(Struct, frozen=True):
    """One broken promise: its name, where, and in words what was seen."""

    name: str
    conversation: str
    what: str


class Report(Struct, frozen=True):
    """The result of a check.

    Attributes:
        breaches: every one found, in the order of the invariants.
        counts: how much of what the history holds: records, acknowledged, pushes, reads, …
        judged: by breach name, how many things were looked at; 0 means that the history cannot tell.
        sometimes: how often what makes a run worth anything happened: kills, repeated sends, …
    """

    breaches: tuple[Breach, ...]
    counts: dict[str, int]
    judged: dict[str, int]
    sometimes: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether no promise was broken."""
        return not self.breaches

    def names(self) -> set[str]:
        """Names of the breaches found."""
        return {breach.name for breach in self.breaches}

    def as_dict(self) -> dict[str, object]:
        """The report as JSON shows it."""
        found = Counter(breach.name for breach in self.breaches)
        return {
            "ok": self.ok,
            "invariants": [
                {
                    "number": invariant.number,
                    "breach": invariant.breach,
                    "verdict": self._verdict(found[invariant.breach], invariant.breach),
                    "judged": self.judged.get(invariant.breach, 0),
                    "breaches": found[invariant.breach],
                }
                for invariant in INVARIANTS
            ],
            "breaches": [
                {"number": _NUMBERS[b.name], "name": b.name, "conversation": b.conversation, "what": b.what}
                for b in self.breaches
            ],
            "counts": self.counts,
            "sometimes": self.sometimes,
        }

    def as_text(self) -> str:
        """The report for a person."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterable[str]:
        found = Counter(breach.name for breach in self.breaches)
        for invariant in INVARIANTS:
            verdict = self._verdict(found[invariant.breach], invariant.breach)
            judged = self.judged.get(invariant.breach, 0)
            yield f"{invariant.number:>4} {invariant.breach:<18}{verdict:<9}{judged:>9}  {invariant.meaning}"
            own = [breach for breach in self.breaches if breach.name == invariant.breach]
            for breach in own[:SHOWN_MAX]:
                where = f"{breach.conversation}: " if breach.conversation else ""
                yield f"         {where}{breach.what}"
            if len(own) > SHOWN_MAX:
                yield f"         … and {len(own) - SHOWN_MAX} more"
        yield "seen:      " + ", ".join(f"{count} {name}" for name, count in self.counts.items())
        yield "sometimes: " + ", ".join(f"{count} {name}" for name, count in self.sometimes.items())
        yield "no promise was broken" if self.ok else f"{len(self.breaches)} breaches: {', '.join(found)}"

    def _verdict(self, breaches: int, name: str) -> str:
        if breaches:
            return "BROKEN"
        return "holds" if self.judged.get(name) else "unjudged"
