"""Tables and plots are made of results alone; the page in the tree shows those that are in the tree."""

from pathlib import Path
from typing import Any

import pytest

from bench.capacity import Costs, Demand, cost_table, machine_table, machines
from bench.machine import Busy, together
from bench.plots import PLOTS, RESULTS, draw_all, load_results
from bench.report import complete, save
from bench.tables import PAGES, README, filled

BUSY = {"node": Busy(1.0, 0.97, 0.5, 0.0, 0.0, 0.7)}

PEER = {
    "user_bytes_per_connection": 12_000.0,
    "connect_cpu_us": 200.0,
    "cpu_us": 15.0,
    "deliveries_per_s": 100_000.0,
    "deliveries_per_cpu_s": 110_000.0,
    "burst_deliveries_per_s": 120_000.0,
}

DELAYS = {"delivery_p50_ms": 5.0, "delivery_p99_ms": 9.0, "delivery_p999_ms": 12.0}

FIGURES: dict[str, dict[str, Any]] = {
    "crowd": {
        "connections": 200_000,
        "processes": 11,
        "held": 200_000,
        "user_bytes_per_connection": 250.0,
        "most_on_one_node": 18_300,
        "fewest_on_one_node": 18_000,
    },
    "density": {"connections": 10_000, "connect_ratio": 0.3, "second_wave_growth_bytes": 1.0, **PEER},
    "roundtrip": {"busy_connections": 200, "parked": 10_000, "ratio": 1.1, **PEER},
    "fanout": {"members": 1_000, "ratio": 1.7, "limit_ratio": 0.8, **PEER},
    "send": {
        "pairs": 500,
        "sends_per_s": 30_000.0,
        "bare_commits_per_s": 5e5,
        **DELAYS,
        "half_load": DELAYS,
        "fixed_load": {"7500": DELAYS},
    },
    "send_cassandra": {
        "pairs": 500,
        "sends_per_s": 9e3,
        "bare_inserts_per_s": 6e3,
        "ratio": 1.5,
        "statements_per_send": 1.1,
        "redis_commands_per_send": 0.0,
        **DELAYS,
        "half_load": DELAYS,
    },
    "send_cross": {
        "sends_per_s": 3e3,
        "hop_cpu_us": 20.0,
        "both_nodes_cpu_us": 200.0,
        "node_alone_cpu_us": 160.0,
        "redis_commands_per_send": 0.1,
        "alone_delivery_p99_ms": 20.0,
        **DELAYS,
    },
    "storm": {
        "clients": 20_000,
        "conversations_each": 20,
        "all_back_s": 20.0,
        "back_p50_s": 8.0,
        "back_p99_s": 19.0,
        "missed": 0,
        "store_reads_per_client": 1.1,
        "others_send_p50_ms": 20.0,
        "others_send_p99_ms": 90.0,
        "quiet_send_p50_ms": 5.0,
        "quiet_send_p99_ms": 15.0,
    },
    "takeover": {"takeover_s": 11.5, "first_answer_s": 10.5, "lease_s": 10.0, "orphaned_conversations": 1_000},
    "stall": {
        "connections": 19_000,
        "deliveries_per_s": 1e5,
        "connects_per_s": 300.0,
        "longest_stall_ms": 4.0,
        "heartbeat_max_ms": 9.0,
        "heartbeat_p99_ms": 3.0,
        "idle_heartbeat_max_ms": 2.0,
    },
}

WITHOUT_PEERS = {"crowd", "send", "send_cassandra", "send_cross", "takeover", "storm", "stall"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    directory = tmp_path / "results"
    for name, figures in FIGURES.items():
        peers = {} if name in WITHOUT_PEERS else {"websockets": PEER, "picows": PEER}
        save(complete(name, {**figures, "peers": peers, "busy": BUSY}), directory, name)
    return directory


def test_every_result_is_drawn(results: Path, tmp_path: Path) -> None:
    paths = draw_all(load_results(results), tmp_path / "plots")
    assert [path.stem for path in paths] == sorted(FIGURES)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_tables_are_filled_in_between_their_marks(results: Path) -> None:
    page = "before\n<!-- table: requirements -->\nstale row\n<!-- end -->\n<!-- table: busy -->\n<!-- end -->\nafter\n"
    text = filled(page, load_results(results))
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale row" not in text
    assert "| send | `half_load.delivery_p99_ms` |" in text
    assert "| send | node | 97% | 70% | 50% | 0% | 0% | 0% | server |" in text
    assert filled(text, load_results(results)) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_show_the_results_that_are_kept(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text, load_results(RESULTS)) == text, "python -m bench.tables makes the page anew"


def test_machines_are_what_costs_multiply_to() -> None:
    each = Costs(
        connection_bytes=5_000, connect=90, message=100, delivery=5, command=10, hop=10, statement=50, parcel=5
    )
    found = machines(Demand(connections=180_000, messages_per_s=1_000, deliveries_per_s=3_000), each)
    # 100 connects/s, 1,000 messages, 2,000 more deliveries, 3,000 receipts, 7,000 hops of two nodes: at half a core
    assert found.node_cores == pytest.approx(2 * (0.009 + 0.1 + 0.01 + 0.03 + 0.14))
    assert found.nodes == 2, "by connections"
    assert found.node_gb == pytest.approx(0.45)
    assert found.cassandra_statements_per_s == 3_000 + 6_000
    assert found.cassandra_cores == pytest.approx(9_000 * 3 * 50e-6 / 0.5)
    assert (found.redis_parcels_per_s, found.redis_cores) == (7_000, pytest.approx(0.07))


def test_twice_the_load_takes_twice_the_machines() -> None:
    each = Costs(
        connection_bytes=5_000, connect=90, message=100, delivery=5, command=10, hop=10, statement=50, parcel=5
    )
    one, two = (machines(Demand(500_000 * n, 10_000 * n, 50_000 * n), each) for n in (1, 2))
    assert two.node_cores == pytest.approx(2 * one.node_cores)
    assert two.cassandra_cores == pytest.approx(2 * one.cassandra_cores)
    assert two.redis_cores == pytest.approx(2 * one.redis_cores)


def test_the_machines_are_not_guessed_where_a_cost_is_not_measured(results: Path) -> None:
    some = {name: result for name, result in load_results(results).items() if name != "send_cross"}
    assert "not measured" in machine_table(some)
    assert "| not measured |" in cost_table(some)


def test_the_page_shows_every_plot_of_the_results_that_are_kept() -> None:
    page, results = README.read_text(encoding="utf-8"), load_results(RESULTS)
    assert {path.stem for path in PLOTS.glob("*.png")} == set(results), "python -m bench.plots draws them anew"
    assert all(f"(plots/{name}.png)" in page for name in results)


def test_windows_are_averaged_over_their_length() -> None:
    windows = [Busy(1.0, 1.0, 0.0, 0.0, 0.0, 0.8), Busy(3.0, 0.0, 1.0, 0.5, 0.0, 0.4)]
    assert together(windows) == Busy(
        wall_s=4.0, server=0.25, load=0.75, others=0.375, stolen=0.0, server_kernel=pytest.approx(0.5)
    )
