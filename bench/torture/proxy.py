"""A TCP proxy that makes a bad network of a good one: between nodes and Cassandra, Redis, or other nodes.

A ``Faults`` says how the network is just now, for all connections that were given it: any number of proxies may share
one, as the three proxies before three Cassandra nodes do for one node of ours. A ``FaultProxy`` listens, connects on,
and asks which faults a new connection has.

Bytes are never lost or changed inside a connection, as TCP promises: what is held back comes later or dies with it.
"""

import contextlib
import enum
import socket
import struct
from collections.abc import Callable

import trio

READ_BYTES = 65_536
"""How much is read from a connection at once, bytes."""

HELD_CHUNKS_MAX = 64
"""How many reads may be held back for one direction of a connection before its sender has to wait."""

Address = tuple[str, int]


class Direction(enum.Enum):
    """Where bytes of a connection go: UP to the server, DOWN back to the client."""

    UP = "up"
    DOWN = "down"


UP, DOWN = Direction.UP, Direction.DOWN


class Faults:
    """How the network is for some connections; a new one is a good network. To be used within one trio run.

    Attributes:
        latency_s: how long after it was read each piece goes on, in each direction, seconds; order is kept.
        slice_bytes: the most that goes on at once, bytes; None for as much as there is. With 1, every byte comes alone.
        refusing: whether new connections are reset at once.
        opened: how many connections were made so far.
        resets: how many were reset by cut() so far.
        passed_bytes: how much went on so far, by direction.
    """

    def __init__(self) -> None:
        """Begin with a good network."""
        self.latency_s = 0.0
        self.slice_bytes: int | None = None
        self.refusing = False
        self.opened = 0
        self.resets = 0
        self.passed_bytes = {UP: 0, DOWN: 0}
        self._silent: set[Direction] = set()
        self._changed = trio.Event()
        self._arrived = {UP: 0, DOWN: 0}
        self._scopes: set[trio.CancelScope] = set()

    @property
    def open_connections(self) -> int:
        """How many connections there are now."""
        return len(self._scopes)

    def silence(self, *directions: Direction) -> None:
        """From now on nothing passes in these directions, as if packets were lost, while connections stay open.

        The other directions stay as they are. What is sent meanwhile passes after heal().
        """
        self._silent.update(directions)

    def stall(self) -> None:
        """From now on nothing passes at all."""
        self.silence(UP, DOWN)

    def cut(self) -> None:
        """Reset all connections (RST to both ends); what was held back is lost. New ones may come."""
        self.resets += len(self._scopes)
        for scope in self._scopes:
            scope.cancel()

    def partition(self) -> None:
        """No connection is left and none can be made, until heal()."""
        self.refusing = True
        self.cut()

    def heal(self) -> None:
        """A good network again; what was held back passes, in order."""
        self.latency_s = 0.0
        self.slice_bytes = None
        self.refusing = False
        self._silent.clear()
        self._notify()

    async def lose_reply(self) -> None:
        """Hold all answers back, wait until the server has given one, and reset all connections: nobody sees it.

        So what was asked for has happened, and who asked does not know. Cancelling it leaves answers silenced.
        """
        self.silence(DOWN)
        seen = self._arrived[DOWN]
        while self._arrived[DOWN] == seen:
            await self._changed.wait()
        self.cut()
        self._silent.discard(DOWN)
        self._notify()

    async def join(self, client: trio.abc.HalfCloseableStream, server: trio.abc.HalfCloseableStream) -> None:
        """Let bytes pass between two streams, under these faults, until both have ended; then close them.

        When one of them fails, when they are cut, and on cancellation both are reset.
        """
        scope = trio.CancelScope()
        self._scopes.add(scope)
        self.opened += 1
        ended_well = False
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry, UP, client, server)
                    nursery.start_soon(self._carry, DOWN, server, client)
                ended_well = True
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            ended_well = False  # one end failed, so the other has to learn of it
        finally:
            self._scopes.discard(scope)
            await _close(client, server, reset=not ended_well)

    async def _carry(
        self, direction: Direction, source: trio.abc.ReceiveStream, target: trio.abc.HalfCloseableStream
    ) -> None:
        """One direction of a connection: until its end has been passed on."""
        send, receive = trio.open_memory_channel[tuple[float, bytes]](HELD_CHUNKS_MAX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, direction, source, send)
            async with receive:
                async for due, chunk in receive:
                    await trio.sleep_until(due)
                    await self._pass(direction, chunk, target)
            await target.send_eof()

    async def _read(
        self, direction: Direction, source: trio.abc.ReceiveStream, held: "trio.MemorySendChannel[tuple[float, bytes]]"
    ) -> None:
        async with held:
            while chunk := await source.receive_some(READ_BYTES):
                self._arrived[direction] += 1
                self._notify()
                await held.send((trio.current_time() + self.latency_s, bytes(chunk)))
            # The end comes no sooner than a byte would.
            await held.send((trio.current_time() + self.latency_s, b""))

    async def _pass(self, direction: Direction, chunk: bytes, target: trio.abc.SendStream) -> None:
        """Send a piece on, in slices if so wanted; it waits while its direction is silent."""
        position = 0
        while True:
            while direction in self._silent:
                await self._changed.wait()
            if position >= len(chunk):
                return
            part = chunk[position : position + (self.slice_bytes or len(chunk))]
            await target.send_all(part)
            position += len(part)
            self.passed_bytes[direction] += len(part)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class FaultProxy:
    """Listens at one address and passes every connection on to another, under faults.

    Before Cassandra nodes that were started with ``proxied``::

        [FaultProxy((node.advertised, node.port), (node.address, node.port), faults) for node in cluster.nodes]

    Attributes:
        address: where it listens; with port 0 the true one is known once it runs.
        target: where it connects to; may be changed for later connections.
    """

    def __init__(
        self, address: Address, target: Address, faults: Faults | Callable[[Address, Address], Faults] | None = None
    ) -> None:
        """Describe a proxy; nothing listens yet.

        Args:
            address: where to listen; port 0 lets the system choose.
            target: where to connect to.
            faults: those of all connections; or what finds those of one by its two addresses, the client's own and the
                one that it connected to, as ``FaultsByProcess`` does; None for a good network.
        """
        self.address = address
        self.target = target
        own = Faults() if faults is None else faults
        self._faults_of: Callable[[Address, Address], Faults] = (lambda *_: own) if isinstance(own, Faults) else own

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until cancelled, which resets all connections; started once connections are accepted."""
        (listener,) = await trio.open_tcp_listeners(self.address[1], host=self.address[0])
        self.address = listener.socket.getsockname()
        async with listener, trio.open_nursery() as nursery:
            task_status.started()
            await trio.serve_listeners(self._serve, [listener], handler_nursery=nursery)

    async def _serve(self, client: trio.SocketStream) -> None:
        try:
            ends = client.socket.getpeername(), client.socket.getsockname()
        except OSError:
            await trio.aclose_forcefully(client)  # gone before it was looked at
            return
        faults = self._faults_of(*ends)
        server = None if faults.refusing else await self._connect(client)
        if server is not None and not faults.refusing:
            await faults.join(client, server)
            return
        await _close(client, server or client, reset=True)

    async def _connect(self, client: trio.SocketStream) -> trio.SocketStream | None:
        """A connection to the target; None when there is none to be had."""
        try:
            # Without delay, so that slices stay apart; trio's own connections have that already.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return await trio.open_tcp_stream(*self.target)
        except OSError:
            return None


async def _close(client: trio.abc.AsyncResource, server: trio.abc.AsyncResource, *, reset: bool) -> None:
    """Close two streams at once, also when cancelled."""
    if reset:
        reset_on_close(client)
        reset_on_close(server)
    try:
        await trio.aclose_forcefully(client)
    finally:  # when cancelled, the first one raises although it has closed
        await trio.aclose_forcefully(server)


def reset_on_close(stream: object) -> None:
    """Make a stream's end an RST instead of a FIN, where it is a socket."""
    if isinstance(stream, trio.SocketStream):
        with contextlib.suppress(OSError):  # closed already
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
