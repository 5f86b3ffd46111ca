"""Parcels between nodes by Redis streams: each incarnation has one stream, which only it reads.

A stream exists from when its incarnation makes it: whoever sends to one that is not there is told so, and cannot make
it. Its reader renews it now and then; nobody else does, so that the streams of nodes that were killed expire.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
import trio

from gateway.cluster.ports import Command, Generations, RedisPort, Taken
from gateway.cluster.redis_connection import LOSSES, RedisConnection, in_words
from gateway.cluster.redis_keys import heads, inbox
from gateway.cluster.redis_thread import BACKOFF_MAX_S, BACKOFF_MIN_S
from gateway.cluster.redis_url import parse_redis_url

INBOX_PARCELS_MAX: Final = 8_192
"""Parcels that wait for a node, about: more than come while it is scheduled badly. Older ones are trimmed, and the gap
leads to a resync."""

INBOX_EXPIRES_S: Final = 60
"""When a stream is gone that its reader does not renew."""

RENEW_S: Final = 5.0
"""Seconds between two renewals by the reader."""

READ_PARCELS_MAX: Final = 256
"""Parcels read at once."""

READ_BLOCK_MS: Final = 500
"""How long a read waits for a parcel, milliseconds: what ending the node may have to wait for."""

FIELD: Final = b"p"
"""Names the parcel in an item of a stream."""

TOUCH_FIELD: Final = b"t"
"""Marks an item that only renews its stream."""

log = structlog.get_logger(__name__)


def _touch(incarnation: str, parcels_max: int) -> list[Command]:
    """Makes the stream if it is not there, and renews it."""
    key = inbox(incarnation)
    return [
        ("XADD", key, "MAXLEN", "~", parcels_max, "*", TOUCH_FIELD, ""),
        ("EXPIRE", key, INBOX_EXPIRES_S),
    ]


class RedisTransport:
    """Implements ``Transport``.

    Attributes:
        received: see Transport.
        sent: parcels submitted, ever.
        not_taken: those of them that were not surely taken.
    """

    def __init__(
        self,
        port: RedisPort,
        generations: Generations,
        incarnation: str,
        *,
        parcels_max: int = INBOX_PARCELS_MAX,
    ) -> None:
        self.received: Callable[[bytes], None] = lambda _parcel: None
        self.sent = 0
        self.not_taken = 0
        self._port = port
        self._incarnation = incarnation
        self._parcels_max = parcels_max
        generations.on_new.append(self._make_inbox)

    @property
    def away(self) -> bool:
        """See Transport.away."""
        return self._port.away

    def send(self, incarnation: str, parcel: bytes, taken: Taken) -> None:
        """See Transport.send."""
        self.sent += 1

        def answer(replies: Sequence[object] | None) -> None:
            there = replies is not None and replies[0] is not None
            self.not_taken += not there
            taken(there)

        key = inbox(incarnation)
        self._port.submit([("XADD", key, "NOMKSTREAM", "MAXLEN", "~", self._parcels_max, "*", FIELD, parcel)], answer)

    def forget(self, incarnation: str) -> None:
        """See Transport.forget."""
        self._port.submit([("UNLINK", inbox(incarnation), heads(incarnation))], lambda _replies: None)

    def _make_inbox(self, _new: bool) -> None:
        """Without waiting for the reader's next renewal: a flush may have taken the stream away."""
        self._port.submit(_touch(self._incarnation, self._parcels_max), lambda _replies: None)


class RedisInbox:
    """Implements ``Inbox``: a thread that reads a stream with blocking reads, over a connection of its own.

    Attributes:
        parcels: read, ever.
        reads: that brought parcels, ever.
        handed_over: id of the last item of the stream that was handed over, or need not be: who goes on reading in
            the place of this process begins behind it, if it is set there before ``run``.
    """

    def __init__(self, url: str, incarnation: str, *, name: str, parcels_max: int = INBOX_PARCELS_MAX) -> None:
        """Args: ``url``: see redis_url; ``name``: of the connection in CLIENT LIST. Raises UrlError."""
        self.parcels = 0
        self.reads = 0
        self.handed_over = b"0-0"
        self._address = parse_redis_url(url)
        self._incarnation = incarnation
        self._name = name
        self._parcels_max = parcels_max
        self._stopped = threading.Event()
        self._cursor = b"0-0"
        self._received: Callable[[bytes], None] = lambda _parcel: None
        self._token: trio.lowlevel.TrioToken | None = None
        self._trouble = ""

    async def run(
        self, received: Callable[[bytes], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """See Inbox.run; started at once.

        A cancellation removes the stream, and takes half a second; one that comes before the thread has connected
        leaves the stream to expire.
        """
        self._received = received
        self._cursor = self.handed_over
        self._token = trio.lowlevel.current_trio_token()
        limiter = trio.CapacityLimiter(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: trio.to_thread.run_sync(self._work, limiter=limiter))
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._stopped.set()

    def _hand_over(self, parcels: Sequence[bytes], cursor: bytes) -> None:
        self.handed_over = cursor
        self.reads += 1
        self.parcels += len(parcels)
        for parcel in parcels:
            self._received(parcel)

    # --- The thread -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Connect and read, again and again, until stopped."""
        backoff_s = BACKOFF_MIN_S
        while not self._stopped.is_set():
            try:
                connection = RedisConnection(self._address, self._name, lambda _pushed: None)
                backoff_s = BACKOFF_MIN_S
                try:
                    self._read(connection)
                finally:
                    connection.close()
            except LOSSES as error:
                if self._trouble != (trouble := in_words(error)):
                    log.warning("inbox is not read", reason=trouble)
                    self._trouble = trouble
                self._stopped.wait(backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    def _read(self, connection: RedisConnection) -> None:
        """Read until stopped. Raises what LOSSES lists."""
        key = inbox(self._incarnation)
        renewed_s = float("-inf")
        while not self._stopped.is_set():
            if time.monotonic() - renewed_s >= RENEW_S:
                self._renew(connection)
                renewed_s = time.monotonic()
            connection.send(
                [("XREAD", "COUNT", READ_PARCELS_MAX, "BLOCK", READ_BLOCK_MS, "STREAMS", key, self._cursor)]
            )
            reply: Any = connection.reply()
            if not reply:
                continue
            items = reply[key.encode()]
            self._cursor = items[-1][0]
            parcels = [fields[1] for _, fields in items if fields[0] == FIELD]
            if parcels:
                # Waits until they are handled: what cannot be handled in time stays in Redis, and is trimmed there.
                trio.from_thread.run_sync(self._hand_over, parcels, self._cursor, trio_token=self._token)
        connection.ask("UNLINK", key)

    def _renew(self, connection: RedisConnection) -> None:
        """Keep the stream; find out whether it was made anew by a Redis whose clock is behind the last one's."""
        made, _ = [connection.ask(*command) for command in _touch(self._incarnation, self._parcels_max)]
        if _order(made) <= _order(self._cursor):
            # What comes now would be taken for old. What was read before may come again: parcels are numbered.
            self._cursor = b"0-0"
        self._trouble = ""


def _order(item_id: bytes) -> tuple[int, int]:
    """Ids of a stream's items, as numbers that can be compared."""
    milliseconds, _, number = item_id.partition(b"-")
    return int(milliseconds), int(number)
