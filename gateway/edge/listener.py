"""Accepting: WebSocket upgrades are answered here, every other request goes to the HTTP server.

The kernel hands over a socket when its first bytes are there (TCP_DEFER_ACCEPT), so nearly every handshake is one read
and one write, done at once without a task. A handshake that needs more (a head in pieces, a token in the first frame, a
key to be fetched) gets a task, a deadline and one of a bounded number of places; whoever is slow waits there and keeps
nobody else waiting.
"""

import errno
import socket
from collections.abc import Sequence
from urllib.parse import parse_qs

import structlog
import trio

from gateway.auth import TokenRefused, UnknownKey, Verifier
from gateway.config import Settings
from gateway.edge.connection import ConnectionTable
from gateway.edge.entrance import Arrival, Entrance, NotLetIn, Peer
from gateway.edge.farewell import farewell
from gateway.edge.first_frame import FirstFrame
from gateway.edge.ports import HttpPort
from gateway.edge.sessions import Sessions
from gateway.pausing import PausableLoop
from protocol import limits
from protocol.errors import CloseCode
from protocol.frames import SUBPROTOCOL, SUBPROTOCOL_JSON
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

CONNECT_PATH = "/v1/connect"

ACCEPTS_PER_SLICE = 16
"""Sockets accepted between two checkpoints: about 0.1 ms each with their handshake."""

DEFER_ACCEPT_S = 5
"""Seconds that the kernel keeps a socket to itself while its client sends nothing."""

BACKLOG = 4096
"""Connections the kernel queues for us: as many as it allows by default (net.core.somaxconn)."""

ACCEPT_PAUSE_S = 0.1
"""Seconds without accepting after the process or system ran out of descriptors."""

RETRY_AFTER_S = 5
"""Seconds that a client is told to stay away when the node is full; clients add jitter of their own."""

GOING_AWAY = "the node is going away"

NO_CLIENTS = "this node orders conversations and holds no connections (roles = owner)"

HANDSHAKES_CHECK_S = 0.005
"""Seconds between two looks at whether all handshakes are done, for an upgrade."""

log = structlog.get_logger(__name__)


class Refused(Exception):
    """A handshake that ends with an HTTP error: ``response`` is the whole answer."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.response = error_response(status, message, tuple(headers))


class Request:
    """An upgrade request whose form is accepted; whose token, if it has one, is not yet verified."""

    __slots__ = ("device", "json", "response", "token", "verifying")

    def __init__(self, upgrade: Upgrade, token: str, device: str) -> None:
        self.json = upgrade.subprotocol == SUBPROTOCOL_JSON
        self.response = upgrade_response(upgrade)
        self.token = token
        self.device = device
        self.verifying = bool(token)
        """Whether it is for the node, not for the client, to do the next step."""


def listen(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Listening sockets for every address of ``host``; ``shared``: other processes of this user listen there as well.

    Raises OSError (address in use, unknown host).
    """
    sockets: list[socket.socket] = []
    try:
        for family, kind, proto, _, address in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, kind, proto)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Accepted sockets inherit both (Linux), which saves system calls per connection.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT_S)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


