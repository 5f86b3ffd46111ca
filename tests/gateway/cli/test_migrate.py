"""``tidegate migrate`` against a real Cassandra."""

import secrets

import pytest
from click.testing import CliRunner

from deploy.cassandra import cql
from gateway.cli.migrate import command

pytestmark = pytest.mark.slow


@pytest.fixture
def run(cassandra_server):
    node = cassandra_server.nodes[0]
    keyspace = f"tidegate_{secrets.token_hex(6)}"

    def run(*arguments: str):
        where = ["--cassandra-hosts", node.address, "--cassandra-port", str(node.port)]
        return CliRunner().invoke(command, [*where, "--cassandra-keyspace", keyspace, *arguments])

    yield run
    cql.ask(node.address, node.port, f"DROP KEYSPACE IF EXISTS {keyspace}")


def test_a_keyspace_is_made_migrated_once_and_then_left_alone(run):
    missing = run()
    assert missing.exit_code == 1
    assert "no keyspace" in missing.output
    assert "tidegate migrate --create-keyspace" in missing.output
    first = run("--create-keyspace", "1")
    assert first.exit_code == 0, first.output
    assert "applying 0001 conversations" in first.output
    again = run("--create-keyspace", "1")
    assert again.exit_code == 0
    assert "nothing to do" in again.output


def test_a_dry_run_prints_the_statements_and_runs_none(run, cassandra_server):
    assert run("--dry-run").exit_code == 1  # there is no keyspace, and it makes none
    run("--create-keyspace", "1")
    assert run("--dry-run").output == ""


def test_a_dry_run_of_an_empty_keyspace(cassandra):
    where = ["--cassandra-hosts", cassandra.contact_points[0], "--cassandra-port", str(cassandra.port)]
    shown = CliRunner().invoke(command, [*where, "--cassandra-keyspace", cassandra.name, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "CREATE TABLE log_entries" in shown.output
    assert (
        CliRunner().invoke(command, [*where, "--cassandra-keyspace", cassandra.name, "--dry-run"]).output
        == shown.output
    )


def test_a_cassandra_that_is_away_is_unavailable():
    away = CliRunner().invoke(command, ["--cassandra-hosts", "127.9.9.9", "--cassandra-port", "1"])
    assert away.exit_code == 69
    assert "no Cassandra node answers at 127.9.9.9, port 1" in away.output
