"""What TLS costs where the node ends it: ``python -m bench.tls``, in a checkout. Figures: docs/operations.md.

The same crowd connects to a node without TLS and to one with it, in one run: memory of the node a parked connection,
and its processor time a connection, of which the difference is the handshake (TLS 1.3, a P-256 certificate).
"""

import argparse
import gc
import socket
import ssl
import tempfile
import time
from pathlib import Path
from typing import Final

from msgspec import Struct

from bench.load.accounts import Door, user_names
from bench.load.connect import HANDSHAKE_TIMEOUT_S, connect_from, source_address
from bench.load.wire import server_frames
from bench.machine import choose_cores
from bench.node import running_node
from bench.processes import NodeProcess
from deploy.certificates import Certificate, make_certificate

WARM_UP_SHARE: Final = 0.2
"""Share of the crowd that connects before the first reading, so that what a node makes once is not counted."""

SETTLE_S: Final = 1.0
"""Seconds from the last handshake to a reading: the node finishes what it does behind a burst."""


class Cost(Struct, frozen=True):
    """Of one parked connection: the node's own memory, bytes, and its processor time to connect, microseconds."""

    user_bytes: float
    connect_cpu_us: float


def measure(connections: int) -> dict[str, Cost]:
    """What a connection costs without TLS and with it. Raises BenchError."""
    with tempfile.TemporaryDirectory() as directory:
        certificate = make_certificate(Path(directory), ["127.0.0.1"])
        options = ("--tls-cert", str(certificate.certificate_path), "--tls-key", str(certificate.key_path))
        return {"plain": _crowd(connections, None), "tls": _crowd(connections, certificate, *options)}


def _crowd(connections: int, certificate: Certificate | None, *options: str) -> Cost:
    context = certificate.client_context() if certificate is not None else None
    warm_up = int(connections * WARM_UP_SHARE)
    users = user_names(connections, "tls")
    with running_node(choose_cores(), None, *options) as (node, door):
        held = [_connect(door, user, index, context) for index, user in enumerate(users[:warm_up])]
        memory, cpu_s = _reading(node)
        held += [_connect(door, user, warm_up + index, context) for index, user in enumerate(users[warm_up:])]
        memory_then, cpu_then_s = _reading(node)
        for connection in held:
            connection.close()
    counted = connections - warm_up
    return Cost((memory_then - memory) / counted, (cpu_then_s - cpu_s) / counted * 1e6)


def _reading(node: NodeProcess) -> tuple[int, float]:
    gc.collect()
    time.sleep(SETTLE_S)
    return node.rss_bytes(), node.cpu_s()


def _connect(door: Door, user: str, index: int, context: ssl.SSLContext | None) -> socket.socket:
    """One authenticated connection, its welcome read."""
    connection = connect_from(source_address(index), door.host, door.port)
    connection.settimeout(HANDSHAKE_TIMEOUT_S)
    if context is not None:
        connection = context.wrap_socket(connection, server_hostname=door.host)
    connection.sendall(door.request(user))
    data = b""
    while not any(server_frames(data.partition(b"\r\n\r\n")[2])):
        more = connection.recv(4096)
        if not more:
            raise ConnectionError(f"the node closed connection {index} after {data!r}")
        data += more
    return connection


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=5_000, help="connections at once (default: 5000)")
    costs = measure(parser.parse_args().connections)
    for name, cost in costs.items():
        print(f"{name}: {cost.user_bytes:,.0f} bytes and {cost.connect_cpu_us:,.0f} us of processor time a connection")


if __name__ == "__main__":
    main()
