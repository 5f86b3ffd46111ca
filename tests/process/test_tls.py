"""A node that ends TLS itself: the SDK over wss://, HTTP over https://, slow readers, and starts that must fail."""

import http.client
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from bench.processes import NodeProcess
from deploy.certificates import Certificate, make_certificate
from protocol.client import MessageReceived, connect

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
DEADLINE_S = 240
MEMBERS = 80
"""Above what a fan-out writes at once, so that slices are seen too."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"), ["127.0.0.1"])


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[NodeProcess]:
    options = ("--tls-cert", str(certificate.certificate_path), "--tls-key", str(certificate.key_path))
    data_dir = tmp_path_factory.mktemp("secure") / "data"
    with NodeProcess(data_dir, *options, "--commands-per-s-max", "0", "--log-format", "json") as node:
        yield node
        assert node.terminate() == 0, node.stderr_tail()
        assert "Traceback" not in node.stderr_path.read_text()


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch, certificate: Certificate) -> None:
    """This process trusts the certificate, as a machine does whose administrator installed it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate_path))


def get(node: NodeProcess, path: str, context: ssl.SSLContext, times: int = 1) -> tuple[int, bytes]:
    """The last of several answers on one connection."""
    connection = http.client.HTTPSConnection(node.host, node.port, timeout=30, context=context)
    for _ in range(times):
        connection.request("GET", path)
        answer = connection.getresponse()
        found = answer.status, answer.read()
    connection.close()
    return found


@pytest.mark.usefixtures("trusted")
async def test_the_sdk_chats_over_wss(secure: NodeProcess) -> None:
    bodies = [f"message {n} " + "x" * (n * 500) for n in range(8)]
    assert secure.ws_url.startswith("wss://")
    with trio.fail_after(DEADLINE_S):
        async with (
            connect(secure.ws_url, token=secure.token("alice")) as alice,
            connect(secure.ws_url, token=secure.token("bob"), replay=True) as bob,
        ):
            conversation = (await alice.create_direct("bob")).conversation_id
            for body in bodies:
                await alice.send(conversation, body)
            heard = []
            async for event in bob.events():
                if isinstance(event, MessageReceived):
                    heard.append(event.body)
                if len(heard) == len(bodies):
                    break
    assert heard == bodies


@pytest.mark.usefixtures("trusted")
async def test_a_group_of_tls_connections_gets_every_message_in_order(secure: NodeProcess) -> None:
    members = [f"m{n}" for n in range(MEMBERS)]
    bodies = [f"to all {n}" for n in range(20)]
    heard: dict[str, list[str]] = {}

    async def listen(user: str, task_status: trio.TaskStatus[None]) -> None:
        async with connect(secure.ws_url, token=secure.token(user), replay=True) as client:
            heard[user] = []
            await client.wait_online()
            task_status.started()
            async for event in client.events():
                if isinstance(event, MessageReceived):
                    heard[user].append(event.body)
                if len(heard[user]) == len(bodies):
                    return

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            for user in members:
                await nursery.start(listen, user)
            async with connect(secure.ws_url, token=secure.token("speaker")) as speaker:
                group = (await speaker.create_group("all", members)).conversation_id
                for body in bodies:
                    await speaker.send(group, body)
    assert heard == dict.fromkeys(members, bodies)


def test_http_and_its_page(secure: NodeProcess, certificate: Certificate) -> None:
    context = certificate.client_context()
    status, page = get(secure, "/", context, times=3)
    assert status == 200
    assert secure.url.encode() in page
    assert secure.url.startswith("https://")
    status, metrics = get(secure, "/metrics", context)
    assert status == 200
    assert b"tidegate_tls_handshakes_failed_total" in metrics
    status, document = get(secure, "/openapi.json", context)
    assert json.loads(document)["openapi"]


def test_nothing_but_tls_1_3(secure: NodeProcess, certificate: Certificate) -> None:
    context = certificate.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol"):
        get(secure, "/", context)
    connection = http.client.HTTPConnection(secure.host, secure.port, timeout=30)
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert answer.status == 400
    assert b"https://" in answer.read()
    connection.close()


def test_a_script_chats_over_tls(secure: NodeProcess, certificate: Certificate) -> None:
    command = [sys.executable, "-m", "gateway.cli.main", "chat", "--as", "carol", "--to", "dave"]
    command += ["--url", secure.url, "--data-dir", str(secure.data_dir)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "SSL_CERT_FILE": str(certificate.certificate_path)},
        input="hello\n",
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tls-cert", "absent.pem"), "absent.pem of tls_cert cannot be read"),
        (("--tls-key", "absent.pem"), "tls_cert is not"),
        (("--tls-cert", __file__), "have to be PEM files"),
        (("--proxy-protocol-from", "loadbalancer"), "10.0.0.0/8"),
    ],
)
def test_a_start_that_cannot_be_is_explained_in_a_line(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "gateway.cli.main", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("tidegate: ")]
    assert said in line
    assert "Traceback" not in done.stderr
