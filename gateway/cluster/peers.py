"""Parcels straight from node to node, for as long as Redis cannot carry them.

A connection carries parcels one way, from who dialled; back come only counts of parcels received. It is made when there
is something to send, at the address in the receiver's lease, and ends by itself some seconds after the last parcel.
What is lost with it shows as a gap in the numbers of the link, which is how all losses are noticed.
"""

import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog
import trio

from gateway.cluster.peer_handshake import Incoming, PeerRefused, admit, dial
from gateway.cluster.ports import Taken
from gateway.observe.seldom import Seldom
from store.coordination import LeaseRecord

QUEUE_BYTES_MAX: Final = 16 * 1024 * 1024
"""Bytes of parcels that wait for one node, unconfirmed ones included; what is more is not taken. Some seconds of a busy
link: whoever does not read that long is not alive for much longer."""

PARCEL_BYTES_MAX: Final = QUEUE_BYTES_MAX
"""Size of a parcel that is received: no node takes a larger one for sending."""

HANDSHAKE_S: Final = 3.0
"""Seconds for connecting and the handshake, together."""

HANDSHAKES_MAX: Final = 64
"""Incoming connections that have not proved yet that they are nodes: more are closed at once."""

RETRY_S: Final = 1.0
"""Seconds after a failed connection during which no other is tried, and nothing taken for that node."""

SILENCE_S: Final = 6.0
"""Seconds without a confirmation after which a connection ends: three empty parcels of ``links`` would have brought
some, so either nobody reads there any more, or nothing is sent this way any more."""

FLAG_BYTES: Final = 1
"""In front of each parcel behind its length: whether the sender cannot reach Redis."""

QUESTION: Final = b"\2"
"""In the place of that flag: what follows is no parcel but a question of an operator (see ``questions``), whose answer
comes back, with its length in front, in the place of a count."""

COUNT_BYTES: Final = 8
"""Size of what confirms: parcels received on this connection so far."""

LOSSES: Final = (OSError, trio.BrokenResourceError, trio.TooSlowError, PeerRefused)
"""How a connection ends that did not end as it should."""

log = structlog.get_logger(__name__)


