"""The header by which a load balancer tells whose connection it forwards: PROXY protocol, version 2. Without I/O.

The specification is HAProxy's ``doc/proxy-protocol.txt``; its section 2.2 describes version 2, the only one taken here.
Such a header is 16 fixed bytes, the last two of which say how many follow: addresses, then extensions, which mean
nothing to us and are passed over. A reader asks ``missing_bytes`` how many bytes it still has to read, so that it never
takes a byte of what comes behind the header.
"""

import socket
from typing import Final

from msgspec import Struct

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
"""How a header begins: 12 bytes that no other protocol begins with."""

PREFIX_BYTES: Final = 16
"""Signature, version with command, family with transport, and the length of what follows."""

FOLLOWING_BYTES_MAX: Final = 4096
"""Bytes of addresses and extensions, of the 65,535 that the format could say: the longest in use (a client
certificate's names, a cloud's identifiers) take some hundreds."""

_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_UNSPECIFIED: Final = 0x00
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_UNIX: Final = 0x31

_ADDRESS_BYTES: Final = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX: 216}
"""Bytes of both addresses (and ports) by family and transport."""


class ProxyHeaderError(Exception):
    """The bytes are no acceptable header; the message says what was found and what is allowed."""


class Source(Struct, frozen=True):
    """Where a connection comes from: an address as text (IPv4 or IPv6), and a port."""

    host: str
    port: int

    @property
    def family(self) -> socket.AddressFamily:
        """The kind of address, as sockets name it."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


def missing_bytes(data: bytes) -> int:
    """How many bytes are still to be read until ``data`` is a whole header, or shows how long it is; 0: it is whole.

    Raises:
        ProxyHeaderError: no header begins with these bytes; as early as they show it.
    """
    if not SIGNATURE.startswith(data[: len(SIGNATURE)]):
        raise ProxyHeaderError("it does not begin with a PROXY protocol v2 header: let the load balancer send one")
    if len(data) > 12 and data[12] not in (_LOCAL, _PROXY):
        raise ProxyHeaderError(f"version and command 0x{data[12]:02x}: version 2, LOCAL or PROXY, is allowed")
    # A LOCAL header's family means nothing, so anything may stand there (section 2.2, "must be ignored").
    if len(data) > 13 and data[12] == _PROXY and data[13] not in _ADDRESS_BYTES:
        raise ProxyHeaderError(f"family and transport 0x{data[13]:02x}: TCP over IPv4 or IPv6, or none, is allowed")
    if len(data) < PREFIX_BYTES:
        return PREFIX_BYTES - len(data)
    following = int.from_bytes(data[14:16], "big")
    if following > FOLLOWING_BYTES_MAX:
        raise ProxyHeaderError(f"a header of {following} bytes: no more than {FOLLOWING_BYTES_MAX} are allowed")
    if data[12] == _PROXY and following < _ADDRESS_BYTES[data[13]]:
        needed = _ADDRESS_BYTES[data[13]]
        raise ProxyHeaderError(f"{following} bytes of addresses: this family has {needed}")
    return max(PREFIX_BYTES + following - len(data), 0)


def source_of(header: bytes) -> Source | None:
    """The client that a whole header names.

    None when it names none: the load balancer speaks for itself (LOCAL: a health check), or does not know the client's
    address, or the client came by a Unix socket. The connection's own address counts then.

    Raises:
        ProxyHeaderError: see ``missing_bytes``.
    """
    missing = missing_bytes(header)
    assert not missing, "the header is not complete"
    if header[12] == _LOCAL:
        return None
    addresses = header[PREFIX_BYTES:]
    if header[13] == _TCP4:
        return Source(socket.inet_ntop(socket.AF_INET, addresses[:4]), int.from_bytes(addresses[8:10], "big"))
    if header[13] == _TCP6:
        return Source(socket.inet_ntop(socket.AF_INET6, addresses[:16]), int.from_bytes(addresses[32:34], "big"))
    return None
