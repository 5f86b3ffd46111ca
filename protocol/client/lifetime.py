"""A connection from its opening to its end, and what that end means."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import h11
import trio
import wsproto
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError, WebSocketConnection

from protocol import limits
from protocol.client.connection import Connection
from protocol.client.endings import ConnectionEnded, Ending, from_close, from_network, from_rejection
from protocol.client.errors import ConnectionLost
from protocol.client.wire import Address, HandshakeStream, StreamOpener, open_websocket
from protocol.codec import CodecError, InvalidFrame, UnknownFrame, decode_server_frame
from protocol.frames import Push, Reply, Welcome

CLOSE_TIMEOUT_S: Final = 2.0
"""Seconds that the close handshake may take: nothing is lost by cutting it."""

WELCOME_S_MIN: Final = 0.1
"""Least heartbeat interval and idle timeout that are believed, seconds: less would cost a core."""

_NO_HTTP: Final = (h11.ProtocolError, wsproto.utilities.ProtocolError, UnicodeDecodeError)
"""What comes out of trio-websocket when the answer to the handshake is not one of HTTP."""

_TOO_BIG_HERE: Final = "Exceeded maximum message size"
"""How the reason begins with which trio-websocket itself closes, by the code that a node has for our messages."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """What a connection needs of the rest of the client.

    Attributes:
        begin: called with the authenticated connection, before anything behind its welcome is read.
        end: called when the connection is of no more use.
        work: runs from begin to end, and is cancelled then.
        ready_to_read: returns when the next frame may be read.
        on_push: called with each push, in order.
    """

    begin: Callable[[Connection], None]
    end: Callable[[], None]
    work: Callable[[Connection], Awaitable[None]]
    ready_to_read: Callable[[Connection], Awaitable[None]]
    on_push: Callable[[Connection, Push], None]


async def live(
    opener: StreamOpener, address: Address, *, token: str, device: str, handlers: Handlers, was_online: bool
) -> Ending:
    """Connect, authenticate and serve ``handlers`` until the connection ends; says how it ended.

    Cancelling closes the connection with code 1000.
    """
    ending: Ending | None = None
    try:
        async with trio.open_nursery() as nursery:
            await _live(nursery, opener, address, token, device, handlers)
    except* (
        *_NO_HTTP, ConnectionEnded, ConnectionRejected, ConnectionClosed, HandshakeError, ConnectionLost, OSError
    ) as group:  # fmt: skip
        ending = _ending(_telling(group), address, was_online=was_online)
    assert ending is not None, "a connection ends with a reason"
    return ending


async def _shelter(done: trio.Event, task_status: trio.TaskStatus[trio.Nursery] = trio.TASK_STATUS_IGNORED) -> None:
    """A nursery that lives until ``done``. Whoever starts it may shield it."""
    async with trio.open_nursery() as nursery:
        task_status.started(nursery)
        await done.wait()


async def _live(
    nursery: trio.Nursery, opener: StreamOpener, address: Address, token: str, device: str, handlers: Handlers
) -> None:
    with trio.move_on_after(limits.AUTHENTICATE_TIMEOUT_S) as patience:
        stream = HandshakeStream(await opener(address))
    if patience.cancelled_caught:
        raise _too_slow(address)
    done = trio.Event()
    shelter: trio.Nursery | None = None
    try:
        shelter = await nursery.start(_shelter, done)
        # Cancelling must not end the task that reads before the close handshake is done. (Not shielded from its
        # beginning: a cancelled start would wait for it.)
        shelter.cancel_scope.shield = True
        websocket, welcome = await _open(shelter, stream, address, token, device)
        try:
            await _serve(nursery, websocket, welcome, handlers)
        finally:
            await _close(websocket)
    finally:
        done.set()
        if shelter is not None:
            # A node that sent its close, but does not end the stream, must not keep us.
            shelter.cancel_scope.cancel()
        with trio.CancelScope(shield=True):  # or a cancellation would take the place of the error that tells the end
            await trio.aclose_forcefully(stream)  # trio-websocket leaves it open when the node closed first


async def _open(
    nursery: trio.Nursery, stream: HandshakeStream, address: Address, token: str, device: str
) -> tuple[WebSocketConnection, Welcome]:
    with trio.move_on_after(limits.AUTHENTICATE_TIMEOUT_S) as patience:
        websocket = await open_websocket(nursery, stream, address, token=token, device=device)
        first = _decode(await websocket.get_message())
    if patience.cancelled_caught:
        raise _too_slow(address, abandoned=True)
    if not isinstance(first, Welcome):
        raise ConnectionEnded(Ending("backoff", f"{address} sent something else than a welcome first"))
    if not (first.heartbeat_interval_s >= WELCOME_S_MIN and first.idle_timeout_s >= WELCOME_S_MIN):  # NaN is neither
        raise ConnectionEnded(Ending("backoff", f"{address} sent a welcome without a usable heartbeat or idle time"))
    return websocket, first


def _too_slow(address: Address, *, abandoned: bool = False) -> ConnectionEnded:
    text = f"{address} did not answer within {limits.AUTHENTICATE_TIMEOUT_S:.0f} s"
    return ConnectionEnded(Ending("backoff", text, abandoned=abandoned))


async def _serve(nursery: trio.Nursery, websocket: WebSocketConnection, welcome: Welcome, handlers: Handlers) -> None:
    connection = Connection(welcome)
    try:
        handlers.begin(connection)
        nursery.start_soon(connection.write, websocket)
        nursery.start_soon(connection.beat)
        nursery.start_soon(handlers.work, connection)
        await _read(websocket, connection, handlers)
    except ConnectionClosed as closed:
        raise ConnectionEnded(_closed(closed, connection)) from closed
    finally:
        handlers.end()
        connection.lose()


async def _read(websocket: WebSocketConnection, connection: Connection, handlers: Handlers) -> None:
    """Read until the connection ends."""
    # A heartbeat that gets no answer within an interval: the connection is broken (PROTOCOL.md 10).
    idle_timeout_s = min(connection.welcome.idle_timeout_s, 2 * connection.welcome.heartbeat_interval_s)
    while True:
        await handlers.ready_to_read(connection)
        with trio.move_on_after(idle_timeout_s) as patience:
            data = await websocket.get_message()
        if patience.cancelled_caught:
            raise ConnectionEnded(Ending("backoff", f"nothing was heard from the node for {idle_timeout_s:.0f} s"))
        frame = _decode(data)
        if frame is None:
            continue
        if isinstance(frame, Reply):
            connection.take_reply(frame)
        else:
            handlers.on_push(connection, frame)


def _decode(data: str | bytes) -> Reply | Push | None:
    """A frame; None for one of a newer version, which is ignored."""
    try:
        if isinstance(data, str):
            raise CodecError("a text message")
        return decode_server_frame(data)
    except UnknownFrame:
        return None
    except (CodecError, InvalidFrame) as error:
        raise ConnectionEnded(Ending("backoff", f"the node sent something that is no frame: {error}")) from error


async def _close(websocket: WebSocketConnection) -> None:
    with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
        await websocket.aclose()


def _telling(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error in a group that tells most: several tasks see the same end, some only its consequences."""
    leaves: list[BaseException] = []
    groups: list[BaseException] = [group]
    while groups:
        error = groups.pop()
        if isinstance(error, BaseExceptionGroup):
            groups.extend(error.exceptions)
        else:
            leaves.append(error)
    return min(leaves, key=lambda leaf: (not isinstance(leaf, ConnectionEnded), isinstance(leaf, ConnectionLost)))


