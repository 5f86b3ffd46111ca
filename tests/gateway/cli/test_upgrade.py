"""What ``tidegate upgrade`` says of the outcome; nodes and supervisors answer in tests/process."""

import pytest
from click.testing import CliRunner

from gateway.cli import upgrade
from gateway.cli.errors import FAILURE, UNAVAILABLE
from gateway.upgrade.control import Refused, Several, Succeeded

DONE = Succeeded(101, 7, 12.3, 3.0)


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        (DONE, 0, ["process 101 has taken over 7 connections from process 5; they waited 12 ms"]),
        (
            Several({"n-1": DONE}),
            0,
            [
                "process 5, which supervises 1 nodes, goes on in the new program",
                "n-1: process 101 has taken over 7 connections from its predecessor; they waited 12 ms",
            ],
        ),
        (
            Several({"n-1": DONE, "n-2": Refused("the node drains"), "n-3": Refused("it drains")}),
            FAILURE,
            ["n-2: not upgraded: the node drains", "not upgraded: n-2, n-3; put that right"],
        ),
    ],
)
def test_the_outcome_is_said_node_by_node(outcome, code, said, monkeypatch):
    monkeypatch.setattr(upgrade, "ask", lambda _pid, _tell, _timeout_s: outcome)
    result = CliRunner().invoke(upgrade.command, ["--pid", "5"])
    assert result.exit_code == code
    for line in said:
        assert line in result.output


@pytest.mark.parametrize(
    ("options", "pids", "said"),
    [
        (
            ["--data-dir", "nowhere"], [4711, 4712],
            "nowhere: give that of a running node with --data-dir, or its process with --pid; processes of nodes, or "
            "of supervisors of several, on this machine: 4711, 4712",
        ),
        (["--data-dir", "nowhere"], [], "with --pid; no node runs on this machine"),
        (
            ["--config", "cluster.toml"], [4711],
            "store is cassandra: nodes with it are not found by a data directory; give the node's process with --pid, "
            "or send it SIGUSR2; processes of nodes, or of supervisors of several, on this machine: 4711",
        ),
    ],
)  # fmt: skip
def test_where_no_node_is_found_the_way_to_one_is_said(options, pids, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.toml").write_text('store = "cassandra"\n')
    monkeypatch.setattr(upgrade, "running_pids", lambda: pids)
    result = CliRunner().invoke(upgrade.command, options)
    assert result.exit_code == UNAVAILABLE
    assert said in result.output
