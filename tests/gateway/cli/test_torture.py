from click.testing import CliRunner

from bench.torture.scenarios import FAULTS
from gateway.cli.torture import command


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
