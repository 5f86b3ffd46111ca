"""The opening handshake: read whole, byte by byte and with trailing bytes; refused for each thing that can be wrong."""

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.handshake import (
    BadRequest,
    RequestHead,
    Upgrade,
    UpgradeRefused,
    accept_upgrade,
    error_response,
    is_upgrade,
    parse_request_head,
    upgrade_response,
)

LIMIT = 4096
SPOKEN = ("tidegate.v1", "tidegate.v1.json")

# The example of RFC 6455 section 1.3, key and answer included.
RFC_REQUEST = (
    b"GET /v1/connect?device=phone HTTP/1.1\r\n"
    b"Host: chat.example.org\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: chat, tidegate.v1\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"\r\n"
)


def request(*lines: str, first: str = "GET / HTTP/1.1", host: str | None = "Host: a") -> bytes:
    return "\r\n".join([first, *([host] if host else []), *lines, "", ""]).encode("latin-1")


def head_of(*changes: tuple[str, str | None], method: str = "GET", minor_version: int = 1) -> RequestHead:
    """A valid upgrade request with some header fields changed, or left out when None."""
    headers: dict[str, str | None] = {
        "host": "a",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version": "13",
        "sec-websocket-protocol": "tidegate.v1",
    } | dict(changes)
    kept = {name: value for name, value in headers.items() if value is not None}
    return RequestHead(method, "/v1/connect", kept, 0, minor_version)


def test_request_of_the_rfc_is_read_and_answered() -> None:
    head = parse_request_head(RFC_REQUEST, LIMIT)
    assert head is not None
    assert (head.method, head.target, head.length) == ("GET", "/v1/connect?device=phone", len(RFC_REQUEST))
    assert head.headers["sec-websocket-protocol"] == "chat, tidegate.v1"
    assert is_upgrade(head)
    assert upgrade_response(accept_upgrade(head, SPOKEN)) == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"Sec-WebSocket-Protocol: tidegate.v1\r\n"
        b"\r\n"
    )


def test_head_is_incomplete_up_to_its_last_byte() -> None:
    for size in range(len(RFC_REQUEST)):
        assert parse_request_head(RFC_REQUEST[:size], LIMIT) is None


def test_what_follows_the_head_is_left_alone() -> None:
    head = parse_request_head(RFC_REQUEST + b"\x82\x80\x00\n\r\n\r\n", LIMIT)
    assert head is not None
    assert head.length == len(RFC_REQUEST)
    assert head == parse_request_head(RFC_REQUEST, LIMIT)


def test_names_are_lower_case_values_stripped_repeats_joined() -> None:
    head = parse_request_head(request("X-Thing: \t one \t", "x-THING:two", "Empty:", "Latin: caf\xe9"), LIMIT)
    assert head is not None
    assert head.headers == {"host": "a", "x-thing": "one, two", "empty": "", "latin": "café"}


def test_http_1_0_without_host_is_read() -> None:
    head = parse_request_head(request(first="GET /health/live HTTP/1.0", host=None), LIMIT)
    assert head is not None
    assert head.minor_version == 0


