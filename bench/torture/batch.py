"""Many runs on one cluster, and their summary."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import msgspec

from bench.torture.cluster import Options, TrialCluster
from bench.torture.run import Outcome, run
from bench.torture.scenarios import FAULTS

SOMETIMES: Final = {
    "takeover": ("kill", "pause"),
    "duplicate-answered": ("kill", "drop-all"),
    "kill-with-sends-in-flight": ("kill",),
    "unknown-transaction": ("lose-reply",),
}
"""What must have happened once in a batch that had one of these faults often enough."""

OFTEN: Final = 5
"""How often is often enough."""

UNKNOWN: Final = "transaction of unknown outcome"
"""What nodes log when they had to find out what became of a lightweight transaction."""


OUTCOMES: Final = "outcomes.jsonl"
"""Where what came of each run is written down, one JSON object a line."""


@dataclass(frozen=True)
class Summary:
    """What came of a batch.

    Attributes:
        seed: of the first run; the others count on from it.
        lease_s: the nodes' lease, seconds.
        runs: how many there were.
        faults: how often each fault was tried.
        counts: sums of what the histories hold.
        sometimes: sums of what makes runs worth anything.
        never: what should have happened, and did not.
        outage_max_s: the longest time that a conversation was away after a kill, seconds; 0 without a kill.
        return_max_s: the longest time until all conversations answered after the last fault was put right, seconds.
        broken: seed -> what was broken.
        excused: seed -> promised times that were not kept while this machine did not keep time either.
        seconds: how long the runs took together.
    """

    seed: int
    lease_s: float
    runs: int
    faults: dict[str, int]
    counts: dict[str, int]
    sometimes: dict[str, int]
    never: list[str]
    outage_max_s: float
    return_max_s: float
    broken: dict[int, list[str]]
    excused: dict[int, list[str]]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether something was tried, nothing was broken, and all happened that should have."""
        return bool(self.runs) and not self.broken and not self.never

    def as_dict(self) -> dict[str, object]:
        """The summary as JSON shows it."""
        return {"ok": self.ok, **asdict(self)}

    def as_text(self) -> str:
        """The summary for a person."""
        if not self.runs:
            return f"no run from seed {self.seed} was finished: nothing is proved"
        lines = [
            f"{self.runs} runs from seed {self.seed} in {self.seconds:.0f} s, lease {self.lease_s:g} s",
            "faults:    " + ", ".join(f"{count} {name}" for name, count in self.faults.items()),
            "seen:      " + ", ".join(f"{count} {name}" for name, count in self.counts.items()),
            "sometimes: " + ", ".join(f"{count} {name}" for name, count in self.sometimes.items()),
            f"longest:   {self.outage_max_s:.1f} s without an answer after a kill, "
            f"{self.return_max_s:.1f} s after all was well again",
        ]
        for seed, breaches in self.broken.items():
            lines += [f"seed {seed}: {breach}" for breach in breaches]
        for seed, times in self.excused.items():
            lines += [f"seed {seed}, not judged because this machine was too busy: {time}" for time in times]
        lines += [f"never happened: {name}; this batch proves less than it should" for name in self.never]
        lines.append("no promise was broken" if not self.broken else f"{len(self.broken)} runs broke a promise")
        return "\n".join(lines)


async def batch(
    options: Options, seed: int, runs: int, names: Sequence[str], directory: Path, say: Callable[[str], None],
    talk_s: float, outcomes: list[Outcome],
) -> None:  # fmt: skip
    """Start a cluster, do so many runs on it, and end it. Raises ServerFailed: something could not be started.

    What came of each run is added to ``outcomes``, and to a file in ``directory``, as soon as it is over.
    """
    cluster = TrialCluster(directory, options)
    say(f"starting {options.nodes} nodes, Redis" + (" and Cassandra" if cluster.cassandra is not None else ""))
    async with cluster.running():
        for number in range(seed, seed + runs):
            say(f"seed {number}")
            outcome = await run(cluster, number, names, directory, say, talk_s)
            outcomes.append(outcome)
            with (directory / OUTCOMES).open("ab") as file:
                file.write(msgspec.json.encode(outcome) + b"\n")
            say(_told(outcome))
            await cluster.mend()


def summary(options: Options, seed: int, outcomes: Sequence[Outcome]) -> Summary:
    """Add the runs up."""
    faults = Counter(name for outcome in outcomes for name in outcome.names)
    counts: Counter[str] = Counter()
    sometimes: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome.counts)
        sometimes.update(outcome.sometimes)
        sometimes["node-marked-dead"] += outcome.log.get("node marked dead", 0)
        sometimes["unknown-transaction"] += outcome.log.get(UNKNOWN, 0)
    never = [
        name
        for name, causes in SOMETIMES.items()
        if not sometimes[name] and sum(faults[cause] for cause in causes) >= OFTEN
    ]
    return Summary(
        seed, options.lease_s, len(outcomes), {name: faults[name] for name in FAULTS if faults[name]}, dict(counts),
        dict(sometimes), never,
        outage_max_s=max((away_s for outcome in outcomes for away_s in outcome.outages_s), default=0.0),
        return_max_s=max((outcome.return_s for outcome in outcomes), default=0.0),
        broken={outcome.seed: list(outcome.breaches) for outcome in outcomes if outcome.breaches},
        excused={outcome.seed: list(outcome.excused) for outcome in outcomes if outcome.excused},
        seconds=sum(outcome.seconds for outcome in outcomes),
    )  # fmt: skip


def _told(outcome: Outcome) -> str:
    return (
        f"  {outcome.counts['acknowledged']} messages acknowledged, {outcome.counts['deliveries']} handed on, "
        f"{outcome.sometimes['takeover']} takeovers, "
        + "".join(f"away for {away_s:.1f} s, " for away_s in outcome.outages_s)
        + f"answering {outcome.return_s:.1f} s after all was well, "
        f"{outcome.seconds:.0f} s: " + (f"{len(outcome.breaches)} breaches" if outcome.breaches else "no breach")
    )
