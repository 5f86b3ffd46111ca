"""Headers of load balancers: whole, byte by byte, with what follows, and wrong in every field."""

import ipaddress
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.edge.proxy_protocol import (
    FOLLOWING_BYTES_MAX,
    PREFIX_BYTES,
    SIGNATURE,
    ProxyHeaderError,
    Source,
    missing_bytes,
    source_of,
)

LOCAL, PROXY = 0x20, 0x21
UNSPECIFIED, TCP4, UDP4, TCP6, UDP6, UNIX = 0x00, 0x11, 0x12, 0x21, 0x22, 0x31

# An example of the specification's kind: 192.0.2.1:56324 speaks to 198.51.100.2:443.
EXAMPLE = SIGNATURE + bytes.fromhex("21 11 000c  c0000201 c6336402 dc04 01bb")


def header(command: int = PROXY, family: int = TCP4, following: bytes = bytes(12), length: int | None = None) -> bytes:
    said = len(following) if length is None else length
    return SIGNATURE + bytes([command, family]) + said.to_bytes(2, "big") + following


def forwarded(source: Source, extensions: bytes = b"") -> bytes:
    family = socket.AF_INET6 if ":" in source.host else socket.AF_INET
    host = socket.inet_pton(family, source.host)
    ports = source.port.to_bytes(2, "big") + (443).to_bytes(2, "big")
    return header(PROXY, TCP6 if ":" in source.host else TCP4, host + bytes(len(host)) + ports + extensions)


sources = st.builds(Source, st.ip_addresses().map(str), st.integers(0, 65535))
extensions = st.binary(max_size=FOLLOWING_BYTES_MAX - 36)


def read_as_told(data: bytes) -> tuple[bytes, bytes]:
    """Read no more than asked for, as the node does: the header, and what is left."""
    read = b""
    while missing := missing_bytes(read):
        assert len(data) >= missing, "asks for bytes that do not belong to the header"
        read, data = read + data[:missing], data[missing:]
    return read, data


def test_an_example() -> None:
    assert source_of(EXAMPLE) == Source("192.0.2.1", 56324)


@given(sources, extensions, st.binary(max_size=64))
def test_the_client_is_told_and_nothing_behind_the_header_is_touched(
    source: Source, more: bytes, following: bytes
) -> None:
    whole = forwarded(source, more)
    assert read_as_told(whole + following) == (whole, following)
    found = source_of(whole)
    assert found is not None
    assert ipaddress.ip_address(found.host) == ipaddress.ip_address(source.host)
    assert found.port == source.port
    assert found.family == (socket.AF_INET6 if ":" in source.host else socket.AF_INET)


@given(sources, st.binary(max_size=64))
def test_every_beginning_of_a_header_is_acceptable_and_incomplete(source: Source, more: bytes) -> None:
    whole = forwarded(source, more)
    for end in range(len(whole)):
        missing = missing_bytes(whole[:end])
        assert 0 < missing <= len(whole) - end
        assert missing == (len(whole) if end >= PREFIX_BYTES else PREFIX_BYTES) - end
    assert missing_bytes(whole) == 0


@pytest.mark.parametrize(
    "whole",
    [
        header(LOCAL, UNSPECIFIED, b""),
        header(LOCAL, 0xFF, b"whatever"),
        header(LOCAL, TCP4, EXAMPLE[PREFIX_BYTES:]),
        header(PROXY, UNSPECIFIED, b""),
        header(PROXY, UNSPECIFIED, b"extensions"),
        header(PROXY, UNIX, bytes(216)),
    ],
    ids=["local", "local of no family", "local with addresses", "unknown", "unknown with extensions", "unix"],
)
def test_a_header_that_names_nobody(whole: bytes) -> None:
    assert read_as_told(whole + b"GET") == (whole, b"GET")
    assert source_of(whole) is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"G", "does not begin"),
        (b"GET / HTTP/1.1\r\n\r\n", "does not begin"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", "does not begin"),  # version 1
        (SIGNATURE[:11] + b"\r", "does not begin"),
        (SIGNATURE + b"\x11", "version and command 0x11"),
        (SIGNATURE + b"\x22", "version and command 0x22"),
        (header(family=UDP4), "0x12"),
        (header(family=UDP6, following=bytes(36)), "0x22"),
        (header(family=0x41), "0x41"),
        (header(following=bytes(11)), "11 bytes of addresses: this family has 12"),
        (header(family=TCP6, following=bytes(12)), "this family has 36"),
        (header(family=UNIX, following=bytes(215)), "this family has 216"),
        (header(length=FOLLOWING_BYTES_MAX + 1), f"no more than {FOLLOWING_BYTES_MAX}"),
        (header(LOCAL, length=65535), "65535 bytes"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, said: str) -> None:
    with pytest.raises(ProxyHeaderError, match=said):
        missing_bytes(data)
    with pytest.raises(ProxyHeaderError, match=said):
        source_of(data)


@given(st.binary(max_size=300))
@example(EXAMPLE)
@example(header(length=FOLLOWING_BYTES_MAX))
def test_garbage_raises_nothing_but_the_documented_error(data: bytes) -> None:
    for start in (b"", SIGNATURE, SIGNATURE + b"\x21", SIGNATURE + b"\x21\x21\x00"):
        try:
            missing = missing_bytes(start + data)
        except ProxyHeaderError:
            continue
        if not missing:
            source_of(start + data)


@given(st.binary(min_size=1, max_size=40))
def test_no_beginning_is_refused_that_could_still_be_a_header(data: bytes) -> None:
    """What is refused stays refused, and what is not can be completed."""
    refused = False
    for end in range(1, len(data) + 1):
        try:
            missing_bytes(data[:end])
        except ProxyHeaderError:
            refused = True
        else:
            assert not refused
