"""``tidegate migrate`` against a real Cassandra."""

import secrets
import sys

import pytest
import trio
from click.testing import CliRunner

from deploy.cassandra import cql
from gateway.cli.migrate import command
from store.cassandra_migrations import cassandra_migrations, migrate, schema_number
from store.cassandra_session import Access, connect, open_cluster
from store.interface import Unavailable

pytestmark = pytest.mark.slow

DEADLINE_S = 240


@pytest.fixture
def run(cassandra_server):
    node = cassandra_server.nodes[0]
    keyspace = f"tidegate_{secrets.token_hex(6)}"

    def run(*arguments: str):
        where = ["--cassandra-hosts", node.address, "--cassandra-port", str(node.port)]
        return CliRunner().invoke(command, [*where, "--cassandra-keyspace", keyspace, *arguments])

    run.keyspace = keyspace
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


def test_a_dry_run_shows_the_keyspace_that_would_be_made_and_all_that_comes_into_it(run):
    shown = run("--dry-run", "--create-keyspace", "1")
    assert shown.exit_code == 0, shown.output
    begin = f"CREATE KEYSPACE IF NOT EXISTS {run.keyspace} WITH replication = {{"
    assert shown.output.startswith(begin), shown.output
    assert "'NetworkTopologyStrategy', 'datacenter1': 1};" in shown.output.splitlines()[0]
    assert [line for line in shown.output.splitlines() if line.startswith("--")] == [
        f"-- {each.number:04} {each.name}" for each in cassandra_migrations()
    ]
    assert "no keyspace" in run().output, "it was only shown"
    refused = run("--dry-run", "--create-keyspace", "3")
    assert refused.exit_code == 1
    assert "which has 1 nodes; LOCAL_QUORUM needs 2" in refused.output
    assert run("--create-keyspace", "1").exit_code == 0
    assert run("--dry-run", "--create-keyspace", "1").output == "", "there is nothing left to do"


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


async def test_two_at_once_apply_everything_once_and_leave_a_whole_schema(cassandra):
    """Whoever comes too late is told so, or finds nothing to do; run again, it finds nothing to do in any case."""
    where = ["--cassandra-hosts", cassandra.contact_points[0], "--cassandra-port", str(cassandra.port)]
    program = [sys.executable, "-m", "gateway.cli.main", "migrate", *where, "--cassandra-keyspace", cassandra.name]
    outcomes = []

    async def migrate() -> None:
        done = await trio.run_process(program, capture_stdout=True, capture_stderr=True, check=False)
        outcomes.append((done.returncode, done.stdout.decode(), done.stderr.decode()))

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(migrate)
        assert sum("applying 0001 conversations" in said for _, said, _ in outcomes) == 1, outcomes
        for code, said, complaint in outcomes:
            assert code == 0 or (code == 69 and "another tidegate migrate works on keyspace" in complaint), complaint
            assert "Traceback" not in complaint
            assert code or f"of schema {len(cassandra_migrations())}" in said
        outcomes.clear()
        await migrate()
    assert [code for code, *_ in outcomes] == [0]
    assert "nothing to do" in outcomes[0][1]


def test_a_migration_whose_lock_was_taken_over_stops(cassandra):
    access = Access((cassandra.contact_points[0],), cassandra.port, cassandra.name, cassandra.datacenter)
    cluster = open_cluster(access)
    try:
        session = connect(cluster, access)

        def lose_lock(_migration):
            session.execute("UPDATE schema_lock SET owner = 'another' WHERE id = 'migrate' IF EXISTS")

        with pytest.raises(Unavailable, match="took so long that its lock ended: run it again"):
            migrate(session, cassandra.name, lose_lock)
        assert schema_number(session) == 0
        with pytest.raises(Unavailable, match="another tidegate migrate works on"):
            migrate(session, cassandra.name, lose_lock)
    finally:
        cluster.shutdown()


def test_a_newer_schema_is_refused_and_left_alone(run, cassandra_server):
    assert run("--create-keyspace", "1").exit_code == 0
    cql.ask(
        cassandra_server.addresses[0], cassandra_server.port,
        f"INSERT INTO {run.keyspace}.schema_migrations (number, name) VALUES (99, 'future')",
    )  # fmt: skip
    for arguments in ((), ("--dry-run",)):
        refused = run(*arguments)
        assert refused.exit_code == 1
        assert "is of schema 99, and this tidegate knows schemas up to" in refused.output


def test_more_copies_than_nodes_can_hold_are_refused_before_anything_is_made(run):
    refused = run("--create-keyspace", "3")
    assert refused.exit_code == 1
    assert "which has 1 nodes; LOCAL_QUORUM needs 2: add nodes, or ask for fewer copies" in refused.output
    assert "no keyspace" in run().output
