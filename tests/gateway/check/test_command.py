"""``tidegate check`` as a user meets it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.check.history import encode
from gateway.check.report import INVARIANTS
from gateway.cli.check import command
from tests.gateway.check.histories import Builder, created, message
from tests.gateway.check.simulator import Simulation


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return _write(tmp_path / "good.jsonl", Simulation().run([(0, 0), (1, 1), (3, 2)]))


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    history = Builder()
    history.create("alice", "bob")
    for number in range(12):
        history.send("alice", f"m{number}", number + 2)
    history.read("bob", created("alice", "bob"), final=True)
    history.push("bob", message(2, "alice", "m1"))
    return _write(tmp_path / "bad.jsonl", history.records)


def _write(path: Path, records: list) -> Path:
    path.write_bytes(b"".join(encode(record) for record in records))
    return path


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_a_good_history_passes(good: Path) -> None:
    result = _run(good)
    assert result.exit_code == 0
    assert "no promise was broken" in result.output
    assert "1 duplicate-answered" in result.output


def test_a_bad_history_names_its_breaches_and_shortens_long_lists(bad: Path) -> None:
    result = _run(bad)
    assert result.exit_code == 1
    assert "m0 of alice was acknowledged as seq 2" in result.output
    assert "… and 2 more" in result.output
    assert "lost-write" in result.output.splitlines()[-1]


def test_json_holds_everything(good: Path, bad: Path) -> None:
    report = json.loads(_run(good, "--json").output)
    assert report["ok"]
    assert [item["breach"] for item in report["invariants"]] == [invariant.breach for invariant in INVARIANTS]
    verdicts = {item["breach"]: item["verdict"] for item in report["invariants"]}
    assert verdicts["lost-write"] == "holds"
    assert verdicts["split-brain"] == "unjudged"
    assert report["sometimes"]["reconnect"] == 2
    result = _run(bad, "--json")
    assert result.exit_code == 1
    report = json.loads(result.output)
    assert sum(breach["name"] == "lost-write" for breach in report["breaches"]) == 12
    assert {item["breach"]: item["breaches"] for item in report["invariants"]}["lost-write"] == 12


def test_what_must_have_happened_can_be_demanded(good: Path) -> None:
    assert _run(good, "--sometimes", "reconnect").exit_code == 0
    result = _run(good, "--sometimes", "reconnect", "--sometimes", "kill")
    assert result.exit_code == 1
    assert "never happened: kill" in result.output
    result = _run(good, "--sometimes", "miracle")
    assert result.exit_code == 2
    assert "miracle" in result.output
    assert "kill-with-sends-in-flight" in result.output


def test_what_is_no_history_is_said_in_one_line_with_its_number(good: Path, tmp_path: Path) -> None:
    with good.open("ab") as file:
        file.write(b"that was all\n")
    lines = good.read_bytes().count(b"\n")
    result = _run(good)
    assert result.exit_code == 2
    assert f"line {lines}: not a record" in result.output
    result = _run(tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "No such file" in result.output
    assert _run(tmp_path).exit_code == 2
