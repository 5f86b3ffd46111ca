"""A real Redis for tests: alone, with a replica and a sentinel, or as a small Redis Cluster."""

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.certificates import make_certificate
from deploy.loopback import free_network
from deploy.processes import ServerFailed, ServerProcess

PORT = 6379
"""Where a Redis listens, at an address of its own."""

SENTINEL_PORT = 26379
"""Where a sentinel listens."""

BUS_PORT = 16379
"""Where the nodes of a Redis Cluster speak to each other: always 10,000 above PORT."""

START_TIMEOUT_S = 30.0
"""From start until a server must answer, seconds: a tenth of one on an idle machine."""

PRIMARY_NAME = "tidegate"
"""What the sentinel calls the primary that it watches."""

SENTINEL_DOWN_AFTER_MS = 1_000
"""Silence after which the sentinel gives the primary up, milliseconds."""


def what_is_missing() -> str:
    """Why no Redis can be started here, in words; empty when one can."""
    if shutil.which("redis-server") is None:
        return "redis-server is missing (install the package redis-server, or run deploy/test-packages.sh)"
    return ""


class RedisServer(ServerProcess):
    """One Redis that keeps nothing on disk by itself; also a context manager that starts it and ends it for good.

    Attributes:
        address: where it listens, an address of its own.
        port: where it listens; with TLS only TLS is spoken there.
        password: what clients must give; empty for none.
        certificate: with TLS, what it shows and clients have to trust; None without.
    """

    def __init__(
        self,
        directory: Path,
        *options: str,
        password: str = "",
        tls: bool = False,
        network: str | None = None,
        number: int = 1,
    ) -> None:
        """Describe a server; nothing is started yet.

        Args:
            directory: for its log and its snapshots; made if it is missing.
            options: more options of redis-server, as ("--maxmemory", "1mb").
            password: what clients must give; empty for none.
            tls: whether clients must speak TLS.
            network: the first three numbers of its address, as "127.0.0."; by default a free one is sought.
            number: the last number of its address.

        Raises:
            ServerFailed: redis-server is not installed.
        """
        if missing := what_is_missing():
            raise ServerFailed(missing)
        directory.mkdir(parents=True, exist_ok=True)
        self.address = f"{network or free_network(PORT, BUS_PORT)}{number}"
        self.port = PORT
        self.password = password
        self.certificate = make_certificate(directory, [self.address]) if tls else None
        command = ["redis-server", "--bind", self.address, "--dir", str(directory), "--save", "", "--appendonly", "no"]
        command += ["--requirepass", password, "--masterauth", password] if password else []
        if self.certificate is None:
            command += ["--port", str(PORT)]
        else:
            command += ["--port", "0", "--tls-port", str(PORT), "--tls-auth-clients", "no"]
            command += ["--tls-cert-file", str(self.certificate.certificate_path)]
            command += ["--tls-key-file", str(self.certificate.key_path)]
        super().__init__(f"Redis {self.address}", [*command, *options], directory / "redis.log")
        self._loaded = directory / "dump.rdb"
        self._snapshot = directory / "snapshot.rdb"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """Its address with the password, for a client: redis:// or, with TLS, rediss://."""
        scheme = "redis" if self.certificate is None else "rediss"
        credentials = f":{self.password}@" if self.password else ""
        return f"{scheme}://{credentials}{self.address}:{self.port}/0"

    def client(self) -> redis.Redis:
        """A blocking client for tests that look at it or change it; the caller closes it (``with``)."""
        trusted = {"ssl_ca_certs": str(self.certificate.certificate_path)} if self.certificate else {}
        return redis.Redis.from_url(self.url, socket_timeout=START_TIMEOUT_S, retry=_at_once(), **trusted)

    def start(self) -> None:
        """Start it and wait until it answers. Raises ServerFailed."""
        self.start_until(self.answers, START_TIMEOUT_S, "answer to PING")

    def restart(self) -> None:
        """Kill it if it runs, and start it empty, as after a crash. Raises ServerFailed."""
        self.kill()
        self._loaded.unlink(missing_ok=True)
        self.start()

    def flush(self) -> None:
        """Make it forget everything while it runs."""
        with self.client() as client:
            client.flushall()

    def take_snapshot(self) -> None:
        """Write down all it knows, for a later restart_from_snapshot(); an earlier snapshot is replaced."""
        with self.client() as client:
            client.save()
        self._loaded.replace(self._snapshot)

    def restart_from_snapshot(self) -> None:
        """Kill it if it runs, and start it with what the last snapshot knew. Raises ServerFailed."""
        self.kill()
        shutil.copyfile(self._snapshot, self._loaded)
        self.start()

    def answers(self) -> bool:
        """Whether it answers now, having loaded what it had to load."""
        with contextlib.suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False


class RedisWithSentinel:
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

    def __enter__(self) -> Self:
        try:
            for server in self.servers:
                server.start()
            self.sentinel.launch()
            self.sentinel.wait_until(self._knows_replica, START_TIMEOUT_S, "sentinel that knows the replica")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

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
        with redis.Redis(self.sentinel_address, SENTINEL_PORT, decode_responses=True, retry=_at_once()) as client:
            return dict(client.sentinel_master(PRIMARY_NAME))

    def _knows_replica(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return self._state()["num-slaves"] == 1
        return False


class RedisCluster:
    """Three primaries without replicas that share Redis' slots: what a client of Redis Cluster has to cope with.

    Attributes:
        servers: the three.
    """

    def __init__(self, directory: Path) -> None:
        """Describe the three; nothing is started yet. Raises ServerFailed."""
        network = free_network(PORT, BUS_PORT)
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
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

    def __enter__(self) -> Self:
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
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End all three at once."""
        _kill_all(self.servers)


def _cluster_is_whole(server: RedisServer) -> Callable[[], bool]:
    def is_whole() -> bool:
        with server.client() as client:
            return bool(client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")

    return is_whole


def _at_once() -> Retry:
    """No second tries inside the client: who waits for a server asks again itself."""
    return Retry(NoBackoff(), retries=0)


def _kill_all(servers: Sequence[ServerProcess]) -> None:
    for server in servers:
        server.kill()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_TIMEOUT_S
    )
    if done.returncode:
        raise ServerFailed(f"{' '.join(command)} ended with code {done.returncode}: {done.stdout}{done.stderr}")
