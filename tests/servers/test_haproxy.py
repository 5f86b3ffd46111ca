import http.client
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.loopback import free_network
from deploy.processes import ServerFailed
from tests.servers.haproxy import HaproxyServer, check
from tests.servers.haproxy import what_is_missing as haproxy_is_missing

pytestmark = pytest.mark.skipif(bool(haproxy_is_missing()), reason=haproxy_is_missing())

PORT = 8080
CONFIGURATION = """
global
    log stdout format raw local0
defaults
    mode http
    log global
    timeout connect 5s
    timeout client 5s
    timeout server 5s
listen front
    bind "${FRONT}:8080"
    server one "${BACK}"
"""


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204)
        self.send_header("X-Who", "backend")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def backend() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_it_passes_requests_on_and_starts_again(tmp_path: Path, backend: str) -> None:
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(CONFIGURATION)
    address = free_network(PORT) + "1"
    environment = {"FRONT": address, "BACK": backend}
    assert not check(configuration, environment)
    with HaproxyServer(configuration, tmp_path / "haproxy.log", (address, PORT), environment) as proxy:
        for _ in range(2):
            connection = http.client.HTTPConnection(address, PORT, timeout=10)
            connection.request("GET", "/")
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("X-Who")) == (204, "backend")
            connection.close()
            proxy.restart()


def test_a_bad_configuration_is_told(tmp_path: Path) -> None:
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(CONFIGURATION + "    nonsense here\n")
    environment = {"FRONT": "127.0.0.1", "BACK": "127.0.0.1:1"}
    assert "nonsense" in check(configuration, environment)
    proxy = HaproxyServer(configuration, tmp_path / "haproxy.log", ("127.0.0.1", 1), environment)
    with pytest.raises(ServerFailed, match="nonsense"):
        proxy.start()
    assert not proxy.running
