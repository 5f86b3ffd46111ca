"""The opening handshake of WebSocket (RFC 6455 section 4) for the side that is connected to, without I/O.

Reads the head of an HTTP/1.1 request (RFC 9112), strictly: what two readers could understand differently is refused.
Every connection passes through here once, and a reconnect storm is thousands of them a second; so the ordinary upgrade
request is read with a handful of calls, and explanations are worked out only for requests that are refused.
"""

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable
from hashlib import sha1
from http import HTTPStatus
from typing import Final

from msgspec import Struct

WEBSOCKET_VERSION: Final = "13"
KEY_BYTES: Final = 16
"""Bytes of a decoded Sec-WebSocket-Key (RFC 6455 section 4.1)."""

_ACCEPT_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3

# RFC 9110 sections 5.5 and 5.6.2; bytes from 0x80 are "obs-text", allowed in values and read as Latin-1.
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST_LINE: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/([0-9])\.([0-9])")
_TEXT_BYTES: Final = bytes((0x09, *range(0x20, 0x7F), *range(0x80, 0x100)))
_NOT_A_HEAD: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])|\A[\r\n]")

# The usual spellings of the usual names need neither a check nor a new lower-case string.
_USUAL_NAMES: Final = {
    spelling: name.lower()
    for name in (
        *("Host", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol"),
        *("Sec-WebSocket-Extensions", "Authorization", "User-Agent", "Origin", "Accept", "Accept-Encoding"),
        *("Accept-Language", "Cache-Control", "Pragma", "Content-Type", "Content-Length", "X-Forwarded-For"),
    )
    for spelling in (name, name.lower(), name.replace("WebSocket", "Websocket"))
}


class BadRequest(Exception):
    """The bytes are no acceptable HTTP request head; answer with ``status`` and close.

    Attributes:
        status: the HTTP status code to answer with: 400, 431 or 505.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UpgradeRefused(Exception):
    """A well-formed request to upgrade that cannot be granted; answer with ``status`` and ``headers``, then close.

    Attributes:
        status: the HTTP status code to answer with: 400, 405 or 426.
        headers: further header fields of the answer.
    """

    def __init__(self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class RequestHead(Struct, frozen=True):
    """The head of an HTTP request.

    Attributes:
        method: as sent, ``GET`` for instance.
        target: as sent, path and query for instance.
        headers: values by lower-case name, without surrounding white space; repeated fields are joined by ``", "``.
        length: bytes of the head, its closing blank line included; what follows is body.
        minor_version: 1 for HTTP/1.1, 0 for HTTP/1.0.
    """

    method: str
    target: str
    headers: dict[str, str]
    length: int
    minor_version: int = 1


class Upgrade(Struct, frozen=True, gc=False):
    """A granted upgrade: the subprotocol chosen (empty: none) and the value of Sec-WebSocket-Accept."""

    subprotocol: str
    accept: str


def parse_request_head(data: bytes, limit: int) -> RequestHead | None:
    """Read a request head from the beginning of ``data``; None when it is not complete yet.

    Args:
        data: all bytes received so far.
        limit: bytes that a head may have, its closing blank line included.

    Raises:
        BadRequest: not a head (400, as early as the bytes show it), larger than ``limit`` (431), or of another version
            than HTTP/1.0 and 1.1 (505).
    """
    end = data.find(b"\r\n\r\n", 0, limit)
    if end < 0:
        _refuse_incomplete(data, limit)
        return None
    raw = data[:end]
    lines = raw.decode("latin-1").split("\r\n")
    # Besides text there are just the line ends that were split at: no control character, no lone CR or LF.
    if raw.translate(None, _TEXT_BYTES) != b"\r\n" * (len(lines) - 1):
        raise _control_character(data)
    first = _REQUEST_LINE.fullmatch(lines[0])
    if first is None:
        raise BadRequest(400, f"bad request line {_shown(lines[0])}: write METHOD TARGET HTTP/1.1")
    method, target, major, minor = first.groups()
    if major != "1":
        raise BadRequest(505, f"HTTP/{major}.{minor} is not spoken here: use HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        lower = _USUAL_NAMES.get(name) or _lower_name(name, line)
        if not colon:
            raise BadRequest(400, f"header line {_shown(line)} has no colon: write NAME: VALUE")
        value = value.strip(" \t")
        headers[lower] = value if lower not in headers else _joined(lower, headers[lower], value)
    if "host" not in headers and minor != "0":
        raise BadRequest(400, "there is no Host header: HTTP/1.1 requires exactly one")
    return RequestHead(method, target, headers, end + 4, 0 if minor == "0" else 1)


def is_upgrade(head: RequestHead) -> bool:
    """Whether the request asks for WebSocket (it may still ask for it wrongly: see ``accept_upgrade``)."""
    upgrade = head.headers.get("upgrade")
    return upgrade is not None and (upgrade == "websocket" or "websocket" in _tokens(upgrade.lower()))


def accept_upgrade(head: RequestHead, subprotocols: tuple[str, ...]) -> Upgrade:
    """Check a request to upgrade and work out the answer.

    Args:
        head: a request for which ``is_upgrade`` is true.
        subprotocols: those spoken here; the client's first that is among them is chosen. Empty: none is negotiated.

    Raises:
        UpgradeRefused: 405 another method than GET, 426 another WebSocket version than 13, 400 anything else.
    """
    headers = head.headers
    if head.method != "GET":
        raise UpgradeRefused(405, f"method {_shown(head.method)} cannot upgrade: use GET", (("Allow", "GET"),))
    if head.minor_version == 0:
        raise UpgradeRefused(400, "HTTP/1.0 cannot upgrade: use HTTP/1.1")
    connection = headers.get("connection", "")
    if connection != "Upgrade" and "upgrade" not in _tokens(connection.lower()):
        raise UpgradeRefused(400, f"Connection header {_shown(connection)} does not say Upgrade: send it")
    version = headers.get("sec-websocket-version", "")
    if version != WEBSOCKET_VERSION:
        raise UpgradeRefused(
            426,
            f"WebSocket version {_shown(version)} is not spoken here: send Sec-WebSocket-Version: {WEBSOCKET_VERSION}",
            (("Upgrade", "websocket"), ("Sec-WebSocket-Version", WEBSOCKET_VERSION)),
        )
    accept = _accept(headers.get("sec-websocket-key", ""))
    return Upgrade(_choose(headers.get("sec-websocket-protocol", ""), subprotocols), accept)


def upgrade_response(upgrade: Upgrade) -> bytes:
    """The response that grants an upgrade; WebSocket frames may follow at once."""
    protocol = f"\r\nSec-WebSocket-Protocol: {upgrade.subprotocol}" if upgrade.subprotocol else ""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {upgrade.accept}{protocol}\r\n\r\n"
    ).encode("ascii")


def error_response(status: int, message: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A complete response that refuses a request, with ``message`` as its text; the connection is closed after it.

    Args:
        status: HTTP status code, 400 to 599.
        message: one line for the person who debugs the client.
        headers: further header fields; an Upgrade field is announced in Connection, as RFC 9110 section 7.8 asks.
    """
    body = (message + "\n").encode()
    fields = list(headers)
    upgrade = ", Upgrade" if any(name.lower() == "upgrade" for name, _ in fields) else ""
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Connection: close{upgrade}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in fields),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def _accept(key: str) -> str:
    """The value of Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455 section 4.2.2)."""
    try:
        ascii_key = key.encode("ascii")
        size = len(a2b_base64(ascii_key, strict_mode=True))
    except (UnicodeEncodeError, Base64Error):
        size = -1
    if size != KEY_BYTES:
        raise UpgradeRefused(400, f"Sec-WebSocket-Key {_shown(key)} is not {KEY_BYTES} bytes in base64")
    digest = sha1(ascii_key + _ACCEPT_GUID, usedforsecurity=False).digest()
    return b2a_base64(digest, newline=False).decode("ascii")


