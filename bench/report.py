"""Results as one JSON object, as a readable table, and as files that plots are made of."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from bench.machine import describe
from bench.requirements import judged

OTHERS_MAX = 0.1
"""Shares of a core that other processes may take before a result says that it was disturbed."""

_BUSY_FROM = 0.95
"""Share of its core from which a process counts as what limits a figure."""


def complete(bench: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """A result: the figures with what, when and where; plain values only."""
    result: dict[str, Any] = msgspec.to_builtins(
        {
            "bench": bench,
            "tidegate": version("tidegate"),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": describe(),
            **figures,
        }
    )
    result["disturbed"] = sorted(name for name, busy in result["busy"].items() if busy["others"] > OTHERS_MAX)
    return result


def as_json(result: Mapping[str, Any]) -> str:
    """One line."""
    return msgspec.json.encode(result).decode()


def save(result: Mapping[str, Any], directory: Path, name: str) -> Path:
    """Write a result for people and plots to read; returns where."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    return path


def as_table(result: Mapping[str, Any]) -> str:
    """The result for a terminal."""
    lines = [f"{result['bench']} on {result['machine']['processor']}, {result['machine']['cores']} cores"]
    lines += ["", *_rows([("figure", "value", "must", "aim", "reached"), *_judgement(result)])]
    loads = {"half load": result.get("half_load", {})}
    loads |= {f"{rate} a second": figures for rate, figures in result.get("fixed_load", {}).items()}
    groups = {"all figures": result, **loads, **result.get("peers", {})}
    for name, group in groups.items():
        figures = [(key, number(value)) for key, value in group.items() if isinstance(value, int | float)]
        if figures:
            lines += ["", *_rows([(str(name), ""), *figures])]
    lines += ["", *_rows([("busy", "server", "in kernel", "load", "backend", "others", "limited by"), *_busy(result)])]
    lines += ["", *(f"left out: {text}" for text in result.get("missing", ()))]
    if result["disturbed"]:
        lines.append(f"disturbed by other processes: {', '.join(result['disturbed'])}; repeat on a quiet machine")
    return "\n".join(lines).rstrip()


def number(value: float | None) -> str:
    """A figure with about four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def limited_by(busy: Mapping[str, float]) -> str:
    """Which process used up its core: a figure is the server's only where that is the server."""
    if busy.get("backend", 0.0):  # which has no core of its own
        total = sum(busy[key] for key in ("server", "load", "others", "backend"))
        return "both cores" if total >= 2 * _BUSY_FROM else "neither (waiting)"
    server, load = busy["server"] >= _BUSY_FROM, busy["load"] >= _BUSY_FROM
    if server and load:
        return "server and load"
    if server or load:
        return "server" if server else "load"
    return "neither (waiting)"


def _judgement(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for requirement, value, verdict in judged(result):
        sign = "<=" if requirement.at_most else ">="
        bounds = (f"{sign} {number(requirement.must)}", f"{sign} {number(requirement.aim)}")
        rows.append((requirement.key, f"{number(value)} {requirement.unit}", *bounds, verdict))
    return rows


def _busy(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    keys = ("server", "server_kernel", "load", "backend", "others")
    return [
        (name, *(f"{shares.get(key, 0.0):.0%}" for key in keys), limited_by(shares))
        for name, shares in result["busy"].items()
    ]


def _rows(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest cell, the first to the left and the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
