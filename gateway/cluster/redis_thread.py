"""The thread that speaks with Redis: it sends what is queued in one go, and hands over all it hears in order.

While a batch is under way, the next one gathers: the busier, the larger. What Redis pushes while nothing is asked is
read when the thread has been idle for IDLE_S; nobody relies on it before the next reply.
"""

import random
import threading
import time
from collections.abc import Collection, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

from msgspec import Struct
from redis.exceptions import ResponseError

from gateway.cluster.ports import Answer, Command
from gateway.cluster.redis_connection import LOSSES, PUSH, NotUsable, Ready, RedisConnection, in_words
from gateway.cluster.redis_url import RedisAddress

BATCH_COMMANDS_MAX: Final = 2_000
"""Commands after which a batch is sent: some 20 ms of Redis' time, well below the patience for a reply."""

BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
"""Bytes of parcels after which a batch is sent, for the same reason on a slow network."""

IDLE_S: Final = 0.25
"""Seconds without commands after which the thread looks for invalidations."""

BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0
"""Seconds between two attempts to connect, doubling; each pause is drawn between half and all of it."""

BACKOFF_FORGET_S: Final = 5.0
"""How long a connection has to last, seconds, for the next attempts to begin with the least pause again."""


class Job(Struct, gc=False):
    """Commands that were submitted together, and the bytes of parcels in them."""

    commands: Sequence[Command]
    answer: Answer
    size: int


Event = tuple[Job, list[object]] | Collection[str] | None
"""What was heard: a job's replies, or the keys that were invalidated, None for all."""


class Ear(Protocol):
    """Who is told, in the thread: each call returns when it was passed on, so that all keep their order."""

    def heard(self, events: list[Event]) -> None:
        """Replies and invalidations, in order."""

    def back(self, ready: Ready) -> None:
        """There is a connection; what was queued before has been answered."""

    def lost(self, unknown: list[Job], reason: str) -> None:
        """The connection is lost, and with it what was sent or queued."""

    def failed(self, reason: str) -> None:
        """No connection could be made."""


class RedisThread:
    """What runs in the thread. Only ``queue`` and ``stop`` are for others.

    Attributes:
        queue: jobs to do.
        commands: sent so far, without those of connecting.
        batches: round trips they took.
    """

    def __init__(self, address: RedisAddress, name: str, ear: Ear) -> None:
        """See ``RedisClient``."""
        self.queue: SimpleQueue[Job | None] = SimpleQueue()
        self.commands = 0
        self.batches = 0
        self._address = address
        self._name = name
        self._ear = ear
        self._stopped = threading.Event()
        self._events: list[Event] = []
        self._earlier: tuple[str, int] | None = None

    def stop(self) -> None:
        """Have ``work`` do what is queued and return; for any thread."""
        self._stopped.set()
        self.queue.put(None)

    def work(self) -> None:
        """Connect and serve, again and again, until stopped."""
        backoff_s = BACKOFF_MIN_S
        while not self._stopped.is_set():
            began_s = time.monotonic()
            try:
                connection = self._connect()
            except LOSSES as error:
                self._ear.failed(in_words(error))
            else:
                self._serve(connection)
                if time.monotonic() - began_s >= BACKOFF_FORGET_S:
                    backoff_s = BACKOFF_MIN_S
            self._stopped.wait(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    def _connect(self) -> RedisConnection:
        """Connect, and tell. Raises what LOSSES lists."""
        connection = RedisConnection(self._address, self._name, self._pushed)
        try:
            ready = connection.make_ready()
            # What the last connection sent may still lie unread at Redis; it must not come behind what is sent now.
            run_id, earlier = self._earlier or ("", 0)
            connection.kill(earlier if run_id == ready.identity.run_id else ready.client_id)
            connection.track()
        except BaseException:
            connection.close()
            raise
        self._earlier = (ready.identity.run_id, ready.client_id)
        self._events = []
        self._ear.back(ready)
        return connection

    def _serve(self, connection: RedisConnection) -> None:
        """Work the queue off until the connection is lost or it is time to stop."""
        jobs: list[Job] = []
        going_on = True
        try:
            while going_on:
                going_on = self._take(jobs)
                if jobs:
                    self._do(connection, jobs)
                else:
                    connection.read_pushes()
                if self._events:
                    self._ear.heard(self._events)
                    self._events = []
        except LOSSES as error:
            if self._events:
                self._ear.heard(self._events)
            self._ear.lost(jobs, in_words(error))
        finally:
            connection.close()

    def _take(self, jobs: list[Job]) -> bool:
        """Wait for jobs and take all that fit a batch, none if none came; False if there is a reason to stop."""
        commands = size = 0
        try:
            job = self.queue.get(timeout=IDLE_S)
            while job is not None:
                jobs.append(job)
                commands += len(job.commands)
                size += job.size
                if commands >= BATCH_COMMANDS_MAX or size >= BATCH_BYTES_MAX:
                    return True
                job = self.queue.get_nowait()
        except Empty:
            return True
        return False

    def _do(self, connection: RedisConnection, jobs: list[Job]) -> None:
        """Send all, and take from ``jobs`` what is answered. Raises what LOSSES lists."""
        commands = [command for job in jobs for command in job.commands]
        self.commands += len(commands)
        self.batches += 1
        connection.send(commands)
        answered = 0
        try:
            for job in jobs:
                self._events.append((job, [self._reply(connection, command) for command in job.commands]))
                answered += 1
        finally:
            del jobs[:answered]

    def _reply(self, connection: RedisConnection, command: Command) -> object:
        read = connection.read
        try:
            while (reply := read()) is PUSH:
                pass
        except ResponseError as error:
            raise NotUsable(f"it refuses {command[0]!s}: {error}") from error
        return reply

    def _pushed(self, message: Sequence[Any]) -> None:
        """Note an invalidation in its place among the replies."""
        if message[0] == b"invalidate":
            keys = message[1]
            self._events.append(None if keys is None else [key.decode() for key in keys])
