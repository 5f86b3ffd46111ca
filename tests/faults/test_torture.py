"""A handful of seeded runs on a real cluster, by the command that users have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.torture.run import plan
from bench.torture.scenarios import FAULTS
from deploy import redis
from deploy.cassandra import launcher

MISSING = launcher.what_is_missing() or redis.what_is_missing()

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

SEED = int(os.environ.get("TORTURE_SEED", "4"))
RUNS = 5
DEADLINE_S = 900


@pytest.mark.timeout(DEADLINE_S + 30)
def test_a_handful_of_seeds_breaks_no_promise(tmp_path: Path) -> None:
    print(f"TORTURE_SEED={SEED}")
    command = [sys.executable, "-m", "gateway.cli.main", "torture", "--seed", str(SEED), "--runs", str(RUNS), "--json"]
    command += ["--directory", str(tmp_path)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads(done.stdout)
    assert told["ok"]
    assert told["runs"] == RUNS
    planned = [name for seed in range(SEED, SEED + RUNS) for name in plan(seed, list(FAULTS))[0]]
    assert sum(told["faults"].values()) == len(planned)
    assert told["counts"]["acknowledged"] >= 50 * RUNS
    assert told["sometimes"]["fault"] >= len(planned)
    for seed in range(SEED, SEED + RUNS):
        assert f"seed {seed}\n" in done.stderr, "each run tells its seed"
