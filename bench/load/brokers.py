"""Subscribers and a publisher of nats-server and mosquitto, for the fan-out: the same readers, another handshake."""

import socket
import time

from bench.errors import BenchError
from bench.load.accounts import Door
from bench.load.connect import connect_from, source_address
from bench.load.fanout import SILENCE_S, Readers
from bench.load.setup import receive_exactly

TOPIC = b"bench"


class Dialect:
    """What a client of one broker says.

    ``hello`` connects and subscribes, ``welcome`` ends the answer to it. ``ping`` is what the broker asks once, about
    two seconds later, and ``pong`` the answer; empty where it does not.
    """

    def __init__(self, name: str, delivery_bytes: int) -> None:
        """``delivery_bytes``: what one delivery to a subscriber is to have on the wire."""
        if name == "nats-server":
            self.hello = b'CONNECT {"verbose":false}\r\nSUB ' + TOPIC + b" 1\r\nPING\r\n"
            self.welcome = b"PONG\r\n"
            self.ping, self.pong = b"PING\r\n", b"PONG\r\n"
            payload = bytes(delivery_bytes - len(b"MSG bench 1 999\r\n\r\n"))
            assert 100 <= len(payload) <= 999, "the length is written with three digits"
            self.publish = b"PUB " + TOPIC + b" %d\r\n" % len(payload) + payload + b"\r\n"
        else:
            variable = (4).to_bytes(2, "big") + b"MQTT\x04\x02\x00\x00" + b"\x00\x00"  # clean session, no keepalive
            subscribe = b"\x00\x01" + _text(TOPIC) + b"\x00"
            self.hello = bytes((0x10, len(variable))) + variable + bytes((0x82, len(subscribe))) + subscribe
            self.welcome = b"\x90\x03\x00\x01\x00"
            self.ping = self.pong = b""
            rest = _text(TOPIC) + bytes(delivery_bytes - 3 - 2 - len(TOPIC))
            assert 128 <= len(rest) < 16_384, "the length is written with two bytes"
            self.publish = bytes((0x30, 0x80 | len(rest) & 0x7F, len(rest) >> 7)) + rest


class BrokerReaders(Readers):
    """Subscribers."""

    def __init__(self, door: Door, name: str, count: int, delivery_bytes: int) -> None:
        """Connect and subscribe, one after the other."""
        dialect = Dialect(name, delivery_bytes)
        connections = [_subscriber(door, dialect, index) for index in range(count)]
        for connection in connections:
            _answer_ping(connection, dialect)
            connection.setblocking(False)
        self._watch(connections)


class BrokerSender:
    """A publisher that also subscribes: its own copy tells when a message has gone out."""

    def __init__(self, door: Door, name: str, delivery_bytes: int) -> None:
        """Connect."""
        dialect = Dialect(name, delivery_bytes)
        self._connection = _subscriber(door, dialect, 0)
        _answer_ping(self._connection, dialect)
        self._publish, self._delivery_bytes = dialect.publish, delivery_bytes

    def run(self, rounds: int, in_flight: int) -> int:
        """As NodeSender.run."""
        for _ in range(rounds):
            self._connection.sendall(self._publish * in_flight)
            receive_exactly(self._connection, self._delivery_bytes * in_flight)
        return time.perf_counter_ns()


def _text(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def _subscriber(door: Door, dialect: Dialect, index: int) -> socket.socket:
    connection = connect_from(source_address(index), door.host, door.port)
    connection.settimeout(SILENCE_S)
    connection.sendall(dialect.hello)
    data = b""
    while not data.endswith(dialect.welcome):
        chunk = connection.recv(65_536)
        if not chunk:
            raise BenchError(f"the broker refused a subscriber: {data!r}")
        data += chunk
    return connection


def _answer_ping(connection: socket.socket, dialect: Dialect) -> None:
    """Have the broker's first ping behind us: it would be counted as part of a delivery."""
    if receive_exactly(connection, len(dialect.ping)) != dialect.ping:
        raise BenchError("the broker sent something else than its first ping")
    connection.sendall(dialect.pong)
