"""One question to one Cassandra node over its native protocol (version 4), without a driver."""

import socket
import ssl
import struct
from dataclasses import dataclass

TIMEOUT_S = 60.0
"""How long a node may take for each step of an answer, seconds: for a change of the schema, on a very busy machine."""

ONE = 0x0001
QUORUM = 0x0004
ALL = 0x0005

_REQUEST = 0x04
_ERROR, _STARTUP, _READY, _AUTHENTICATE, _QUERY, _RESULT, _AUTH_RESPONSE, _AUTH_SUCCESS = (
    0x00,
    0x01,
    0x02,
    0x03,
    0x07,
    0x08,
    0x0F,
    0x10,
)
_HEADER = struct.Struct("!BBhBI")


class Refused(Exception):
    """The node answered, but not what was asked for; the message is its own."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to get in: credentials where the node asks for them, a TLS context where it speaks TLS."""

    user: str = ""
    password: str = ""
    tls: ssl.SSLContext | None = None


def ask(
    address: str,
    port: int,
    statement: str,
    consistency: int = ONE,
    access: Access | None = None,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Run one statement on one node, over a connection of its own, and forget its rows.

    Raises:
        OSError: the node does not accept connections, or went silent for ``timeout_s`` seconds.
        Refused: it answered with an error.
    """
    access = access or Access()
    with socket.create_connection((address, port), timeout_s) as plain:
        if access.tls is None:
            _run(plain, statement, consistency, access)
        else:
            with access.tls.wrap_socket(plain, server_hostname=address) as secured:
                _run(secured, statement, consistency, access)


def _run(link: socket.socket, statement: str, consistency: int, access: Access) -> None:
    version = _text("CQL_VERSION") + _text("3.0.0")
    kind, _ = _exchange(link, _STARTUP, struct.pack("!H", 1) + version)
    if kind == _AUTHENTICATE:
        credentials = f"\0{access.user}\0{access.password}".encode()
        kind, _ = _exchange(link, _AUTH_RESPONSE, struct.pack("!I", len(credentials)) + credentials)
    if kind not in (_READY, _AUTH_SUCCESS):
        raise Refused(f"the node answered a login with opcode {kind}")
    text = statement.encode()
    kind, _ = _exchange(link, _QUERY, struct.pack("!I", len(text)) + text + struct.pack("!HB", consistency, 0))
    if kind != _RESULT:
        raise Refused(f"the node answered a statement with opcode {kind}")


def _exchange(link: socket.socket, opcode: int, body: bytes) -> tuple[int, bytes]:
    """Send one request and read its answer: opcode and body."""
    link.sendall(_HEADER.pack(_REQUEST, 0, 0, opcode, len(body)) + body)
    _, _, _, kind, length = _HEADER.unpack(_read(link, _HEADER.size))
    answer = _read(link, length)
    if kind == _ERROR:
        code, text_bytes = struct.unpack_from("!IH", answer)
        raise Refused(f"{answer[6 : 6 + text_bytes].decode(errors='replace')} (code {code:#06x})")
    return kind, answer


def _read(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = link.recv(count - len(data))
        if not chunk:
            raise ConnectionError("the node closed the connection in the middle of an answer")
        data += chunk
    return data


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("!H", len(data)) + data
