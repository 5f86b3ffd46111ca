"""The machine's time of day jumps by an hour, forwards and back, under a node of a cluster that people use."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
import trio

from protocol.client import connect
from protocol.frames import Ping, Pong
from tests.process.cluster_nodes import DEADLINE_S, PATIENT, SECRET, ClusterNode, ClusterNodes
from tests.process.test_two_clients import Eager
from tests.process.wire import connect_tcp, connected, read_http, upgrade_request
from tests.servers.fixtures import Keyspace
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.process

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
HOUR_S = 3_600


class Clock:
    """The time of day as a process sees it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.step(0)
        self.environment = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def step(self, offset_s: int) -> None:
        """Let it differ from the true time by so much from now on."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{offset_s:+d}s\n")
        os.replace(new, self._path)


@pytest.fixture
def nodes(tmp_path: Path, cassandra: Keyspace, redis_server: RedisServer) -> Iterator[ClusterNodes]:
    if LIBRARY is None:
        pytest.skip("libfaketime is missing (install the package faketime, or run deploy/test-packages.sh)")
    each = ClusterNodes(tmp_path, cassandra, redis_server)
    yield each
    each.kill_all()


async def test_a_step_of_an_hour_costs_no_lease_no_connection_and_no_order(tmp_path: Path, nodes: ClusterNodes) -> None:
    clock = Clock(tmp_path / "clock")
    node = await trio.to_thread.run_sync(nodes.start, "one", *PATIENT)
    stepping = ClusterNode(
        tmp_path / "two", "--node-name", "two", *nodes.options, *PATIENT, environment=clock.environment
    )
    try:
        await trio.to_thread.run_sync(stepping.start)
        await use(node, stepping, clock)
    finally:
        stepping.kill()
    for each in (node, stepping):
        log = each.stderr_path.read_text()
        assert "node marked dead" not in log
        assert "lease lost" not in log
        assert "Traceback" not in log


async def use(node: ClusterNode, stepping: ClusterNode, clock: Clock) -> None:
    """Talk while the clock of one of the two nodes steps."""
    token = stepping.token("alice", ttl_s=4 * HOUR_S)
    with trio.fail_after(DEADLINE_S):
        async with (
            connect(stepping.ws_url, token=token, device="a", rng=Eager()) as alice,
            connect(node.ws_url, token=node.token("bob", ttl_s=4 * HOUR_S), device="b", rng=Eager()) as bob,
            connected(stepping, "carol") as carol,
        ):
            groups = [(await alice.create_group(f"group {n}", ["bob"])).conversation_id for n in range(8)]
            times: dict[str, list[int]] = {group: [] for group in groups}
            for number, offset_s in enumerate((0, HOUR_S, 0, -HOUR_S, HOUR_S)):
                clock.step(offset_s)
                for group in groups:
                    for sender in (alice, bob):
                        ack = await sender.send(group, f"{number}")
                        times[group].append(ack.time_us)
            for group, acknowledged in times.items():
                assert acknowledged == sorted(set(acknowledged)), group
                page = await bob.history(group)
                assert [entry.time_us for entry in page.entries][1:] == acknowledged
            # Some of the groups are ordered by the node whose clock is ahead now.
            newest_s = max(acknowledged[-1] for acknowledged in times.values()) / 1e6
            assert newest_s > time.time() + HOUR_S / 2
            # Who came with a token of an hour stays: what was left of it is measured, not compared with the clock.
            await carol.ask(Ping(0), Pong)
            await refused_with_reason(stepping)
            clock.step(0)
            async with connected(stepping, "dave"):
                pass


async def refused_with_reason(node: ClusterNode) -> None:
    """A new connection with a token that is over by this node's clock is told so."""
    token = jwt.encode({"sub": "erin", "aud": "tidegate", "exp": int(time.time()) + 60}, SECRET, algorithm="HS256")
    async with await connect_tcp(node) as stream:
        await stream.send_all(upgrade_request({"Authorization": f"Bearer {token}"}))
        answer = await read_http(stream, whole=True)
    assert answer.status == 401
    assert "the token expired" in answer.rest.decode()
