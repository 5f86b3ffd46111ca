"""Several real Redis for tests: with a replica and a sentinel, or as a small Redis Cluster."""

import contextlib
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import redis

from deploy.loopback import free_network
from deploy.processes import ServerFailed, ServerProcess, Startable
from deploy.redis import BUS_PORT, PORT, START_TIMEOUT_S, RedisServer, at_once, what_is_missing

__all__ = ["PORT", "RedisCluster", "RedisServer", "RedisWithSentinel", "what_is_missing"]

SENTINEL_PORT = 26379
"""Where a sentinel listens."""

PRIMARY_NAME = "tidegate"
"""What the sentinel calls the primary that it watches."""

SENTINEL_DOWN_AFTER_MS = 1_000
"""Silence after which the sentinel gives the primary up, milliseconds."""


class RedisWithSentinel(Startable):
    """A primary, a replica and one sentinel that makes the replica primary when the primary is silent.

    Attributes:
        servers: the first primary and the first replica.
        sentinel: the process of the sentinel.
        sentinel_address: where it listens, at SENTINEL_PORT.
    """

    def __init__(self, directory: Path) -> None:
        """Describe the three; nothing is started yet. Raises ServerFailed."""
        network = free_network(PORT, SENTINEL_PORT)
        primary = RedisServer(directory / "primary", network=network, number=1)
        # Told outright: else the sentinel takes the replica for the source address of its link, 127.0.0.1.
        replica_of = ("--replicaof", primary.address, str(PORT), "--replica-announce-ip", f"{network}2")
        replica = RedisServer(directory / "replica", *replica_of, network=network, number=2)
        self.servers = [primary, replica]
        self.sentinel_address = f"{network}3"
        # The sentinel writes what it learns into this file.
        configuration = directory / "sentinel.conf"
        configuration.write_text(
            f"bind {self.sentinel_address}\nport {SENTINEL_PORT}\ndir {directory}\n"
            f"sentinel monitor {PRIMARY_NAME} {primary.address} {PORT} 1\n"
            f"sentinel down-after-milliseconds {PRIMARY_NAME} {SENTINEL_DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {PRIMARY_NAME} 10000\n",
            encoding="ascii",
        )
        command = ["redis-server", str(configuration), "--sentinel"]
        self.sentinel = ServerProcess("Redis sentinel", command, directory / "sentinel.log")

    def start(self) -> None:
        """Start all three, and wait until the sentinel knows the others. Raises ServerFailed."""
        try:
            for server in self.servers:
                server.start()
            self.sentinel.launch()
            self.sentinel.wait_until(self._knows_replica, START_TIMEOUT_S, "sentinel that knows the replica")
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End all three at once."""
        _kill_all([self.sentinel, *self.servers])

    def primary_address(self) -> str:
        """The address that the sentinel tells clients now."""
        return str(self._state()["ip"])

    def wait_failover(self) -> None:
        """Wait until the sentinel tells the replica's address. Raises ServerFailed."""
        replica = self.servers[1]
        replica.wait_until(
            lambda: self.primary_address() == replica.address, START_TIMEOUT_S, "failover to the replica"
        )

    def _state(self) -> dict[str, object]:
        with redis.Redis(self.sentinel_address, SENTINEL_PORT, decode_responses=True, retry=at_once()) as client:
            return dict(client.sentinel_master(PRIMARY_NAME))

    def _knows_replica(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return self._state()["num-slaves"] == 1
        return False


class RedisCluster(Startable):
    """Three primaries without replicas that share Redis' slots: what a client of Redis Cluster has to cope with.

    Attributes:
        servers: the three.
    """

    def __init__(self, directory: Path) -> None:
        """Describe the three; nothing is started yet. Raises ServerFailed."""
        network = free_network(PORT, BUS_PORT)
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "15000")
        self.servers = [
            # Told outright: else the nodes take each other for the source address of their links, 127.0.0.1.
            RedisServer(
                directory / f"node{number}",
                *options,
                "--cluster-announce-ip",
                f"{network}{number}",
                network=network,
                number=number,
            )
            for number in (1, 2, 3)
        ]

    def start(self) -> None:
        """Start all three as one cluster, and wait until each knows it as whole. Raises ServerFailed."""
        try:
            for server in self.servers:
                server.start()
            nodes = [f"{server.address}:{server.port}" for server in self.servers]
            _run(["redis-cli", "--cluster", "create", *nodes, "--cluster-yes"])
            for server in self.servers:
                server.wait_until(_cluster_is_whole(server), START_TIMEOUT_S, "whole Redis Cluster")
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End all three at once."""
        _kill_all(self.servers)


def _cluster_is_whole(server: RedisServer) -> Callable[[], bool]:
    def is_whole() -> bool:
        with server.client() as client:
            return bool(client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")

    return is_whole


def _kill_all(servers: Sequence[ServerProcess]) -> None:
    for server in servers:
        server.kill()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_TIMEOUT_S
    )
    if done.returncode:
        raise ServerFailed(f"{' '.join(command)} ended with code {done.returncode}: {done.stdout}{done.stderr}")
