"""A node of a cluster on a bad day: Cassandra is not there yet, or is not as configured; Redis does not let it in."""

import json
import signal
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trio

from bench.torture.proxy import FaultProxy
from deploy.cassandra import cql
from deploy.cassandra.launcher import DATACENTER
from deploy.processes import ServerProcess
from deploy.redis import RedisServer
from gateway.cluster.lease import Lease
from gateway.cluster.versions import OWN, Versions
from protocol.client import connect
from store.cassandra_coordination import CassandraCoordination
from store.cassandra_driver import CassandraTables
from store.cassandra_session import Access
from tests.faults.thread import ProxyThread
from tests.process.cluster_nodes import DEADLINE_S, PATIENT, SECRET, ClusterNodes
from tests.process.failing import UNAVAILABLE, USAGE, fails
from tests.process.test_two_clients import Eager
from tests.process.wire import upgrade_request
from tests.servers.fixtures import Keyspace

pytestmark = pytest.mark.process

WATCHFUL = (*PATIENT, "--lease-renew-s", "20")
"""Options of a node that looks long enough whether others live, however late they renew on a very busy machine."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def reach(cassandra: Keyspace, **changed: str) -> list[str]:
    """Options that lead to a keyspace, some of them changed."""
    options = {"hosts": cassandra.contact_points[0], "port": str(cassandra.port), "keyspace": cassandra.name} | changed
    given = [part for name, value in options.items() for part in (f"--cassandra-{name}", value)]
    return ["--store", "cassandra", *given, "--auth-secret", SECRET]


class Waiting(ServerProcess):
    """A node that is asked how it is before it says where it listens."""

    def __init__(self, tmp_path: Path, *options: str) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "gateway.cli.main", "serve", "--port", str(self.port)]
        command += ["--data-dir", str(tmp_path / "data"), "--log-format", "json", *options]
        super().__init__("node", command, tmp_path / "node.log")

    def ask(self, path: str) -> tuple[int, dict[str, object]]:
        """Status and body; status 0 while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=DEADLINE_S) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except (urllib.error.URLError, ConnectionError):
            return 0, {}

    def why_not(self) -> dict[str, str]:
        """The checks of readiness that do not hold, with their reasons."""
        _, told = self.ask("/health/ready")
        return {check["name"]: check["detail"] for check in told.get("checks", []) if not check["ok"]}


def test_a_node_without_its_cassandra_says_so_and_takes_part_when_it_comes(tmp_path: Path, nodes: ClusterNodes) -> None:
    hosts, port = nodes.options[3], int(nodes.options[5])
    absent = free_port()
    options = [
        *nodes.options[:2],
        "--cassandra-hosts",
        "127.0.0.1",
        "--cassandra-port",
        str(absent),
        *nodes.options[6:],
    ]
    node = Waiting(tmp_path, *options)
    try:
        node.launch()
        node.wait_until(lambda: "127.0.0.1" in node.why_not().get("store", ""), DEADLINE_S, "reason")
        why_not = node.why_not()
        assert why_not["store"].startswith(f"no Cassandra node answers at 127.0.0.1, port {absent}")
        assert why_not["accepting"] == "the node is starting"
        assert node.ask("/health/ready")[0] == 503
        assert node.ask("/health/live")[0] == 200
        status, problem = node.ask("/v1/conversations")
        assert status == 503
        assert "starting" in problem["detail"]
        with socket.create_connection(("127.0.0.1", node.port), timeout=DEADLINE_S) as client:
            client.sendall(upgrade_request())
            head = client.recv(65_536)
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after" in head.lower()
            assert b"the node is starting" in head + client.recv(65_536)
        with ProxyThread([FaultProxy(("127.0.0.1", absent), (hosts, port))]):
            node.wait_until(lambda: node.ask("/health/ready")[0] == 200, DEADLINE_S, "readiness")
            assert node.ask("/v1/conversations")[0] == 401
            node.stop()
    finally:
        node.kill()
    log = node.log_tail()
    assert "waiting for Cassandra" in node.log_path.read_text()
    assert "Traceback" not in log, log


def test_a_node_that_waits_for_cassandra_ends_when_it_is_told(tmp_path: Path) -> None:
    node = Waiting(tmp_path, "--store", "cassandra", "--cassandra-port", str(free_port()))
    try:
        node.launch()
        node.wait_until(lambda: bool(node.why_not()), DEADLINE_S, "reason")
        process = node._running_process()
        node.signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0, node.log_tail()
    finally:
        node.kill()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"keyspace": "nowhere"}, "no keyspace 'nowhere': make it by tidegate migrate --create-keyspace"),
        ({"datacenter": "moon"}, "no datacenter 'moon'; it has datacenter1: set cassandra_datacenter"),
        ({}, "is of schema 0, and this tidegate needs schema"),
    ],
)
def test_a_cassandra_that_is_not_as_configured_ends_the_start_with_what_to_do(
    cassandra: Keyspace, changed: dict[str, str], says: str
) -> None:
    code, line = fails(*reach(cassandra, **changed))
    assert code == 1
    assert says in line


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (
            (
                "CREATE TABLE {}.schema_migrations (number int PRIMARY KEY, name text)",
                "INSERT INTO {}.schema_migrations (number, name) VALUES (99, 'future')",
            ),
            "is of schema 99, and this tidegate knows schemas up to",
        ),
        (
            ("ALTER KEYSPACE {} WITH replication = {{'class': 'NetworkTopologyStrategy', '" + DATACENTER + "': 3}}",),
            "replication factor 3 in datacenter 'datacenter1', which has 1 nodes; LOCAL_QUORUM needs 2: add nodes, or",
        ),
    ],
)
def test_tables_that_cannot_do_end_the_start_and_stay_as_they_are(
    cassandra: Keyspace, statements: tuple[str, ...], says: str
) -> None:
    for statement in statements:
        cql.ask(cassandra.contact_points[0], cassandra.port, statement.format(cassandra.name), timeout_s=DEADLINE_S)
    code, line = fails(*reach(cassandra))
    assert code == 1
    assert says in line


