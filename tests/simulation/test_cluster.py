"""Real nodes in a simulated world: what users see stays right, whatever goes wrong.

``SEED=17 pytest tests/simulation`` runs one seed, ``NIGHTLY=1`` two thousand. ``python -m tests.simulation.run`` does
the same without pytest, and can write down what the devices of a run saw.
"""

import os
import re
import subprocess
import sys

import pytest

from tests.model.nightly import NIGHTLY
from tests.simulation.mutations import Mutation

SEEDS = os.environ.get("SEED") or ("0-1999" if NIGHTLY else "0-99")
HAPPENS = (
    "kill-with-sends-in-flight", "pause", "drain", "cut", "slow", "chase", "fenced", "gap", "lossy", "trim", "flush",
    "restart", "outage", "without_redis", "lonely", "direct", "new generation", "move", "vanish", "unknown",
    "late", "late_heirs", "storm", "channel", "group",
    "repeated-send", "duplicate-answered", "resume-with-news", "member-removed",
    "synced", "filled in", "sync refused", "gave up",
)  # fmt: skip
"""What has to happen in some of the runs."""

FOUND_WITHIN = 200
"""Seeds within which each mutation is found; usually it is one of the first forty."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation.run", *arguments], capture_output=True, text=True, check=False
    )  # fmt: skip
    print(done.stdout, done.stderr)
    return done


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600 if NIGHTLY else 900)
def test_whatever_goes_wrong_no_promise_is_broken() -> None:
    done = run("--seeds", SEEDS)
    assert done.returncode == 0
    if "-" in SEEDS:
        happened = {name: int(count) for count, name in re.findall(r"(\d+) ([a-z_ -]+)", done.stdout)}
        missing = [name for name in HAPPENS if not happened.get(name)]
        assert not missing, "never happened"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutation", Mutation)
def test_a_seed_finds_what_is_left_out(mutation: Mutation) -> None:
    done = run("--seeds", f"0-{FOUND_WITHIN - 1}", "--without", mutation.name, "--until-found")
    assert done.returncode == 0, f"no seed finds: {mutation.value}"
    assert "TypeError" not in done.stdout, "the switch does not fit what it stands in for"


def test_a_seed_gives_the_same_run_again() -> None:
    one, other = (run("--seeds", "3").stdout for _ in range(2))
    (digest,) = re.findall(r"digest (-?\d+)", one)
    assert f"digest {digest}" in other
