"""HTTP connections of a node: sockets that the listener hands over, each run by hypercorn's HTTP/1.1 machinery."""

import socket
import sys
from typing import Any, Final, cast

import h11
import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Event, Updated
from hypercorn.logging import Logger
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, H11SendableEvent

from gateway.api.places import Place, Places, State, unavailable
from gateway.api.stream import HandedOverStream, open_stream
from gateway.config import Settings
from gateway.edge.farewell import farewell
from gateway.observe.seldom import Seldom

HTTP_CONNECTIONS_MAX: Final = 128
"""HTTP connections held at once. Scrapers, probes and a load balancer's pool need some dozens; each costs about
30 KB, so that this many take 4 MB away from the parked connections, and no more."""

RESERVED_MAX: Final = 16
"""HTTP connections held besides while the others all wait for the node (a slow store, say), for RESERVED_PATHS only:
a load balancer that got no answer would take a node out that works. Several balancers, an orchestrator and a scraper
have room; each connection is closed with its answer."""

RESERVED_PATHS: Final = frozenset((b"/health/live", b"/health/ready", b"/metrics"))
"""What the reserve is for: answered from memory, so that no place there is held for long."""

KEEP_ALIVE_S: Final = 15.0
"""Seconds from the end of a response to the whole head of the next request: longer than the interval of common
probes (10 s), so that they keep their connection; short, because an idle connection takes one of the places."""

READ_TIMEOUT_S: Final = 30
"""Seconds without a byte from the client after which a connection ends, whatever is under way. Longer than the API's
own deadlines for a body and for a command, so that those are what a client normally sees."""

REQUESTS_PER_CONNECTION_MAX: Final = 10_000
"""Requests after which a kept connection is closed, so that load balancers spread anew now and then."""

CHUNKS_WAITING_MAX: Final = 65_536
"""Pieces of a request body that wait for the application. It takes them as they come; hypercorn's default of 10 can
hang when a request was answered before its body was complete."""

GRACE_S: Final = 3.0
"""Seconds that open requests get to finish when the server stops."""

_TOO_MANY: Final = "this node holds %d HTTP connections, the most allowed; try again in 1 s"
_STOPPING: Final = "this node is stopping; try again in 1 s, it may be at another node"

_log = structlog.get_logger(__name__)


class _HypercornLog(Logger):
    """hypercorn's messages in the node's own log."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.access_logger = None
        self.error_logger = None
        self._seldom = Seldom()

    async def warning(self, message: str, *args: Any, **kwargs: Any) -> None:
        _log.warning("hypercorn", message=message % args if args else message)

    async def error(self, message: str, *args: Any, **kwargs: Any) -> None:
        _log.error("hypercorn", message=message % args if args else message)

    async def exception(self, message: str, *args: Any, **kwargs: Any) -> None:
        # The application logs its own faults, with traceback: this is hypercorn stumbling over what a client did, and
        # strangers shall not fill the log
        self._seldom.warn("hypercorn", message=message % args if args else message, error=repr(sys.exception()))


def hypercorn_config(settings: Settings, *, keep_alive: bool) -> Config:
    """The bounds of this server in hypercorn's words; without ``keep_alive`` a connection ends with its answer."""
    config = Config()
    config.logger_class = _HypercornLog
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    config.h11_max_incomplete_size = settings.request_head_bytes_max
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.keep_alive_max_requests = REQUESTS_PER_CONNECTION_MAX if keep_alive else 0
    config.read_timeout = READ_TIMEOUT_S
    config.max_app_queue_size = CHUNKS_WAITING_MAX
    return config


class _Http1(H11Protocol):
    """HTTP/1.1 and nothing else.

    hypercorn would take an upgrade to HTTP/2. A proxy in front that forwards such a request sees a 101, and forwards
    everything from then on unread: whatever it keeps from clients (metrics, say), they could ask for in there.

    Attributes:
        place: is told when an answer begins.
    """

    place: Place

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        if isinstance(event, h11.Response):
            self.place.enter(State.ANSWERING)
        await super()._send_h11_event(event)

    async def _check_protocol(self, event: object) -> None:
        """Pass over what asks for HTTP/2: it is answered in HTTP/1.1 (RFC 9110 section 7.8 allows that)."""


