"""What comes before a request: the header of a load balancer, then TLS. Nodes that need neither have no entrance."""

import ipaddress
import socket
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import trio

from gateway.config import Settings
from gateway.edge.proxy_protocol import ProxyHeaderError, missing_bytes, source_of
from gateway.edge.tls import TlsServer, shake_hands
from gateway.observe.seldom import Seldom
from protocol.handshake import error_response

REMEMBERED_ADDRESSES: Final = 1024
"""Addresses of which it is remembered whether they are a load balancer's."""

Peer = tuple[Any, ...]
"""A socket address: host, port, and for IPv6 two numbers more."""


class Arrival:
    """A socket on its way to become a connection.

    Attributes:
        sock: what is read and written; TLS around the accepted socket, once that has begun.
        peer: where the client is: the socket's other end, or whom a load balancer named.
        entering: whether the entrance is still to be passed.
        header: what was read of a load balancer's header; None when it needs none.
    """

    __slots__ = ("entering", "header", "peer", "sock")

    def __init__(self, sock: socket.socket, peer: Peer, *, entering: bool = False) -> None:
        self.sock = sock
        self.peer = peer
        self.entering = entering
        self.header: bytes | None = None


class NotLetIn(Exception):
    """This arrival ends here; ``answer`` are its last bytes, if it would understand any."""

    def __init__(self, answer: bytes = b"") -> None:
        super().__init__()
        self.answer = answer


class Entrance:
    """Reads headers of load balancers, begins TLS, counts who fails.

    Attributes:
        headers_refused: connections closed because they did not begin with an acceptable header, ever.
        tls_failed: TLS handshakes that failed, ever.
    """

    def __init__(self, networks: Sequence[str], tls: TlsServer | None) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._tls = tls
        self.trusts = lru_cache(REMEMBERED_ADDRESSES)(self._trusts)
        self.headers_refused = 0
        self.tls_failed = 0
        self._seldom = Seldom()

    @classmethod
    def from_settings(cls, settings: Settings) -> "Entrance | None":
        """The entrance that the settings ask for, if any. Raises TlsMisconfigured."""
        if not settings.proxy_protocol_from and not settings.tls_cert:
            return None
        tls = TlsServer(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
        return cls(settings.proxy_protocol_from, tls)

    def _trusts(self, host: str) -> bool:
        address = ipaddress.ip_address(host.partition("%")[0])  # a link-local address names its interface
        return any(address in network for network in self._networks)

    def begin(self, arrival: Arrival) -> bool:
        """Do what can be done at once; whether that was all. Raises NotLetIn or OSError."""
        if self.trusts(arrival.peer[0]):
            arrival.header = b""
        try:
            self._read_header(arrival)
        except BlockingIOError:
            return False
        arrival.entering = self._tls is not None
        return not arrival.entering

    async def finish(self, arrival: Arrival) -> None:
        """Do what ``begin`` could not. Raises NotLetIn or OSError.

        Cancelling leaves ``arrival.sock`` open, of no more use.
        """
        while True:
            try:
                self._read_header(arrival)
                break
            except BlockingIOError:
                await trio.lowlevel.wait_readable(arrival.sock)
        if self._tls is not None:
            await self._begin_tls(self._tls, arrival)
        arrival.entering = False

    def _read_header(self, arrival: Arrival) -> None:
        """Read a load balancer's header, exactly; others have none to read. Raises BlockingIOError to be continued."""
        if arrival.header is None:
            return
        try:
            while missing := missing_bytes(arrival.header):
                data = arrival.sock.recv(missing)
                if not data:
                    raise NotLetIn
                arrival.header += data
            source = source_of(arrival.header)
        except ProxyHeaderError as error:
            self.headers_refused += 1
            self._tell("load balancer's header refused", arrival, str(error))
            raise NotLetIn from None
        if source is not None:
            arrival.peer = (source.host, source.port)
        arrival.header = None

    async def _begin_tls(self, tls: TlsServer, arrival: Arrival) -> None:
        arrival.sock = sock = tls.wrap(arrival.sock)
        try:
            await shake_hands(sock)
        except OSError as error:
            self.tls_failed += 1
            reason = getattr(error, "reason", None) or str(error)
            self._tell("TLS handshake failed", arrival, reason)
            if reason != "HTTP_REQUEST":
                raise NotLetIn from None
            # Who speaks plain HTTP is told so in plain HTTP.
            arrival.sock = socket.socket(fileno=sock.detach())
            raise NotLetIn(error_response(400, "this port speaks TLS: write https:// or wss://")) from None

    def _tell(self, event: str, arrival: Arrival, reason: str) -> None:
        self._seldom.warn(event, client=arrival.peer[0], reason=reason)
