"""A cluster under trial: nodes, Cassandra and Redis on this machine, with proxies on every way between them."""

import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import trio

from bench.torture import turned_clock
from bench.torture.by_process import FaultsByProcess
from bench.torture.node import PEER_PORT, PORT, START_TIMEOUT_S, TrialNode
from bench.torture.proxy import FaultProxy
from deploy.cassandra.launcher import CassandraCluster, CassandraOptions
from deploy.loopback import free_network
from deploy.processes import ServerFailed, ServerProcess
from deploy.redis import RedisServer

T = TypeVar("T")

ROOT: Final = Path(__file__).parents[2]
TIDEGATE: Final = (sys.executable, "-m", "gateway.cli.main")
NODE: Final = (sys.executable, "-m", "bench.torture.turned_clock")

MIGRATE_TIMEOUT_S: Final = 120.0
"""Seconds that the making of all tables may take; it may be broken off where a Cassandra that has just come is slow."""

MIGRATE_PAUSE_S: Final = 5.0
"""Seconds before it is tried again: the lock of one that was broken off has to end."""

SUPERVISION_S: Final = 0.25
"""How often nodes are looked at for having ended, seconds."""

COPIES_MAX: Final = 3
"""The most copies that are made of everything on somebody else's Cassandra nodes."""

DRAIN_GRACE_S: Final = 20.0
"""Seconds that a draining node may take: a third of the default, because there are few connections."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What cluster to start.

    Attributes:
        nodes: how many nodes of ours.
        cassandra_nodes: how many Cassandra nodes to start; all of them are replicas of everything.
        cassandra_hosts: addresses of a Cassandra that runs already; then none is started, and none can be harmed.
        cassandra_port: its port.
        cassandra_keyspace: the keyspace for the trial; made if it is missing.
        lease_s: the nodes' lease, seconds.
        settings: more options of ``tidegate serve``.
    """

    nodes: int = 3
    cassandra_nodes: int = 1
    cassandra_hosts: tuple[str, ...] = ()
    cassandra_port: int = 9042
    cassandra_keyspace: str = "tidegate_torture"
    lease_s: float = 3.0
    settings: tuple[str, ...] = field(default=())

    @property
    def copies(self) -> int:
        """Copies of everything in the keyspace, where the trial makes it."""
        return min(len(self.cassandra_hosts), COPIES_MAX) or self.cassandra_nodes