class _Connection(TCPServer):
    """One HTTP connection, which ends as soon as its client has and nothing is left to answer.

    hypercorn alone would let such a connection wait for its keep-alive timeout.
    """

    def __init__(self, app: Any, config: Config, context: WorkerContext, place: Place) -> None:
        # Typed for TLS; what hypercorn needs of a stream without is receive, send, end, close and ``socket``
        stream = cast(Any, place.stream)
        super().__init__(ASGIWrapper(_telling(place, app)), config, context, ConnectionState({}), stream)
        self._place = place
        place.stream.at_end = self.idle_task.stop

    async def _read_data(self) -> None:
        """As hypercorn's, of which this is the first moment that there is a protocol."""
        spoken = self.protocol.protocol
        self.protocol.protocol = http1 = _Http1(
            self.app, self.config, self.context, self._task_group, spoken.connection_state,
            spoken.ssl, spoken.client, spoken.server, self.protocol_send,
        )  # fmt: skip
        http1.place = self._place
        await super()._read_data()
        # Nothing more comes, so that there is nothing to wait for once what came is answered
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        """As hypercorn's, and no waiting for another request of a client that has ended its side."""
        if isinstance(event, Updated):
            self._place.enter(State.IDLE if event.idle else State.RECEIVING)
        await super().protocol_send(event)
        if isinstance(event, Updated) and event.idle and self._place.stream.ended:
            await self.idle_task.stop()


def _telling(place: Place, app: Any) -> Any:
    """The application, which tells when it has a whole request."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        async def receive_and_tell() -> Any:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                place.enter(State.WORKING)
            return message

        await app(scope, receive_and_tell, send)

    return call


class HttpServer:
    """Runs an ASGI application on sockets that come one by one.

    Attributes:
        refused: connections turned away because there were too many, or the server had stopped.
    """

    def __init__(
        self,
        app: Any,
        settings: Settings,
        *,
        connections_max: int = HTTP_CONNECTIONS_MAX,
        reserved: int = RESERVED_MAX,
    ) -> None:
        self.refused = 0
        self._app = app
        self._kept = hypercorn_config(settings, keep_alive=True)
        self._closed_with_answer = hypercorn_config(settings, keep_alive=False)
        self._context = WorkerContext(None)
        self._connections_max = connections_max
        self._places = Places(connections_max)
        self._reserve = Places(reserved)
        self._nursery: trio.Nursery | None = None
        self._all_gone = trio.Event()
        self._seldom = Seldom()

    @property
    def connections(self) -> int:
        """HTTP connections held now."""
        return len(self._places.held) + len(self._reserve.held)

    @property
    def gave_way(self) -> int:
        """Connections closed because their clients were idle or slow and others needed the place, ever."""
        return self._places.gave_way + self._reserve.gave_way

    def hand_over(self, sock: socket.socket, head: bytes, peer: tuple[Any, ...] | None = None) -> None:
        """Serve HTTP on a socket from which ``head`` (at least the first request's head) was already read.

        ``peer`` is the client's address where a load balancer named another one than the socket's.

        A plain call that takes the socket over for good. A connection that there is no room for is told so (503 with
        Retry-After) and closed.
        """
        if self._nursery is None:
            self._turn_away(sock, _STOPPING)
        elif self._places.make_room():
            self._begin(self._places, self._kept, open_stream(sock, head, peer))
        elif _path(head) in RESERVED_PATHS and self._reserve.make_room():
            self._begin(self._reserve, self._closed_with_answer, open_stream(sock, head, peer))
        else:
            self._turn_away(sock, _TOO_MANY % self._connections_max)

    def _begin(self, places: Places, config: Config, stream: HandedOverStream) -> None:
        assert self._nursery is not None, "it runs"
        self._nursery.start_soon(self._serve, places, places.take(stream), config)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take sockets until cancelled; ready once started.

        On cancellation idle connections end at once, open requests within GRACE_S; then all sockets are closed.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
                with trio.CancelScope(shield=True):
                    await self.finish_open(GRACE_S)

    async def finish_open(self, within_s: float) -> None:
        """Let the open requests be answered, end idle connections, and cut what is left after ``within_s`` seconds.

        Connections that come later are served as ever; for a pause, see to it that none come. After a cancellation
        some may still be open.
        """
        context, self._context = self._context, WorkerContext(None)
        # hypercorn's idle connections wait for this, and busy ones close instead of waiting for another request
        await context.terminated.set()
        with trio.move_on_after(within_s):
            while self.connections:
                self._all_gone = trio.Event()
                await self._all_gone.wait()
        for place in (*self._places.held, *self._reserve.held):
            place.end()

    async def _serve(self, places: Places, place: Place, config: Config) -> None:
        """Run one connection to its end; never raises."""
        with place.scope:
            try:
                # A connection that can take no answer would go on with the requests that came before it broke
                place.stream.at_break = place.scope.cancel
                await _Connection(self._app, config, self._context, place).run()
            except Exception as error:  # noqa: BLE001 - the outermost frame of a connection: only this one ends
                # Input that hypercorn had no answer for, as above
                self._seldom.warn("http_connection_failed", error=repr(error))
            finally:
                place.stream.cut()
                places.held.discard(place)  # not there any more if it gave way
                if not self.connections:
                    self._all_gone.set()

    def _turn_away(self, sock: socket.socket, message: str) -> None:
        self.refused += 1
        farewell(sock, unavailable(message))


def _path(head: bytes) -> bytes:
    """The path that a request's head asks for; something else if it is none."""
    return head.partition(b" ")[2].partition(b" ")[0].partition(b"?")[0]