def test_a_second_node_of_the_same_name_ends_and_the_first_one_goes_on(tmp_path: Path, nodes: ClusterNodes) -> None:
    first = nodes.start("one", *PATIENT)
    code, line = fails("--node-name", "one", "--data-dir", str(tmp_path / "second"), *nodes.options, *WATCHFUL)
    assert code == UNAVAILABLE
    assert "a node named 'one' is running already at 127.0.0.1:" in line
    assert "--node-name" in line

    async def send() -> None:
        with trio.fail_after(DEADLINE_S):
            async with connect(first.ws_url, token=first.token("alice"), device="a", rng=Eager()) as client:
                conversation = (await client.create_direct("bob")).conversation_id
                assert (await client.send(conversation, "still here")).seq == 2

    trio.run(send)
    assert "lease lost" not in first.stderr_path.read_text()


async def refused_beside(
    other: Lease, coordination: CassandraCoordination, tables: CassandraTables, nodes: ClusterNodes, name: str
) -> str:
    """What a node says that does not start while another one lives; it takes neither a lease nor slots."""
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(tables.run)
            await nursery.start(other.run)
            code, line = await trio.to_thread.run_sync(fails, "--node-name", name, *nodes.options, *WATCHFUL)
            assert code == UNAVAILABLE
            assert [row.node for row in await coordination.leases()] == [other.record.node], (
                "it has not even taken a lease"
            )
            assert (await coordination.slot_table()).version == 0
            nursery.cancel_scope.cancel()
    return line


def tables_of(cassandra: Keyspace) -> CassandraTables:
    access = Access((cassandra.contact_points[0],), cassandra.port, cassandra.name, cassandra.datacenter)
    return CassandraTables(access, requests_max=8)


async def test_a_node_too_old_for_the_others_does_not_start(cassandra: Keyspace, nodes: ClusterNodes) -> None:
    tables = tables_of(cassandra)
    coordination = CassandraCoordination(tables)
    far = Versions(OWN.newest + 1, OWN.newest + 2)
    newer = Lease(
        coordination, node="newer", address="10.0.0.9:8481", owns=True, protocol=far.packed, lease_s=60.0, renew_s=2.0
    )
    line = await refused_beside(newer, coordination, tables, nodes, "old")
    assert "node 'newer' at 10.0.0.9:8481 is of a newer tidegate: it speaks version" in line
    assert "start this node with a tidegate as new as the others" in line


async def test_a_node_that_asks_another_datacenter_than_the_others_does_not_start(
    cassandra: Keyspace, nodes: ClusterNodes
) -> None:
    tables = tables_of(cassandra)
    coordination = CassandraCoordination(tables)
    there = Lease(
        coordination, node="there", address="10.0.0.9:8481", owns=True, protocol=OWN.packed, lease_s=60.0, renew_s=2.0
    )
    there.asks("far away")
    line = await refused_beside(there, coordination, tables, nodes, "here")
    assert "node 'there' at 10.0.0.9:8481 asks Cassandra's datacenter 'far away', this one 'datacenter1'" in line
    assert "set cassandra_datacenter to far away here, or stop all nodes" in line


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost", "redis_url begins with 'http', allowed are redis, rediss (TLS)"),
        ("redis+sentinel://localhost:26379", "redis_url lacks the service's name behind the hosts"),
        ("redis+cluster://localhost/3", "redis_url names database 3, but a Redis Cluster has only 0"),
        ("redis://:secret-of-mine@localhost/x", "redis_url ends with 'x' where the number of a database belongs"),
    ],
)
def test_a_redis_url_that_cannot_be_used_ends_the_start(url: str, says: str) -> None:
    code, line = fails("--store", "cassandra", "--auth-secret", SECRET, "--redis-url", url)
    assert code == USAGE
    assert says in line
    assert "--redis-url" in line
    assert "secret-of-mine" not in line


async def test_a_redis_that_lets_nobody_in_costs_no_message_and_is_named(tmp_path: Path, nodes: ClusterNodes) -> None:
    with RedisServer(tmp_path / "redis", password="right") as server:
        options = list(nodes.options)
        options[options.index("--redis-url") + 1] = server.url.replace("right", "wrong")
        nodes.options = tuple(options)
        first, second = [await trio.to_thread.run_sync(nodes.start, name) for name in ("one", "two")]
        with trio.fail_after(DEADLINE_S):
            async with (
                connect(first.ws_url, token=first.token("alice"), device="a", rng=Eager()) as alice,
                connect(second.ws_url, token=second.token("bob"), device="b", rng=Eager()) as bob,
            ):
                conversation = (await alice.create_direct("bob")).conversation_id
                sent = [(await alice.send(conversation, f"m{number}")).seq for number in range(5)]
                page = await bob.history(conversation)
        assert sent == [2, 3, 4, 5, 6]
        assert [entry.seq for entry in page.entries] == [1, *sent]
    for node in (first, second):
        log = node.stderr_path.read_text()
        assert "redis cannot be used" in log
        assert "refuses user and password of redis_url" in log
        assert "wrong@" not in log
        assert "Traceback" not in log
