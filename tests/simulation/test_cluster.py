"""Real nodes in a simulated world: what users see stays right, whatever goes wrong."""

from tests.simulation.world import simulate

SEEDS = 20


def test_whatever_goes_wrong_no_promise_is_broken() -> None:
    happened: dict[str, int] = {}
    for seed in range(SEEDS):
        result = simulate(seed)
        assert result.report.ok, f"seed {seed}\n{result.report.as_text()}"
        for name, count in (*result.report.sometimes.items(), *result.counts.items()):
            happened[name] = happened.get(name, 0) + count
    for name in ("kill", "cut", "stall", "fenced", "gap", "unknown", "duplicate-answered", "resume-with-news"):
        assert happened.get(name), f"{name} never happened: {happened}"
