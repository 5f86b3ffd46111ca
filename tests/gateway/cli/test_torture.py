import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.torture.scenarios import FAULTS
from gateway.cli.errors import INTERRUPTED
from gateway.cli.torture import command

DEADLINE_S = 60

ENDLESS = """
import trio

from bench.torture import batch
from gateway.cli.main import main


async def endless(*_):
    try:
        print("all is started", flush=True)
        await trio.sleep_forever()
    finally:
        print("all is ended", flush=True)


batch.batch = endless
main(["torture", "--faults", "kill"])
"""
"""A command whose cluster starts at once and never ends by itself."""


def waits(pid: int) -> bool:
    """Whether a process does nothing but wait, as one does that is told to end."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("S")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_started_is_ended_when_the_command_is(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS], cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) != b"all is started\n":
            assert line, process.communicate()
        while not waits(process.pid):
            os.sched_yield()
        process.send_signal(number)
        told, complaints = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == INTERRUPTED
    assert told.startswith(b"all is ended\n")
    assert complaints == b""
    assert b"no promise was broken" not in told, "nothing was tried"
    assert b"nothing is proved" in told


def test_the_list_has_every_fault_with_its_meaning() -> None:
    result = CliRunner().invoke(command, ["--list"])
    assert result.exit_code == 0
    for name, fault in FAULTS.items():
        assert any(line.startswith(name) and fault.meaning in line for line in result.output.splitlines()), name


def test_an_unknown_fault_is_refused_with_those_that_there_are() -> None:
    result = CliRunner().invoke(command, ["--faults", "kill,earthquake"])
    assert result.exit_code == 2
    assert "there is no fault 'earthquake'" in result.output
    assert "half-pause" in result.output


def test_no_fault_at_all_is_refused() -> None:
    result = CliRunner().invoke(command, ["--faults", " , "])
    assert result.exit_code == 2
    assert "--faults names none" in result.output


def test_a_cassandra_that_was_given_is_not_harmed() -> None:
    result = CliRunner().invoke(command, ["--faults", "lose-reply", "--cassandra-hosts", "db.example"])
    assert result.exit_code == 69
    assert "leave --cassandra-hosts out" in result.output
