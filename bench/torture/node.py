"""One node of a cluster under trial: a real process whose every way to others leads through a proxy."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from bench.torture.proxy import Address, FaultProxy, Faults
from deploy.processes import ServerFailed, ServerProcess

PORT: Final = 8480
"""Where a node serves clients, and the proxy before it, each at an address of its own."""

PEER_PORT: Final = 8500
"""Where a node listens for other nodes, and the proxy before it."""

START_TIMEOUT_S: Final = 180.0
"""From start until a node must be ready, seconds: two on an idle machine, many on one that runs a Cassandra, too."""

POLL_S: Final = 0.1
"""How often a node is asked whether it is ready, seconds."""

ANSWER_TIMEOUT_S: Final = 2.0
"""Seconds that a node may take to say how it is."""


HEALTH_CHECK_S: Final = 1.0
"""How often a load balancer asks a node whether it is ready, seconds."""

UNHEALTHY_FAILURES: Final = 2
"""Answers missing in a row after which it sends nobody there."""

LEASE_LOST: Final = "lease lost: another node marked this incarnation dead"
"""What a node logs before it ends because others have taken over from it."""


@dataclass
class Ways:
    """How the network is on each of a node's ways.

    Attributes:
        cassandra: of its connections to Cassandra.
        redis: of its connections to Redis.
        peers: of the connections that other nodes make to it.
        clients: of its clients' connections.
    """

    cassandra: Faults = field(default_factory=Faults)
    redis: Faults = field(default_factory=Faults)
    peers: Faults = field(default_factory=Faults)
    clients: Faults = field(default_factory=Faults)

    def heal(self) -> None:
        """A good network everywhere."""
        for faults in (self.cassandra, self.redis, self.peers, self.clients):
            faults.heal()


class TrialNode(ServerProcess):
    """A node and the proxies around it.

    Attributes:
        host: where it listens itself.
        front: where its clients connect: the proxy before it.
        ways: how the network around it is.
        proxies: those before its clients' port, before its port for other nodes, and before Redis.
        wanted: whether it is meant to run: False while a trial has it down.
        starting: whether somebody starts it just now.
        healthy: what a load balancer thinks of it.
    """

    def __init__(
        self,
        network: str,
        number: int,
        directory: Path,
        options: tuple[str, ...],
        redis: Address | None,
        environment: Mapping[str, str],
        prefix: tuple[str, ...],
    ) -> None:
        """Describe node ``number`` (from 1) in the loopback ``network``; nothing is started yet."""
        self.host = f"{network}{number}"
        self.front: Address = (f"{network}{number + 50}", PORT)
        peers_front: Address = (f"{network}{number + 100}", PEER_PORT)
        self.ways = Ways()
        self.wanted = self.starting = False
        self.healthy = True
        self.number = number
        self.proxies = [
            FaultProxy(self.front, (self.host, PORT), self.ways.clients),
            FaultProxy(peers_front, (self.host, PEER_PORT), self.ways.peers),
        ]
        if redis is not None:
            front: Address = (f"{network}{number + 150}", redis[1])
            self.proxies.append(FaultProxy(front, redis, self.ways.redis))
            options = (*options, "--redis-url", f"redis://{front[0]}:{front[1]}/0")
        name = f"node-{number}"
        command = [*prefix, "serve", "--host", self.host, "--port", str(PORT), "--node-name", name, *options]
        command += ["--advertise", f"{peers_front[0]}:{peers_front[1]}", "--data-dir", str(directory / name)]
        super().__init__(name, command, directory / f"{name}.log", environment)

    async def ready(self) -> bool:
        """Whether it takes new work now."""
        return (await self._get("/health/ready")).startswith(b"HTTP/1.1 200 ")

    async def metric(self, name: str) -> float | None:
        """One of its metrics, without labels; None if it does not tell."""
        found = re.search(rb"^" + name.encode() + rb" (\S+)$", await self._get("/metrics"), re.MULTILINE)
        return float(found[1]) if found else None

    async def _get(self, path: str) -> bytes:
        """Its whole answer to a request, or what of it came in time."""
        answer = b""
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            try:
                async with await trio.open_tcp_stream(self.host, PORT) as stream:
                    request = f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n\r\n"
                    await stream.send_all(request.encode())
                    while chunk := await stream.receive_some(65_536):
                        answer += chunk
            except (OSError, trio.BrokenResourceError):
                return answer
        return answer

    async def watch_health(self) -> None:
        """Ask again and again whether it is ready, as a load balancer does, until cancelled."""
        failures = 0
        while True:
            failures = 0 if await self.ready() else failures + 1
            self.healthy = failures < UNHEALTHY_FAILURES
            await trio.sleep(HEALTH_CHECK_S)

    def lost_its_lease(self) -> bool:
        """Whether the last that it logged includes that others took over from it."""
        return LEASE_LOST in self.log_tail()

    async def wait_ready(self) -> None:
        """Wait until it takes new work. Raises ServerFailed."""
        with trio.move_on_after(START_TIMEOUT_S):
            while not await self.ready():
                if not self.running:
                    raise ServerFailed(f"{self.name} ended by itself\n{self.log_tail()}")
                await trio.sleep(POLL_S)
            return
        raise ServerFailed(f"{self.name} was not ready within {START_TIMEOUT_S:g} s\n{self.log_tail()}")
