"""The HAProxy configuration in deploy/, run by a real HAProxy in front of two real nodes."""

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import jwt
import pytest
import trio

from bench.processes import NodeProcess
from deploy.certificates import Certificate, make_certificate
from deploy.loopback import free_network
from protocol import limits
from protocol.client import Client, MessageReceived, connect
from protocol.client.wire import Address
from tests.servers.haproxy import HaproxyServer, check, what_is_missing

pytestmark = [pytest.mark.process, pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())]

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
SECRET = "a secret of more than thirty-two bytes, for tests"
FRONT, STATUS = 8443, 8404
CLIENT = "127.0.0.77"
DEADLINE_S = 240


class Front:
    """What clients see: one address, TLS, and whoever is behind it."""

    def __init__(self, address: str, certificate: Certificate, nodes: list[NodeProcess]) -> None:
        self.address = address
        self.context = certificate.client_context()
        self.nodes = nodes
        self.url = f"wss://{address}:{FRONT}"

    async def open(self, address: Address) -> trio.SSLStream[trio.SocketStream]:
        """A stream from CLIENT's address, for the SDK."""
        tcp = await trio.open_tcp_stream(address.host, address.port, local_address=CLIENT)
        return trio.SSLStream(tcp, self.context, server_hostname=address.host, https_compatible=True)

    def connect(self, user: str, **options: object):
        claims = {"sub": user, "aud": "tidegate", "exp": int(time.time()) + 3600}
        token = jwt.encode(claims, SECRET, "HS256")
        return connect(self.url, token=token, opener=self.open, **options)

    async def connect_elsewhere(self, busy: str, stack: AsyncExitStack) -> Client:
        """A client of a node other than ``busy``, which has the most connections.

        The first one goes there, unless the machine is so slow that a node missed its checks: that one comes back.
        Connected only when those before it are online: HAProxy's threads count for themselves, and two that connect
        in the same moment may be sent to the same node.
        """
        while True:
            client = await stack.enter_async_context(self.connect("note"))
            await client.wait_online()
            if client.node != busy:
                return client
            await stack.aclose()

    def get(self, path: str, context: ssl.SSLContext | None = None) -> int:
        connection = http.client.HTTPSConnection(self.address, FRONT, timeout=30, context=context or self.context)
        connection.request("GET", path)
        status = connection.getresponse().status
        connection.close()
        return status

    def node_of(self, client: Client) -> NodeProcess:
        return self.nodes[int(client.node.removeprefix("node-"))]


@pytest.fixture(scope="module")
def certificate_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Certificate]:
    return lambda address: make_certificate(tmp_path_factory.mktemp("certificate"), [address])


@pytest.fixture
def balanced(tmp_path: Path, certificate_for: Callable[[str], Certificate]):
    @contextmanager
    def run(**more: str) -> Iterator[Front]:
        address = free_network(FRONT, STATUS) + "1"
        certificate = certificate_for(address)
        nodes = [
            NodeProcess(
                tmp_path / f"node-{number}",
                *(
                    "--node-name",
                    f"node-{number}",
                    "--proxy-protocol-from",
                    "127.0.0.1",
                    "--log-level",
                    "debug",
                    "--log-format",
                    "json",
                ),
                environment={"TIDEGATE_AUTH_SECRET": SECRET},
            )
            for number in range(2)
        ]
        with nodes[0], nodes[1]:
            environment = {
                "LB_FRONT": f"{address}:{FRONT}",
                "LB_STATUS": f"{address}:{STATUS}",
                "LB_CERTIFICATE": str(certificate.chain_path),
                "LB_MAXCONN": "1000",
                "LB_NODE_1": f"127.0.0.1:{nodes[0].port}",
                "LB_NODE_2": f"127.0.0.1:{nodes[1].port}",
                **more,
            }
            assert not check(CONFIGURATION, environment)
            with HaproxyServer(CONFIGURATION, tmp_path / "haproxy.log", (address, STATUS), environment):
                yield Front(address, certificate, nodes)

    return run


async def test_clients_connect_through_tls_and_go_elsewhere_when_a_node_drains(balanced) -> None:
    with balanced() as front, trio.fail_after(DEADLINE_S):
        async with front.connect("alice") as alice, AsyncExitStack() as others:
            await alice.wait_online()
            other = await front.connect_elsewhere(alice.node, others)
            conversation = (await alice.note_to_self()).conversation_id
            await alice.send(conversation, "hello")
            draining = front.node_of(alice)
            staying = other.node
            assert await trio.to_thread.run_sync(draining.terminate) == 0
            assert f'"client":"{CLIENT}"' in draining.stderr_path.read_text().replace(": ", ":")
            while alice.node != staying:  # it was told to come back, and does by itself
                await alice.wait_online()
                await trio.lowlevel.checkpoint()
            for user in ("bob", "carol", "dave"):
                async with front.connect(user) as late:
                    await late.wait_online()
                    assert late.node == staying


async def test_a_conversation_goes_through_the_load_balancer_both_ways(balanced) -> None:
    with balanced() as front, trio.fail_after(DEADLINE_S):
        front.nodes[1].terminate()
        async with front.connect("alice") as alice, front.connect("bob", replay=True) as bob:
            conversation = (await alice.create_direct("bob")).conversation_id
            body = "x" * limits.BODY_CHARS_MAX
            for text in ("one", body):
                await alice.send(conversation, text)
            heard = []
            async for event in bob.events():
                if isinstance(event, MessageReceived):
                    heard.append(event.body)
                if len(heard) == 2:
                    break
        assert heard == ["one", body]


def test_what_is_let_through(balanced) -> None:
    with balanced() as front:
        assert front.get("/") == 200
        assert front.get("/health/ready") == 200
        assert front.get("/metrics") == 404  # inside only
        older = ssl.create_default_context()
        older.check_hostname, older.verify_mode = False, ssl.CERT_NONE
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            front.get("/", older)


def test_who_connects_too_often_is_refused_before_tls(balanced) -> None:
    with balanced(LB_CONNECTS="10") as front:
        outgoing = ssl.MemoryBIO()
        hello = front.context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=front.address)
        with contextlib.suppress(ssl.SSLWantReadError):
            hello.do_handshake()
        first_words = outgoing.read()

        def connects() -> bool:
            """Whether TLS begins, from CLIENT."""
            try:
                with socket.create_connection((front.address, FRONT), timeout=30, source_address=(CLIENT, 0)) as raw:
                    raw.sendall(first_words)
                    return raw.recv(1) == b"\x16"
            except OSError:
                return False

        answers = [connects() for _ in range(20)]
        assert answers == [True] * 10 + [False] * 10
        assert front.get("/") == 200  # others are not concerned


def test_the_silence_that_it_allows_is_longer_than_the_nodes_own() -> None:
    (line,) = [line for line in CONFIGURATION.read_text().splitlines() if line.strip().startswith("timeout tunnel")]
    assert int(line.split()[2].removesuffix("s")) > limits.IDLE_TIMEOUT_S
