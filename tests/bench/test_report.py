"""Results: judged by one table, and honest about what limited them."""

from typing import Any

import pytest

from bench.machine import Busy
from bench.report import as_table, complete, limited_by, number
from bench.requirements import REQUIREMENTS, figure, judged

FIGURES: dict[str, Any] = {
    "sends_per_s": 20_000.0,
    "half_load": {"delivery_p99_ms": 60.0},
    "fixed_load": {"7500": {"delivery_p99_ms": 9.0}},
    "busy": {"node": Busy(2.0, 0.99, 0.4, 0.3, 0.0, 0.6)},
    "missing": ["picows_uvloop: not installed: picows"],
}


def test_each_figure_is_held_to_must_and_aim() -> None:
    result = complete("send", FIGURES)
    assert [(requirement.key, value, verdict) for requirement, value, verdict in judged(result)] == [
        ("sends_per_s", 20_000.0, "must"),
        ("half_load.delivery_p99_ms", 60.0, "miss"),
        ("fixed_load.7500.delivery_p99_ms", 9.0, "aim"),
        ("fixed_load.15000.delivery_p99_ms", None, "not measured"),
    ]


def test_a_bound_itself_is_kept() -> None:
    for requirement in REQUIREMENTS:
        assert requirement.verdict(requirement.must) == ("aim" if requirement.must == requirement.aim else "must")
        assert requirement.verdict(requirement.aim) == "aim"


def test_what_was_not_measured_is_no_figure() -> None:
    result = complete("roundtrip", {"ratio": None, "busy": {}})
    assert [(value, verdict) for _requirement, value, verdict in judged(result)] == [(None, "not measured")]
    assert figure({"a": {"b": 1.0}}, "a.b") == 1.0
    assert figure({"a": 2.0}, "a.b") is None


def test_a_disturbed_result_and_a_missing_peer_are_named() -> None:
    result = complete("send", FIGURES)
    assert result["disturbed"] == ["node"]
    table = as_table(result)
    assert "disturbed by other processes: node; repeat on a quiet machine" in table
    assert "left out: picows_uvloop: not installed: picows" in table


@pytest.mark.parametrize(
    ("server", "load", "expected"),
    [(1.0, 0.5, "server"), (0.5, 1.0, "load"), (0.99, 0.99, "server and load"), (0.6, 0.6, "neither (waiting)")],
)
def test_what_limits_a_figure_is_told_by_who_was_busy(server: float, load: float, expected: str) -> None:
    assert limited_by({"server": server, "load": load}) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "-"), (12_345.6, "12,346"), (7, "7"), (0.123456, "0.1235"), (999.96, "1000")]
)
def test_figures_have_four_digits(value: float | None, expected: str) -> None:
    assert number(value) == expected