@pytest.mark.parametrize(
    ("data", "status", "part"),
    [
        (b"\x16\x03\x01\x02\x00", 400, "byte 0x16 at offset 0"),  # a TLS greeting
        (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad request line ''"),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400, "byte 0x0a at offset 14"),
        (b"GET / HTTP/1.1\r\r\n\r\n", 400, "byte 0x0d at offset 14"),
        (b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", 400, "byte 0x0d at offset 23"),
        (b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n", 400, "byte 0x00 at offset 23"),
        (b"GET / HTTP/1.1\r\nHost: a\x7f\r\n\r\n", 400, "byte 0x7f at offset 23"),
        (b"\r\n\r\n", 400, "bad request line ''"),
        (b"hello\r\n\r\n", 400, "bad request line 'hello'"),
        (b"GET  / HTTP/1.1\r\n\r\n", 400, "bad request line"),
        (b"GET / HTTP/1.1 \r\n\r\n", 400, "bad request line"),
        (b"GET /\xe9 HTTP/1.1\r\n\r\n", 400, "bad request line"),
        (b"G(T / HTTP/1.1\r\n\r\n", 400, "bad request line"),
        (b"GET / HTTP/1\r\n\r\n", 400, "bad request line"),
        (b"GET / http/1.1\r\n\r\n", 400, "bad request line"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/2.0 is not spoken here: use HTTP/1.1"),
        (b"GET / HTTP/0.9\r\n\r\n", 505, "HTTP/0.9"),
        (request("no colon here"), 400, "header name 'no colon here'"),
        (request("nocolon"), 400, "header line 'nocolon' has no colon"),
        (request("Upgrade"), 400, "header line 'Upgrade' has no colon"),
        (request("Name : value"), 400, "header name 'Name '"),
        (request("Na me: value"), 400, "header name 'Na me'"),
        (request(": value"), 400, "header name ''"),
        (request("Na\xefve: value"), 400, "header name 'Na\\xefve'"),
        (request("Thing: one", " two: three"), 400, "continues the one before"),
        (request("Thing: one", "\ttwo"), 400, "continues the one before"),
        (request(host=None), 400, "no Host header"),
        (request("host: b"), 400, "several Host headers"),
    ],
)
def test_bad_heads_are_refused(data: bytes, status: int, part: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request_head(data, LIMIT)
    assert caught.value.status == status
    assert part in str(caught.value)


def test_size_limit_is_exact() -> None:
    assert parse_request_head(RFC_REQUEST, len(RFC_REQUEST)) is not None
    with pytest.raises(BadRequest) as caught:
        parse_request_head(RFC_REQUEST, len(RFC_REQUEST) - 1)
    assert caught.value.status == 431
    assert f"larger than {len(RFC_REQUEST) - 1} bytes" in str(caught.value)


def test_endless_head_is_refused_at_the_limit() -> None:
    assert parse_request_head(b"GET /" + b"x" * 94, 100) is None
    with pytest.raises(BadRequest) as caught:
        parse_request_head(b"GET /" + b"x" * 95, 100)
    assert caught.value.status == 431


def test_garbage_is_refused_before_it_is_complete() -> None:
    with pytest.raises(BadRequest):
        parse_request_head(b"GET / HTTP/1.1\r\nHost: \x01", LIMIT)


@given(st.binary(max_size=200))
def test_any_bytes_raise_only_bad_request(data: bytes) -> None:
    for tail in (b"", b"\r\n\r\n"):
        with contextlib.suppress(BadRequest):
            parse_request_head(data + tail, 100)


NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,12}", fullmatch=True).filter(lambda name: name != "host")
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)


@given(st.dictionaries(NAMES, VALUES, max_size=8), st.binary(max_size=20))
def test_any_headers_survive(headers: dict[str, str], trailing: bytes) -> None:
    data = request(*(f"{name}: {value}" for name, value in headers.items()))
    head = parse_request_head(data + trailing, LIMIT)
    assert head is not None
    assert head.headers == {"host": "a"} | headers
    assert head.length == len(data)


@pytest.mark.parametrize(
    ("upgrade", "expected"),
    [(None, False), ("websocket", True), ("WebSocket", True), ("h2c, websocket", True), ("h2c", False), ("", False)],
)
def test_is_upgrade(upgrade: str | None, expected: bool) -> None:
    assert is_upgrade(head_of(("upgrade", upgrade))) is expected


@pytest.mark.parametrize(
    ("head", "status", "part", "headers"),
    [
        (head_of(method="POST"), 405, "method 'POST' cannot upgrade: use GET", (("Allow", "GET"),)),
        (head_of(minor_version=0), 400, "HTTP/1.0 cannot upgrade", ()),
        (head_of(("connection", None)), 400, "Connection header '' does not say Upgrade", ()),
        (head_of(("connection", "keep-alive")), 400, "Connection header 'keep-alive'", ()),
        (
            head_of(("sec-websocket-version", "8")),
            426,
            "version '8' is not spoken here: send Sec-WebSocket-Version: 13",
            (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")),
        ),
        (
            head_of(("sec-websocket-version", None)),
            426,
            "version ''",
            (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")),
        ),
        (head_of(("sec-websocket-key", None)), 400, "Sec-WebSocket-Key '' is not 16 bytes in base64", ()),
        (head_of(("sec-websocket-key", "c2hvcnQ=")), 400, "Sec-WebSocket-Key 'c2hvcnQ='", ()),
        (head_of(("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ")), 400, "Sec-WebSocket-Key", ()),
        (head_of(("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==, x")), 400, "Sec-WebSocket-Key", ()),
        (head_of(("sec-websocket-key", "\xe9\xe9")), 400, "Sec-WebSocket-Key '\\xe9\\xe9'", ()),
        (
            head_of(("sec-websocket-protocol", None)),
            400,
            "names no subprotocol that is spoken here: offer tidegate.v1 or tidegate.v1.json",
            (),
        ),
        (head_of(("sec-websocket-protocol", "chat, mqtt")), 400, "Sec-WebSocket-Protocol 'chat, mqtt'", ()),
    ],
)
def test_upgrades_are_refused(head: RequestHead, status: int, part: str, headers: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(UpgradeRefused) as caught:
        accept_upgrade(head, SPOKEN)
    assert caught.value.status == status
    assert part in str(caught.value)
    assert caught.value.headers == headers


@pytest.mark.parametrize(
    ("offered", "spoken", "chosen"),
    [
        ("tidegate.v1.json", SPOKEN, "tidegate.v1.json"),
        ("mqtt,tidegate.v1.json , tidegate.v1", SPOKEN, "tidegate.v1.json"),
        ("chat", (), ""),
        (None, (), ""),
    ],
)
def test_client_s_first_spoken_subprotocol_is_chosen(offered: str | None, spoken: tuple[str, ...], chosen: str) -> None:
    upgrade = accept_upgrade(head_of(("sec-websocket-protocol", offered)), spoken)
    assert upgrade.subprotocol == chosen
    assert (b"Sec-WebSocket-Protocol" in upgrade_response(upgrade)) == bool(chosen)


def test_connection_header_may_be_a_list() -> None:
    assert isinstance(accept_upgrade(head_of(("connection", "keep-alive, upgrade")), SPOKEN), Upgrade)


@given(st.binary(min_size=16, max_size=16))
def test_any_key_of_16_bytes_is_accepted(key: bytes) -> None:
    head = head_of(("sec-websocket-key", base64.b64encode(key).decode()))
    assert len(base64.b64decode(accept_upgrade(head, SPOKEN).accept)) == 20


def test_long_input_is_shown_shortened() -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request_head(b"x" * 3000 + b"\r\n\r\n", LIMIT)
    assert "..." in str(caught.value)
    assert len(str(caught.value)) < 200


def test_error_response_is_complete() -> None:
    assert error_response(503, "full: try again in 5 s", [("Retry-After", "5")]) == (
        b"HTTP/1.1 503 Service Unavailable\r\n"
        b"Connection: close\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 23\r\n"
        b"Retry-After: 5\r\n"
        b"\r\n"
        b"full: try again in 5 s\n"
    )


def test_error_response_announces_an_upgrade_field() -> None:
    assert b"\r\nConnection: close, Upgrade\r\n" in error_response(426, "version", [("Upgrade", "websocket")])