def _choose(offered: str, spoken: tuple[str, ...]) -> str:
    if offered in spoken or not spoken:
        return offered if spoken else ""
    for name in _tokens(offered):
        if name in spoken:
            return name
    raise UpgradeRefused(
        400,
        f"Sec-WebSocket-Protocol {_shown(offered)} names no subprotocol that is spoken here: "
        f"offer {' or '.join(spoken)}",
    )


def _tokens(value: str) -> list[str]:
    return [token.strip(" \t") for token in value.split(",")]


def _joined(name: str, before: str, value: str) -> str:
    if name == "host":
        raise BadRequest(400, "there are several Host headers: HTTP/1.1 requires exactly one")
    return f"{before}, {value}"


def _lower_name(name: str, line: str) -> str:
    if _TOKEN.fullmatch(name) is not None:
        return name.lower()
    if line[:1] in (" ", "\t"):
        raise BadRequest(400, f"header line {_shown(line)} continues the one before: write each header on one line")
    raise BadRequest(400, f"header name {_shown(name)} is not a name: letters, digits and hyphens, then a colon")


def _refuse_incomplete(data: bytes, limit: int) -> None:
    """Refuse what can no longer become a head: a TLS greeting, say, must not wait for a deadline."""
    found = _NOT_A_HEAD.search(data, 0, limit)
    if found is not None:
        raise _control_character(data)
    if len(data) >= limit:
        raise BadRequest(431, f"the request head is larger than {limit} bytes: send fewer or shorter headers")


def _control_character(data: bytes) -> BadRequest:
    found = _NOT_A_HEAD.search(data)
    assert found is not None, "called for bytes without a control character or a lone CR or LF"
    place = found.start()
    return BadRequest(400, f"byte 0x{data[place]:02x} at offset {place} of the request head: not HTTP")


def _shown(text: str) -> str:
    """At most 64 characters of what the peer sent, quoted, printable and ASCII."""
    return ascii(text if len(text) <= 64 else text[:61] + "...")
