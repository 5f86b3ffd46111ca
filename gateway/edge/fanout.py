"""Deliveries to many connections, in slices, without letting anybody else wait.

A small delivery is written at once. A large one becomes a job: jobs of one conversation run first in first out, so that
order holds, and conversations take turns, so that a huge one delays only itself. Between slices of about a millisecond
the loop is free for everybody else.

While too much waits for a conversation, this node refuses sends to it. Others do not know, and may go on to deliver
faster than this one writes: then what was not begun is given up, and its recipients are told to sync.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain, islice

import structlog
import trio
from msgspec import Raw

from gateway.broker import Delivery
from gateway.edge.connection import JSON, SENDER, Connection, Devices
from gateway.edge.outgoing import PushBatch, encode_for
from gateway.edge.send_ring import RING_SOCKETS_MIN, best_send_each
from gateway.edge.writer import Writer
from protocol.frames import EntryPush, Resync

INLINE_RECIPIENTS_MAX = 64
"""Recipients of a delivery that is written at once: about 0.2 ms of writes, less than a turn through the scheduler is
worth for more."""

RECIPIENTS_PER_STEP = 128
"""Recipients between two looks at the clock: about 0.3 ms."""

JOBS_PER_CONVERSATION_MAX = 64
"""Unfinished deliveries of one conversation above which sends to it are refused: with 10,000 members some 3 s of
writing. Each holds the entries of a whole batch."""

JOBS_MAX = 4_096
"""Unfinished deliveries of the node above which sends to conversations that have any are refused."""

JOBS_HELD_MAX = 1_024
"""Unfinished deliveries of one conversation above which they are given up: with 10,000 members some 50 s of writing. A
moment's standstill does not leave so many."""

JOBS_HELD_ALL_MAX = 4 * JOBS_MAX
"""Unfinished deliveries of the node above which those of a conversation are given up that has many of them."""

SLICE_S = 0.001
"""Seconds of writing between two checkpoints."""

log = structlog.get_logger(__name__)


class _SyncInstead:
    """The push that takes the place of those that were given up; for the rest as ``PushBatch``."""

    __slots__ = ("_json", "arrived_s", "joined", "origins")

    def __init__(self, conversation_id: str) -> None:
        push = Resync([conversation_id])
        self.joined = encode_for(push, json=False)
        self._json = encode_for(push, json=True)
        self.origins: list[Connection] = []
        self.arrived_s = 0.0

    def for_connection(self, _connection: object, *, json: bool) -> bytes:
        """In the connection's subprotocol."""
        return self._json if json else self.joined


class _Job:
    """A delivery in progress (``batch``), or a call to make when the deliveries before it are done (``then``)."""

    __slots__ = ("batch", "everybody", "recipients", "then")

    def __init__(
        self, everybody: Collection[str], batch: PushBatch | _SyncInstead | None, then: Callable[[], None] | None
    ) -> None:
        self.everybody = everybody
        self.recipients = iter(everybody)  # those who are still to get it
        self.batch = batch
        self.then = then


class _Jobs(deque[_Job]):
    """Those of one conversation, in order. ``deliveries``: how many of them are no calls."""

    deliveries = 0