class Listener:
    """Accepts sockets and shakes hands.

    Attributes:
        accepting: False while starting, and while draining, behind its lead: new upgrades get 503.
        why_not: what they are told then; empty: that the node is going away.
        refused: handshakes refused by HTTP status, ever.
        handshakes: handshakes that have a task now.
        accept_loop: may be paused; who connects waits in the kernel's queue then.
    """

    def __init__(
        self,
        settings: Settings,
        verifier: Verifier,
        sessions: Sessions,
        table: ConnectionTable,
        first_frame: FirstFrame,
        http: HttpPort,
        *,
        connections_max: int,
        entrance: Entrance | None = None,
    ) -> None:
        self._settings = settings
        self._verifier = verifier
        self._sessions = sessions
        self._table = table
        self._first_frame = first_frame
        self._http = http
        self._connections_max = connections_max
        self._entrance = entrance
        self._nursery: trio.Nursery
        self.accepting = True
        self.why_not = ""
        self.handshakes = 0
        self._upgraded = 0
        self._deadlines: set[trio.CancelScope] = set()
        self._putting_off = False
        self._sockets: Sequence[socket.socket] = ()
        self.accept_loop = PausableLoop(self._accept_for_ever)
        self.refused: dict[int, int] = {}

    async def run(self, sockets: Sequence[socket.socket], *, task_status: trio.TaskStatus[None]) -> None:
        """Accept for ever. A cancellation ends the handshakes in progress and leaves ``sockets`` open."""
        self._sockets = sockets
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self.accept_loop.run)
            task_status.started()

    async def _accept_for_ever(self) -> None:
        async with trio.open_nursery() as nursery:
            for sock in self._sockets:
                nursery.start_soon(self._accept_from, sock)

    async def _accept_from(self, listening: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(listening)
            self._table.now = trio.current_time()
            for _ in range(ACCEPTS_PER_SLICE):
                try:
                    sock, peer = listening.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        log.error("cannot accept", error=str(error), pause_s=ACCEPT_PAUSE_S)
                        await trio.sleep(ACCEPT_PAUSE_S)
                        break
                    continue  # that one connection ended before it was accepted (ECONNABORTED and kin)
                sock.setblocking(False)
                if self._entrance is None:
                    self._begin(sock, peer)
                else:
                    self._enter(self._entrance, Arrival(sock, peer, entering=True))

    def _enter(self, entrance: Entrance, arrival: Arrival) -> None:
        try:
            if entrance.begin(arrival):
                self._begin(arrival.sock, arrival.peer)
            else:
                self._continue_in_task(arrival, b"")
        except NotLetIn as ended:
            farewell(arrival.sock, ended.answer)
        except OSError:
            arrival.sock.close()
        except Exception:
            # As below: our bug, and one socket's only.
            log.exception("handshake failed", client=arrival.peer[0])
            arrival.sock.close()

    def _begin(self, sock: socket.socket, peer: Peer) -> None:
        try:
            data = sock.recv(self._settings.request_head_bytes_max)
        except BlockingIOError:
            self._continue_in_task(Arrival(sock, peer), b"")
            return
        except OSError:
            sock.close()
            return
        if not data:
            sock.close()
            return
        try:
            request = self._read_request(sock, data, peer)
            if request is not None and not (request.token and self._open_at_once(sock, request, peer)):
                self._continue_in_task(Arrival(sock, peer), b"", request)
        except Incomplete:
            self._continue_in_task(Arrival(sock, peer), data)
        except Refused as refused:
            self._refuse(sock, peer, refused)
        except Exception:
            # One socket must not end the listener: it is our bug, logged whole.
            log.exception("handshake failed", client=peer[0])
            sock.close()

    def _read_request(self, sock: socket.socket, data: bytes, peer: Peer) -> Request | None:
        """The upgrade request in ``data``; None when the socket was handed to the HTTP server.

        Raises Incomplete or Refused.
        """
        try:
            head = parse_request_head(data, self._settings.request_head_bytes_max)
            if head is None:
                raise Incomplete
            if not is_upgrade(head):
                self._http.hand_over(sock, data, peer)
                return None
            if head.length != len(data):
                # RFC 6455 section 4.1: a client waits for the answer. Whoever does not takes us for another server.
                raise Refused(400, "bytes follow the upgrade request: wait for the answer before you send frames")
            self._check_place(head)
            return Request(accept_upgrade(head, (SUBPROTOCOL, SUBPROTOCOL_JSON)), _bearer(head), self._device(head))
        except BadRequest as error:
            raise Refused(error.status, str(error)) from None
        except UpgradeRefused as error:
            raise Refused(error.status, str(error), error.headers) from None

    def _check_place(self, head: RequestHead) -> None:
        path = head.target.partition("?")[0]
        if path != CONNECT_PATH:
            raise Refused(404, f"no WebSocket endpoint at this path: connect to {CONNECT_PATH}")
        origin = head.headers.get("origin")
        if origin is not None and origin not in self._settings.allowed_origins:
            raise Refused(403, "this origin is not allowed: the operator lists origins in allowed_origins")
        if self._settings.roles == "owner":
            raise _come_back(NO_CLIENTS)
        if self._table.count + self._upgraded >= self._connections_max or not self.accepting:
            full = f"the node is full: it holds {self._connections_max} connections, the most allowed"
            raise _come_back(full if self.accepting else self.why_not or GOING_AWAY)

    def _device(self, head: RequestHead) -> str:
        query = head.target.partition("?")[2]
        if not query:
            return ""
        fields = parse_qs(query, keep_blank_values=True)
        if not fields.keys() <= {"device"}:
            # Tokens in URLs end up in logs; and a misspelt field would be ignored for ever.
            raise Refused(400, "the only query field is device; a token goes into the Authorization header")
        device = fields.get("device", [""])[-1]  # a query of nothing but ampersands has no field at all
        if len(device) > limits.DEVICE_ID_CHARS_MAX or not device.isprintable():
            raise Refused(400, f"device must be at most {limits.DEVICE_ID_CHARS_MAX} printable characters")
        return device

    def _open_at_once(self, sock: socket.socket, request: Request, peer: Peer) -> bool:
        """Open the connection if its token can be judged without waiting; raises Refused for a bad one."""
        try:
            identity = self._verifier.verify(request.token)
        except UnknownKey:
            return False
        except TokenRefused as error:
            raise _unauthorized(str(error)) from None
        self._sessions.open(sock, identity, request.device, json=request.json, greeting=request.response)
        log.debug("connection opened", user=identity.user, client=peer[0])
        return True

    def _continue_in_task(self, arrival: Arrival, data: bytes, request: Request | None = None) -> None:
        if self.handshakes >= self._settings.handshakes_max:
            many = f"{self.handshakes} handshakes are in progress, the most allowed; send a request at once"
            self._refuse(arrival.sock, arrival.peer, _come_back(many))
            return
        self.handshakes += 1
        self._upgraded += request is not None
        self._nursery.start_soon(self._shake_hands, arrival, data, request)

    async def _shake_hands(self, arrival: Arrival, data: bytes, request: Request | None) -> None:
        """A handshake that cannot be done at once. The socket is closed or handed on, whatever happens."""
        try:
            with trio.move_on_after(self._settings.handshake_timeout_s) as deadline:
                self._deadlines.add(deadline)
                if arrival.entering and self._entrance is not None:
                    await self._entrance.finish(arrival)
                if request is None:
                    request = await self._receive_request(arrival, data)
                    self._upgraded += request is not None
                if request is not None:
                    await self._finish(arrival, request)
            if deadline.cancelled_caught:
                self._too_late(arrival, request)
        except Refused as refused:
            self._refuse(arrival.sock, arrival.peer, refused)
        except NotLetIn as ended:
            farewell(arrival.sock, ended.answer)
        except OSError:
            arrival.sock.close()  # the peer went away
        except trio.Cancelled:
            # The node ends; whoever is cancelled still has the socket.
            self._send_away(arrival, request, self.why_not or GOING_AWAY)
            raise
        except Exception:
            log.exception("handshake failed", client=arrival.peer[0])
            arrival.sock.close()
        finally:
            self._deadlines.discard(deadline)
            self.handshakes -= 1
            self._upgraded -= request is not None

    async def put_off_handshakes(self, after_s: float) -> None:
        """Give the handshakes in progress ``after_s`` more seconds; tell whoever is not done then to come back.

        For the time of a pause of ``accept_loop``. After a cancellation some may still be in progress.
        """
        with trio.move_on_after(after_s):
            while self.handshakes:  # noqa: ASYNC110 - once per upgrade; an event would cost every handshake
                await trio.sleep(HANDSHAKES_CHECK_S)
        self._putting_off = True
        try:
            for deadline in self._deadlines:
                deadline.cancel()
            while self.handshakes:  # noqa: ASYNC110 - a turn or two
                await trio.sleep(HANDSHAKES_CHECK_S)
        finally:
            self._putting_off = False

    def _send_away(self, arrival: Arrival, request: Request | None, reason: str) -> None:
        """Tell whoever is not done with the handshake to come back."""
        refused = _come_back(reason)
        if request is None or request.token:
            self._refuse(arrival.sock, arrival.peer, refused)
        else:
            self._sessions.turn_away(arrival.sock, CloseCode.SERVICE_RESTART, str(refused))

    def _too_late(self, arrival: Arrival, request: Request | None) -> None:
        sock, limit_s = arrival.sock, self._settings.handshake_timeout_s
        unverified = f"the token could not be verified within {limit_s:g} s"
        if self._putting_off:
            self._send_away(arrival, request, "the node is being upgraded")
        elif request is None:
            raise Refused(408, f"no complete request within {limit_s:g} s: send it at once")
        elif request.token:
            self._send_away(arrival, request, unverified)
        elif request.verifying:
            self._sessions.turn_away(sock, CloseCode.INTERNAL_ERROR, f"{unverified}: try again")
        else:
            self._sessions.turn_away(sock, CloseCode.AUTHENTICATE_TIMEOUT, f"authenticate within {limit_s:g} s")

    async def _receive_request(self, arrival: Arrival, data: bytes) -> Request | None:
        sock = arrival.sock
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                more = sock.recv(self._settings.request_head_bytes_max)
            except BlockingIOError:
                continue
            if not more:
                sock.close()
                return None
            data += more
            try:
                return self._read_request(sock, data, arrival.peer)
            except Incomplete:
                continue

    async def _finish(self, arrival: Arrival, request: Request) -> None:
        sock = arrival.sock
        if not request.token:
            sock.send(request.response)  # the first bytes on an empty socket always fit
            introduction = await self._first_frame.receive(sock, json=request.json)
            if introduction is not None:
                request.verifying = True
                await self._first_frame.open(sock, request.device, introduction, json=request.json)
            return
        try:
            identity = await self._verifier.verify_fresh(request.token)
        except TokenRefused as error:
            raise _unauthorized(str(error)) from None
        self._sessions.open(sock, identity, request.device, json=request.json, greeting=request.response)
        log.debug("connection opened", user=identity.user, client=arrival.peer[0])

    def _refuse(self, sock: socket.socket, peer: Peer, refused: Refused) -> None:
        self.refused[refused.status] = self.refused.get(refused.status, 0) + 1
        log.info("handshake refused", status=refused.status, reason=str(refused), client=peer[0])
        farewell(sock, refused.response)


class Incomplete(Exception):
    """The request head is not complete yet."""


def _come_back(reason: str) -> Refused:
    """A refusal that is nobody's fault and will not last."""
    return Refused(
        503, f"{reason}: try again in {RETRY_AFTER_S} s, or another node", (("Retry-After", str(RETRY_AFTER_S)),)
    )


def _unauthorized(message: str) -> Refused:
    return Refused(401, message, (("WWW-Authenticate", 'Bearer realm="tidegate"'),))


def _bearer(head: RequestHead) -> str:
    """The bearer token of the Authorization header; empty when there is none. Raises Refused for another scheme."""
    value = head.headers.get("authorization")
    if value is None:
        return ""
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise _unauthorized("the Authorization header must be: Bearer TOKEN")
    return token.strip()