class TrialCluster:
    """Everything that runs for a trial.

    Attributes:
        options: what it was made of.
        nodes: the nodes of ours.
        cassandra: the Cassandra that was started; None if it is somebody else's.
        redis: the Redis.
        secret: the secret of the users' tokens.
        history_path: where the nodes write down when they speak as owners.
        crashes: in words, each end of a node that should not have been.
    """

    def __init__(self, directory: Path, options: Options) -> None:
        """Describe everything; nothing is started yet. Raises ServerFailed: something is not installed."""
        self.options = options
        self.secret = secrets.token_urlsafe(32)
        self._cluster_secret = secrets.token_urlsafe(32)
        self.history_path = directory / "spoken.jsonl"
        self.crashes: list[str] = []
        self._clock = directory / "clock"
        self._by_process = FaultsByProcess()
        self.cassandra: CassandraCluster | None = None
        if not options.cassandra_hosts:
            many = options.cassandra_nodes > 1
            # One replica of several must not forget what it acknowledged, or a majority of them may.
            nodes = CassandraOptions(options.cassandra_nodes, "batch" if many else "periodic", proxied=True)
            self.cassandra = CassandraCluster(directory / "cassandra", nodes)
        self.redis = RedisServer(directory / "redis")
        network = free_network(PORT, PEER_PORT)
        self.nodes = [
            TrialNode(
                network, number, directory, self._settings(), (self.redis.address, self.redis.port),
                self._environment(), NODE,
            )
            for number in range(1, options.nodes + 1)
        ]  # fmt: skip

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start everything, and end it on the way out. Raises ServerFailed."""
        turned_clock.turn(self._clock, 0)
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            stack.callback(self._kill_all)
            for proxy in self._proxies():
                await nursery.start(proxy.run)
            if self.cassandra is not None:
                await in_thread(self.cassandra.start)
            await in_thread(self.redis.start)
            await in_thread(self._migrate)
            async with trio.open_nursery() as starting:
                for node in self.nodes:
                    starting.start_soon(self.start_node, node)
            nursery.start_soon(self._supervise)
            yield
            nursery.cancel_scope.cancel()

    async def start_node(self, node: TrialNode) -> None:
        """Start a node and wait until it takes new work. Raises ServerFailed."""
        node.wanted = node.starting = True
        try:
            await in_thread(node.launch)
            self._by_process.watch(node.pid, node.ways.cassandra)
            await node.wait_ready()
        finally:
            node.starting = False

    async def kill_node(self, node: TrialNode) -> None:
        """End a node at once."""
        node.wanted = False
        pid = node.pid
        await in_thread(node.kill)
        self._by_process.forget(pid)

    async def drain_node(self, node: TrialNode) -> int:
        """Ask a node to drain (SIGTERM) and wait for its end; its exit code. Raises ServerFailed: it did not end."""
        node.wanted = False
        pid = node.pid
        code = await in_thread(partial(node.terminate, DRAIN_GRACE_S + 10))
        self._by_process.forget(pid)
        return code

    async def mend(self) -> None:
        """After a run: good networks, and every node ready. Raises ServerFailed."""
        for node in self.nodes:
            node.ways.heal()
        with trio.move_on_after(START_TIMEOUT_S):
            while True:
                if all([not node.starting and await node.ready() for node in self.nodes]):
                    return
                await trio.sleep(SUPERVISION_S)
        raise ServerFailed(f"not every node is ready {START_TIMEOUT_S:g} s after a run\n{node.log_tail()}")

    async def _supervise(self) -> None:
        """Start nodes again that ended by themselves, as a service manager does, until cancelled.

        One that had lost its lease ends as it should; any other end goes to ``crashes``.
        """
        async with trio.open_nursery() as nursery:
            for node in self.nodes:
                nursery.start_soon(node.watch_health)
            while True:
                for node in self.nodes:
                    if node.wanted and not node.running and not node.starting:
                        if not node.lost_its_lease():
                            self.crashes.append(f"{node.name} ended by itself; {node.log_tail()}")
                        node.starting = True
                        nursery.start_soon(self.start_node, node)
                await trio.sleep(SUPERVISION_S)

    def turn_clock(self, seconds: float) -> None:
        """Let all nodes' wall clocks be off by so much."""
        turned_clock.turn(self._clock, seconds)

    def spoken_bytes(self) -> int:
        """How much the nodes have written down so far of when they spoke, bytes."""
        return self.history_path.stat().st_size if self.history_path.exists() else 0

    def spoken_since(self, position: int) -> bytes:
        """What they have written down since, in whole lines."""
        if not self.history_path.exists():
            return b""
        with self.history_path.open("rb") as file:
            file.seek(position)
            data = file.read()
        return data[: data.rfind(b"\n") + 1]

    def logged(self) -> Counter[str]:
        """How often the nodes have logged what so far, by event; errors have ``error: `` before it."""
        events: Counter[str] = Counter()
        for node in self.nodes:
            data = node.log_path.read_bytes() if node.log_path.exists() else b""
            for line in data.splitlines():
                if line.startswith(b"Traceback"):
                    events["error: a traceback"] += 1
                elif line.startswith(b"{"):
                    entry = msgspec.json.decode(line)
                    serious = entry.get("level") in ("error", "critical")
                    events[f"error: {entry['event']}" if serious else entry["event"]] += 1
        return events

    def _proxies(self) -> Iterable[FaultProxy]:
        for node in self.nodes:
            yield from node.proxies
        for cassandra in self.cassandra.nodes if self.cassandra is not None else ():
            yield FaultProxy(
                (cassandra.advertised, cassandra.port), (cassandra.address, cassandra.port), self._by_process
            )

    def _reach(self) -> tuple[str, ...]:
        """Options that tell where Cassandra is."""
        given = self.options
        hosts = self.cassandra.addresses if self.cassandra is not None else given.cassandra_hosts
        port = self.cassandra.port if self.cassandra is not None else given.cassandra_port
        return (
            "--cassandra-hosts", ",".join(hosts), "--cassandra-port", str(port),
            "--cassandra-keyspace", given.cassandra_keyspace,
        )  # fmt: skip

    def _settings(self) -> tuple[str, ...]:
        lease_s = self.options.lease_s
        return (
            "--store", "cassandra", *self._reach(), "--lease-s", f"{lease_s:g}", "--lease-renew-s", f"{lease_s / 5:g}",
            "--history-file", str(self.history_path), "--drain-grace-s", f"{DRAIN_GRACE_S:g}", "--log-format", "json",
            "--commands-per-s-max", "0", *self.options.settings,
        )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        """What all nodes have in common: secrets, where our modules are, and the clock that can be turned."""
        paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))
        return {
            "TIDEGATE_AUTH_SECRET": self.secret,
            "TIDEGATE_CLUSTER_SECRET": self._cluster_secret,
            "PYTHONPATH": os.pathsep.join(paths),
            turned_clock.VARIABLE: str(self._clock),
        }

    def _migrate(self) -> None:
        command = [*TIDEGATE, "migrate", "--create-keyspace", str(self.options.copies), *self._reach()]
        deadline = time.monotonic() + MIGRATE_TIMEOUT_S
        while True:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=MIGRATE_TIMEOUT_S, check=False, cwd=ROOT
            )
            if not done.returncode:
                return
            if time.monotonic() > deadline:
                raise ServerFailed(f"the tables could not be made: {done.stderr.strip()}")
            time.sleep(MIGRATE_PAUSE_S)

    def _kill_all(self) -> None:
        servers: list[ServerProcess] = [*self.nodes, self.redis]
        for server in servers:
            server.kill()
        if self.cassandra is not None:
            self.cassandra.kill()


async def in_thread(blocking: Callable[[], T]) -> T:
    """Call what blocks in a thread. Cancelling waits for its end."""
    return await trio.to_thread.run_sync(blocking)
