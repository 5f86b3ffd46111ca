"""How runs are added up."""

from bench.torture.batch import OFTEN, summary
from bench.torture.cluster import Options
from bench.torture.run import Outcome


def outcome(seed: int, name: str, **fields: object) -> Outcome:
    usual = {
        "names": (name,), "faults": (), "breaches": (), "excused": (), "counts": {"acknowledged": 10, "deliveries": 30},
        "sometimes": {"takeover": 0}, "log": {}, "outages_s": (), "return_s": 0.5, "seconds": 5.0,
    }  # fmt: skip
    return Outcome(seed, **(usual | fields))  # type: ignore[arg-type]


def test_runs_are_added_up() -> None:
    outcomes = [
        outcome(3, "kill", outages_s=(2.0, 4.5), sometimes={"takeover": 2}),
        outcome(4, "drain", return_s=1.5, log={"transaction of unknown outcome": 3}),
    ]
    found = summary(Options(), 3, outcomes)
    assert found.ok
    assert (found.runs, found.faults) == (2, {"kill": 1, "drain": 1})
    assert found.counts == {"acknowledged": 20, "deliveries": 60}
    assert (found.sometimes["takeover"], found.sometimes["unknown-transaction"]) == (2, 3)
    assert (found.outage_max_s, found.return_max_s) == (4.5, 1.5)
    assert "no promise was broken" in found.as_text()


def test_a_broken_run_is_told_with_its_seed() -> None:
    found = summary(Options(), 0, [outcome(0, "kill"), outcome(1, "kill", breaches=("lost-write: seq 7",))])
    assert not found.ok
    assert found.broken == {1: ["lost-write: seq 7"]}
    assert "seed 1: lost-write: seq 7" in found.as_text()


def test_a_batch_in_which_nothing_happened_is_not_good() -> None:
    kills = [outcome(seed, "kill") for seed in range(OFTEN)]
    found = summary(Options(), 0, kills)
    assert found.never == ["takeover", "duplicate-answered", "kill-with-sends-in-flight"]
    assert not found.ok
    assert summary(Options(), 0, kills[1:]).ok, "too few kills to demand anything"


def test_no_run_at_all_proves_nothing() -> None:
    found = summary(Options(), 7, [])
    assert not found.ok
    assert found.as_text() == "no run from seed 7 was finished: nothing is proved"