def _ending(error: BaseException, address: Address, *, was_online: bool) -> Ending:
    match error:
        case ConnectionEnded():
            return error.ending
        case ConnectionRejected():
            return from_rejection(error.status_code, error.headers, error.body, was_online=was_online)
        case ConnectionClosed():
            return _closed(error, None)
        case OSError():
            return from_network(error, str(address))
        case _ if isinstance(error, _NO_HTTP):
            other = "ws" if address.tls else "wss"
            text = f"{address} does not answer as a WebSocket server does: is the port right, or is {other}:// meant?"
            return Ending("backoff", text)
        case _:
            return Ending("backoff", f"the connection failed: {error}")


def _closed(error: ConnectionClosed, connection: Connection | None) -> Ending:
    """The ending of a WebSocket close; a node that told how long to stay away is obeyed."""
    if error.reason and (error.reason.reason or "").startswith(_TOO_BIG_HERE):
        return Ending("backoff", f"the node sent more than {limits.SERVER_FRAME_BYTES_MAX:,} bytes at once")
    ending = from_close(error.reason.code, error.reason.reason) if error.reason else from_close(1006, None)
    if connection is None or connection.go_away_at <= trio.current_time():
        return ending
    return Ending(ending.advice, ending.reason, ending.code, connection.go_away_at - trio.current_time())
