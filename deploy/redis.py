"""A real Redis on this machine, at a loopback address of its own, for trials and tests."""

import contextlib
import shutil
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.certificates import make_certificate
from deploy.loopback import free_network
from deploy.processes import ServerFailed, ServerProcess, Startable

PORT = 6379
"""Where a Redis listens, at an address of its own."""

BUS_PORT = 16379
"""Where the nodes of a Redis Cluster speak to each other: always 10,000 above PORT."""

START_TIMEOUT_S = 30.0
"""From start until a server must answer, seconds: a tenth of one on an idle machine."""


def what_is_missing() -> str:
    """Why no Redis can be started here, in words; empty when one can."""
    if shutil.which("redis-server") is None:
        return "redis-server is missing (install the package redis-server, or run deploy/test-packages.sh)"
    return ""


class RedisServer(ServerProcess, Startable):
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

    @property
    def url(self) -> str:
        """Its address with the password, for a client: redis:// or, with TLS, rediss://."""
        scheme = "redis" if self.certificate is None else "rediss"
        credentials = f":{self.password}@" if self.password else ""
        return f"{scheme}://{credentials}{self.address}:{self.port}/0"

    def client(self) -> redis.Redis:
        """A blocking client for tests that look at it or change it; the caller closes it (``with``)."""
        trusted = {"ssl_ca_certs": str(self.certificate.certificate_path)} if self.certificate else {}
        return redis.Redis.from_url(self.url, socket_timeout=START_TIMEOUT_S, retry=at_once(), **trusted)

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


def at_once() -> Retry:
    """No second tries inside the client: who waits for a server asks again itself."""
    return Retry(NoBackoff(), retries=0)
