"""The tables in the pages that show results: ``python -m bench.tables`` rewrites them in place."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.capacity import cost_table, growth_table, machine_table
from bench.plots import RESULTS, load_results
from bench.report import limited_by, number
from bench.requirements import judged

README = Path(__file__).parent / "README.md"
CAPACITY = Path(__file__).parents[1] / "docs" / "capacity.md"
PAGES = (README, CAPACITY)

_PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Results = Mapping[str, Mapping[str, Any]]


def requirements(results: Results) -> str:
    """Each requirement with its figure in each result; marked where other processes took part of the cores."""
    rows = []
    for name, result in results.items():
        for requirement, value, verdict in judged(result):
            sign = "≤" if requirement.at_most else "≥"
            bounds = f"{sign} {number(requirement.must)} | {sign} {number(requirement.aim)}"
            figure = f"**{number(value)}** {requirement.unit}{' (disturbed)' if result['disturbed'] else ''}"
            rows.append(
                f"| {name} | `{requirement.key}` | {requirement.meaning} | {bounds} | {figure} | {_reached(verdict)} |"
            )
    return "| result | key | what | must | aim | measured | reached |\n|---|---|---|---|---|---|---|\n" + "\n".join(
        rows
    )


def peers(results: Results) -> str:
    """Every figure of every peer, beside the node's."""
    rows = []
    for name, result in results.items():
        for peer, figures in result.get("peers", {}).items():
            rows += [
                f"| {name} | {peer} | `{key}` | {number(value)} | {number(result.get(key))} |"
                for key, value in figures.items()
            ]
    return _table("result | peer | key | peer's | node's", rows)


def busy(results: Results) -> str:
    """How busy everybody was in the last window of each figure."""
    rows = []
    for name, result in results.items():
        for server, shares in result["busy"].items():
            keys = ("server", "server_kernel", "load", "backend", "others", "stolen")
            cells = " | ".join(f"{shares.get(key, 0.0):.0%}" for key in keys)
            rows.append(f"| {name} | {server} | {cells} | {limited_by(shares)} |")
    head = "result | server | server's core | in the kernel | load's core | backend | others | stolen | limited by"
    return _table(head, rows)


def pictures(results: Results) -> str:
    """The plot of each result."""
    return "\n".join(f"![{name}](plots/{name}.png)" for name in results)


def filled(text: str, results: Results) -> str:
    """The page with each table between its marks made anew."""
    makers: dict[str, Callable[[Results], str]] = {
        "requirements": requirements,
        "peers": peers,
        "busy": busy,
        "pictures": pictures,
        "costs": cost_table,
        "machines": machine_table,
        "growth": lambda _results: growth_table(),
    }
    return _PLACE.sub(lambda match: f"{match[1]}{makers[match[2]](results)}\n{match[3]}", text)


def _table(head: str, rows: list[str]) -> str:
    line = "|---" * (head.count("|") + 1) + "|"
    return "\n".join([f"| {head} |", line, *rows])


def _reached(verdict: str) -> str:
    return {"aim": "aim", "must": "must"}.get(verdict, f"**{verdict}**")


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), load_results(RESULTS)), encoding="utf-8")