def listen_for_peers(host: str, port: int) -> socket.socket:
    """A listening socket for other nodes; port 0: the system chooses. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(HANDSHAKES_MAX)
    except OSError:
        listening.close()
        raise
    return listening


class _Outgoing:
    """What waits for one node.

    Attributes:
        queue: encoded parcels that were not written yet.
        unconfirmed: size and callback of each parcel that was not confirmed, written or not; in order.
        waiting_bytes: of these.
    """

    __slots__ = ("queue", "scope", "unconfirmed", "waiting_bytes", "wake")

    def __init__(self) -> None:
        self.queue: list[bytes] = []
        self.unconfirmed: deque[tuple[int, Taken]] = deque()
        self.waiting_bytes = 0
        self.wake = trio.Event()
        self.scope = trio.CancelScope()

    def confirm_next(self) -> None:
        """The next parcel has arrived."""
        size, taken = self.unconfirmed.popleft()
        self.waiting_bytes -= size
        taken(True)

    def give_up(self) -> None:
        """Nothing more will be confirmed."""
        while self.unconfirmed:
            self.unconfirmed.popleft()[1](False)


class Peers:
    """Connections of this node to others, and of others to this one. Closes ``listening`` when ``run`` ends.

    Attributes:
        received: takes each parcel that arrives; set before ``run``.
        answer: takes each question that arrives and returns its answer; set before ``run``.
        sent, not_taken, arrived: parcels given to it, those of them that were surely or perhaps not received, and
            parcels received, ever.
        refused: incoming connections that were refused, ever.
    """

    def __init__(
        self,
        incarnation: str,
        key: bytes,
        listening: socket.socket,
        live: Callable[[], Mapping[str, LeaseRecord]],
    ) -> None:
        self.received: Callable[[bytes], None] = lambda _parcel: None
        self.answer: Callable[[bytes], bytes] = lambda _question: b""
        self.sent = self.not_taken = self.arrived = self.refused = 0
        self._incarnation = incarnation
        self._key = key
        self._listening = listening
        self._live = live
        self._outgoing: dict[str, _Outgoing] = {}
        self._retry_s: dict[str, float] = {}
        self._cut_off_s: dict[str, float] = {}  # when a node last said that it cannot reach Redis
        self._troubles: dict[str, str] = {}
        self._handshakes = 0
        self._seldom = Seldom()
        self._nursery: trio.Nursery | None = None

    @property
    def connections(self) -> int:
        """Connections to other nodes that there are, or that are being made."""
        return len(self._outgoing)

    @property
    def idle(self) -> bool:
        """Whether all that was sent is confirmed, or given up."""
        return not any(peer.unconfirmed for peer in self._outgoing.values())

    @property
    def listening(self) -> socket.socket:
        """Where other nodes connect to."""
        return self._listening

    def cut_off(self, incarnation: str) -> bool:
        """Whether a node has just sent parcels here because it cannot reach Redis: then it reads no inbox either."""
        return trio.current_time() - self._cut_off_s.get(incarnation, -SILENCE_S) < SILENCE_S

    def send(self, incarnation: str, parcel: bytes, taken: Taken, *, without_redis: bool) -> None:
        """Put a parcel behind those sent to a node before; ``taken`` is called once, perhaps before this returns."""
        self.sent += 1

        def note(there: bool) -> None:
            self.not_taken += not there
            taken(there)

        peer = self._outgoing.get(incarnation) or self._begin(incarnation)
        size = len(parcel)
        if peer is None or peer.waiting_bytes + size > QUEUE_BYTES_MAX:
            note(False)
            return
        peer.waiting_bytes += size
        peer.unconfirmed.append((size, note))
        peer.queue.append(size.to_bytes(4, "big") + bytes((without_redis,)) + parcel)
        peer.wake.set()

    def forget(self, incarnation: str) -> None:
        """A node is dead: nothing waits for it any more."""
        peer = self._outgoing.get(incarnation)
        if peer is not None:
            peer.scope.cancel()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect and be connected to until cancelled; all connections end then."""
        with self._listening:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._listening))
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()  # the socket listens already
                try:
                    await trio.serve_listeners(self._serve, [listener])
                finally:
                    self._nursery = None

    # --- To other nodes ---------------------------------------------------------------------------------------------

    def _begin(self, incarnation: str) -> _Outgoing | None:
        """Begin to connect; None if that cannot be done now."""
        record = self._live().get(incarnation)
        if self._nursery is None or record is None or trio.current_time() < self._retry_s.get(incarnation, 0.0):
            return None
        peer = self._outgoing[incarnation] = _Outgoing()
        self._nursery.start_soon(self._connect, incarnation, record.address, peer)
        return peer

    async def _connect(self, incarnation: str, address: str, peer: _Outgoing) -> None:
        """Carry what waits for a node to it, as long as that goes well."""
        trouble = ""
        try:
            with peer.scope:
                await self._carry(incarnation, address, peer)
        except LOSSES as error:
            trouble = str(error) or "it does not answer"
        finally:
            del self._outgoing[incarnation]
            peer.give_up()
        live = self._live()
        self._retry_s = {each: until_s for each, until_s in self._retry_s.items() if each in live}
        self._troubles = {each: known for each, known in self._troubles.items() if each in live}
        if trouble:
            self._retry_s[incarnation] = trio.current_time() + RETRY_S
            if self._troubles.get(incarnation) != trouble:
                log.warning("node not reached directly", peer=incarnation, address=address, reason=trouble)
        self._troubles[incarnation] = trouble

    async def _carry(self, incarnation: str, address: str, peer: _Outgoing) -> None:
        """Connect, then write parcels and read confirmations until there was none for a while. Raises LOSSES."""
        with trio.fail_after(HANDSHAKE_S):
            stream = await trio.open_tcp_stream(*split_address(address))
        async with stream:
            incoming = Incoming(stream)
            with trio.fail_after(HANDSHAKE_S):
                await dial(stream, incoming, self._key, self._incarnation, incarnation)
            log.info("connected to a node directly", peer=incarnation, address=address)
            losses: list[BaseException] = []
            async with trio.open_nursery() as nursery:

                async def until_lost(work: Callable[[], Awaitable[None]]) -> None:
                    try:
                        await work()
                    except LOSSES as error:
                        losses.append(error)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_lost, lambda: self._write(stream, peer))
                nursery.start_soon(until_lost, lambda: self._confirm(incoming, peer))
            if losses:
                raise losses[0]

    @staticmethod
    async def _write(stream: trio.SocketStream, peer: _Outgoing) -> None:
        while True:
            while peer.queue:
                parcels, peer.queue = peer.queue, []
                await stream.send_all(b"".join(parcels))
            peer.wake = trio.Event()
            await peer.wake.wait()

    @staticmethod
    async def _confirm(incoming: Incoming, peer: _Outgoing) -> None:
        """Take confirmations; returns when none came for a while although none is missing. Raises LOSSES."""
        confirmed = 0
        while True:
            missing = bool(peer.unconfirmed)
            with trio.move_on_after(SILENCE_S) as patience:
                count = int.from_bytes(await incoming.exactly(COUNT_BYTES), "big")
            if patience.cancelled_caught:
                if missing:
                    raise PeerRefused(f"it confirmed nothing for {SILENCE_S:g} s")
                if not peer.unconfirmed:
                    return
                continue
            if not confirmed <= count <= confirmed + len(peer.unconfirmed):
                raise PeerRefused("it confirmed what was not sent")
            for _ in range(count - confirmed):
                peer.confirm_next()
            confirmed = count

    # --- From other nodes -------------------------------------------------------------------------------------------

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One incoming connection: it ends when the other end or this node does, or by silence."""
        if self._handshakes >= HANDSHAKES_MAX:
            self.refused += 1
            return
        incoming = Incoming(stream)
        self._handshakes += 1
        try:
            with trio.fail_after(HANDSHAKE_S):
                sender = await admit(stream, incoming, self._key, self._incarnation)
        except LOSSES as error:
            self.refused += 1
            self._seldom.warn("connection from a node refused", reason=str(error) or "its handshake took too long")
            return
        finally:
            self._handshakes -= 1
        try:
            await self._take(stream, incoming, sender)
        except LOSSES as error:
            log.info("connection from a node ended", peer=sender, reason=str(error) or "nothing came any more")
        finally:
            self._cut_off_s.pop(sender, None)

    async def _take(self, stream: trio.SocketStream, incoming: Incoming, sender: str) -> None:
        """Hand over parcels and confirm them. Raises LOSSES."""
        count = 0
        while True:
            with trio.fail_after(2 * SILENCE_S):  # the sender, which knows why, ends it first
                size = int.from_bytes(await incoming.exactly(4), "big")
                if size > PARCEL_BYTES_MAX:
                    raise PeerRefused(f"it sent a parcel of {size} bytes; allowed are {PARCEL_BYTES_MAX}")
                flag = await incoming.exactly(FLAG_BYTES)
                parcel = await incoming.exactly(size)
                if flag == QUESTION:
                    answer = self.answer(parcel)
                    await stream.send_all(len(answer).to_bytes(4, "big") + answer)
                    continue
                if flag != b"\0":
                    self._cut_off_s[sender] = trio.current_time()
                else:
                    self._cut_off_s.pop(sender, None)
                count += 1
                self.arrived += 1
                self.received(parcel)
                if incoming.empty:
                    await stream.send_all(count.to_bytes(COUNT_BYTES, "big"))


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[HOST]:PORT``. Raises PeerRefused if it is neither."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= 65_535:
        raise PeerRefused(f"its lease has the address {address!r}, which is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)