class Fanout:
    """Writes batches of pushes to the connections of many users.

    Attributes:
        jobs_waiting: by conversation, the deliveries that are not complete; empty most of the time.
        deliveries: writes of a batch to a connection, ever.
        given_up: deliveries whose recipients were told to sync instead, ever.
        on_written: called when a delivery is complete: (seconds since its oldest send arrived, writes).
    """

    def __init__(self, by_user: dict[str, Connection | Devices], writer: Writer) -> None:
        self._by_user = by_user
        self._writer = writer
        self._send_each = best_send_each()
        self.jobs_waiting: dict[str, _Jobs] = {}
        self._turns: deque[str] = deque()
        self._job_count = 0
        self._wake = trio.Event()
        self.deliveries = 0
        self.given_up = 0
        self.on_written: Callable[[float], None] = lambda _seconds: None

    def congested(self, conversation_id: str) -> bool:
        """Whether so much is waiting for this conversation that it should get no more."""
        jobs = self.jobs_waiting.get(conversation_id)
        return jobs is not None and (len(jobs) >= JOBS_PER_CONVERSATION_MAX or self._job_count >= JOBS_MAX)

    def deliver(self, delivery: Delivery, recipients: Collection[str]) -> None:
        """Write a delivery to all connections of the recipients, now or in slices."""
        conversation_id, count = delivery.conversation_id, len(recipients)
        if count > INLINE_RECIPIENTS_MAX or conversation_id in self.jobs_waiting:
            self._enqueue(conversation_id, _Job(recipients, PushBatch(delivery), None))
            return
        if count >= RING_SOCKETS_MIN:
            self._write(iter(recipients), count, PushBatch(delivery))
        elif len(delivery.entries) == 1:
            self._write_one(recipients, delivery)
        else:
            self._write_few(recipients, PushBatch(delivery))
        self._complete(delivery.arrived_s)

    def after(self, conversation_id: str, then: Callable[[], None]) -> bool:
        """Call ``then`` after the conversation's unfinished deliveries; False if there are none (nothing is done)."""
        if conversation_id not in self.jobs_waiting:
            return False
        self._enqueue(conversation_id, _Job((), None, then))
        return True

    def _enqueue(self, conversation_id: str, job: _Job) -> None:
        jobs = self.jobs_waiting.get(conversation_id)
        if jobs is None:
            jobs = self.jobs_waiting[conversation_id] = _Jobs()
            self._turns.append(conversation_id)
        elif jobs.deliveries >= JOBS_HELD_MAX or (
            self._job_count >= JOBS_HELD_ALL_MAX and jobs.deliveries >= JOBS_PER_CONVERSATION_MAX
        ):
            self._give_up(conversation_id, jobs)
        jobs.append(job)
        jobs.deliveries += job.batch is not None
        self._job_count += 1
        self._wake.set()

    def _give_up(self, conversation_id: str, jobs: _Jobs) -> None:
        """Let one push that tells to sync take the place of all deliveries of a conversation that were not begun."""
        first, *rest = jobs
        late = [job for job in rest if job.batch is not None]
        everybody = {id(job.everybody): job.everybody for job in late}  # of most the same
        recipients = tuple(dict.fromkeys(chain.from_iterable(everybody.values())))
        calls = [job for job in rest if job.batch is None]
        jobs.clear()
        jobs.extend((first, _Job(recipients, _SyncInstead(conversation_id), None), *calls))
        jobs.deliveries -= len(late) - 1
        self._job_count -= len(late) - 1
        self.given_up += len(late)
        log.warning("deliveries given up: written too slowly", conversation=conversation_id, deliveries=len(late))

    async def run(self) -> None:
        """Run jobs for ever. A cancellation leaves what was not written unwritten: sync brings it."""
        while True:
            await self._wake.wait()
            while self._turns:
                self._run_slice()
                await trio.lowlevel.checkpoint()
            self._wake = trio.Event()

    def _run_slice(self) -> None:
        until = trio.current_time() + SLICE_S
        while self._turns:
            conversation_id = self._turns.popleft()
            jobs = self.jobs_waiting[conversation_id]
            if self._step(jobs[0]):
                jobs.deliveries -= jobs.popleft().batch is not None
                self._job_count -= 1
            if jobs:
                self._turns.append(conversation_id)
            else:
                del self.jobs_waiting[conversation_id]
            if trio.current_time() >= until:
                return

    def _step(self, job: _Job) -> bool:
        """Do a bounded part of a job; True when it is complete."""
        if job.batch is None:
            assert job.then is not None
            job.then()
            return True
        if self._write(job.recipients, RECIPIENTS_PER_STEP, job.batch):
            return False
        self._complete(job.batch.arrived_s)
        return True

    def _complete(self, arrived_s: float) -> None:
        if arrived_s:
            self.on_written(trio.current_time() - arrived_s)

    def _write_one(self, recipients: Collection[str], delivery: Delivery) -> None:
        """As ``_write_few``, of one entry: nearly every delivery is like this."""
        by_user, origin = self._by_user, delivery.origins[0]
        batch: PushBatch | None = None
        data = encode_for(EntryPush(delivery.conversation_id, Raw(delivery.entries[0])), json=False)
        for user in recipients:
            target = by_user.get(user)
            if target is None or target is origin:
                continue
            self.deliveries += 1
            if target.flags:
                batch = batch or PushBatch(delivery)
                self._write_special(target, batch)
            else:
                self._writer.write(target, data)  # type: ignore[arg-type]

    def _write_few(self, recipients: Iterable[str], batch: PushBatch) -> None:
        """As ``_write``, for all of so few that a plain loop is the cheapest."""
        by_user, origins, data = self._by_user, batch.origins, batch.joined
        for user in recipients:
            target = by_user.get(user)
            if target is None:
                continue
            self.deliveries += 1
            if target.flags or target in origins:
                self._write_special(target, batch)
            else:
                self._writer.write(target, data)  # type: ignore[arg-type]

    def _write(self, recipients: Iterator[str], limit: int, batch: PushBatch | _SyncInstead) -> bool:
        """Write to the next ``limit`` recipients; True if there may be more."""
        users = list(islice(recipients, limit))
        present: list[Connection | Devices] = list(filter(None, map(self._by_user.get, users)))
        for origin in batch.origins:
            origin.flags |= SENDER
        try:
            self._write_present(present, batch)
        finally:
            for origin in batch.origins:
                origin.flags &= ~SENDER
        self.deliveries += len(present)
        return len(users) == limit

    def _write_present(self, present: list[Connection | Devices], batch: PushBatch | _SyncInstead) -> None:
        """The hottest loop of a node: ordinary connections are written to without a step of the interpreter each."""
        self._writer.write_held()
        data = batch.joined
        socks = [target.sock for target in present if not target.flags]  # type: ignore[union-attr]
        if len(socks) < len(present):
            special = [target for target in present if target.flags]
            present = [target for target in present if not target.flags]
            for target in special:
                self._write_special(target, batch)
        sent = self._send_each(socks, data)
        if sent.count(len(data)) < len(sent):
            for connection, count in zip(present, sent, strict=True):
                if count != len(data):
                    self._not_whole(connection, data, count)  # type: ignore[arg-type]

    def _not_whole(self, connection: Connection, data: bytes, sent: int) -> None:
        if sent < 0:
            self._writer.write(connection, data)  # finds out whether the socket is full or broken
        else:
            self._writer.take_rest(connection, data, sent)

    def _write_special(self, target: Connection | Devices, batch: PushBatch | _SyncInstead) -> None:
        if type(target) is Devices:
            self.deliveries += len(target.connections) - 1
            for connection in target.connections:
                self._write_special(connection, batch)
            return
        assert type(target) is Connection
        data = batch.for_connection(target, json=bool(target.flags & JSON))
        if data:
            self._writer.write(target, data)
        else:
            self.deliveries -= 1
