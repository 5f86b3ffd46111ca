"""Each benchmark runs, small, against a real node and real peers: that it measures, not how fast things are.

Memory alone has a bound here, because it does not depend on what else the machine does.
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench import report
from bench.requirements import requirements_of
from deploy.cassandra.launcher import what_is_missing

pytestmark = pytest.mark.process

USER_BYTES_MAX = 512
"""Resident memory that a parked, authenticated connection may take of the node, bytes."""

SMALL: dict[str, dict[str, Any]] = {
    "roundtrip": {"parked": 200, "busy": 20, "seconds": 0.2, "repeats": 1},
    "fanout": {"members": 50, "deliveries_per_window": 2_000, "repeats": 1, "neighbour_s": 0.5},
    "send": {"pairs": 20, "window": 4, "seconds": 0.5, "repeats": 1},
    "crowd": {"connections": 600, "processes": 2},
    "stall": {"connections": 300, "members": 50, "seconds": 1.0},
}

SMALL_CLUSTER: dict[str, dict[str, Any]] = {
    "send_cassandra": {"pairs": 20, "window": 4, "seconds": 1.0, "repeats": 1, "warm_up_s": 0.0},
    "send_cross": {"pairs": 20, "window": 4, "seconds": 1.0, "repeats": 1, "warm_up_s": 0.0},
    "takeover": {"conversations": 40, "repeats": 1},
    "storm": {"clients": 200, "conversations": 5, "pairs": 5, "sends_per_s": 50},
}

STORM_READS_MAX = 2.0
"""Reads of Cassandra that may come to each client of a storm who missed nothing, however many conversations it has."""

IDLE_READS_PER_S = 6.0
"""What two nodes may read by the second besides, though nobody comes: leases and slots."""

NOTHING_AT_BEST = {"missed", "second_wave_growth_bytes", "redis_commands_per_send", "hop_cpu_us"}
"""Figures that may be none, and differences that a short run may find below that."""


def run_bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def test_parked_connections_stay_within_the_memory_budget(tmp_path: Path) -> None:
    done = run_bench("density", "--connections", "2000", "--repeats", "1", "--json", "--save", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 0 < result["user_bytes_per_connection"] <= USER_BYTES_MAX
    assert result["user_bytes_per_connection"] < result["peers"]["websockets"]["user_bytes_per_connection"]
    assert json.loads((tmp_path / "density-2000.json").read_text()) == result
    check_shape(result)


@pytest.mark.parametrize("name", SMALL)
def test_every_benchmark_measures(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"bench.{name}")
    result = report.complete(name, module.measure(module.Options(data_parent=tmp_path, **SMALL[name])))
    check_shape(json.loads(report.as_json(result)))
    assert list(tmp_path.iterdir()) == [], "the benchmark left its data behind"
    table = report.as_table(result)
    assert all(requirement.key in table for requirement in requirements_of(name))


@pytest.mark.slow
@pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())
@pytest.mark.parametrize("name", SMALL_CLUSTER)
def test_every_benchmark_of_a_cluster_measures(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"bench.{name}")
    result = report.complete(name, module.measure(module.Options(data_parent=tmp_path, **SMALL_CLUSTER[name])))
    check_shape(json.loads(report.as_json(result)))
    assert all(busy["backend"] > 0 for busy in result["busy"].values())
    if name == "storm":
        idle = IDLE_READS_PER_S * result["busy"]["nodes"]["wall_s"] / result["clients"]
        assert result["store_reads_per_client"] <= STORM_READS_MAX + idle
        assert result["missed"] == 0
    assert list(tmp_path.iterdir()) == [], "the benchmark left its data behind"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cross"], "--nodes 2 and --cross go together"),
        (["--nodes", "2"], "--nodes 2 and --cross go together"),
        (["--nodes", "2", "--cross", "--store", "embedded"], "several nodes need --store cassandra"),
    ],
)
def test_nodes_that_cannot_be_measured_together_are_refused(options: list[str], words: str) -> None:
    done = run_bench("send", *options)
    assert done.returncode == 2
    assert words in done.stderr


def check_shape(result: dict[str, Any]) -> None:
    """Every figure that is asked for is there, positive, and said to be measured under some load."""
    for requirement, value, verdict in report.judged(result):
        assert value is not None, requirement.key
        assert verdict in {"aim", "must", "miss"}
        assert value > 0 or requirement.key in NOTHING_AT_BEST
    assert result["missing" if "missing" in result else "disturbed"] is not None
    for busy in result["busy"].values():
        assert busy["wall_s"] > 0
        assert 0 < busy["server"] < 2
        assert 0 < busy["load"] < 2


def test_a_crowd_is_held_by_several_nodes_together() -> None:
    done = run_bench("density", "--processes", "2", "--connections", "501", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["held"], result["processes"]) == (501, 2)
    assert 0 < result["fewest_on_one_node"] < result["most_on_one_node"]


def test_a_crowd_that_does_not_fit_is_told_how_many_processes_it_takes() -> None:
    done = run_bench("density", "--processes", "2", "--connections", str(10**9))
    assert done.returncode == 1
    assert "1000000000 connections are 500000000 for each of 2 processes, which may hold" in done.stderr


def test_a_bench_that_is_ended_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway.cli.main", "bench", "stall", "--data-parent", str(tmp_path)]
    bench = psutil.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        started: list[psutil.Process] = []
        while len(started) < 2:  # a node and a load generator; the test's own timeout bounds this
            assert bench.poll() is None, bench.stderr.read()
            started = bench.children(recursive=True)
        bench.terminate()
        bench.wait(60)
        assert psutil.wait_procs(started, timeout=60)[1] == []
        assert list(tmp_path.iterdir()) == []
    finally:
        for process in (bench, *started):
            if process.is_running():
                process.kill()
        bench.stderr.close()


def test_a_bench_that_cannot_be_run_says_so_in_one_line(tmp_path: Path) -> None:
    done = run_bench("stall", "--connections", "10", "--members", "1000")
    assert done.returncode == 1
    assert done.stderr == "tidegate: bench stall: too few connections for so many members," + (
        " or too many entries for one conversation\n"
    )
