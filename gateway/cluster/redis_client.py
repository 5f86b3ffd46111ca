"""The node's connection to Redis, as the trio thread sees it.

What was pending when a connection is lost may have been executed or not. None of it is executed later: the next
connection begins with having Redis end the last one, because bytes of that can still lie in a Redis that was paused.
"""

from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio

from gateway.cluster.ports import Answer, Command, RedisListener
from gateway.cluster.redis_connection import Ready
from gateway.cluster.redis_thread import Event, Job, RedisThread
from gateway.cluster.redis_url import parse_redis_url

COMMANDS_WAITING_MAX: Final = 200_000
"""Commands queued or unanswered, above which more are answered at once that nothing is known: what a Redis executes in
some two seconds, after which it is away anyway."""

BYTES_WAITING_MAX: Final = 64 * 1024 * 1024
"""The same in bytes of parcels, so that a Redis that stalls cannot fill the node's memory."""

log = structlog.get_logger(__name__)


class RedisClient:
    """Implements ``RedisPort`` by a connection to a Redis that is found by URL.

    Attributes:
        listeners: told of connections and invalidations, in this order; added to before ``run``.
        away_reason: why there is no connection, in words; empty while there is one.
        invalidations: keys reported as changed; a flush counts as one.
        connects: connections made.
        unanswered: commands whose outcome stayed unknown, those not even sent included.
        overloaded: those of them that were not sent because too much waited.
    """

    def __init__(self, url: str, *, name: str) -> None:
        """Args: ``url``: see redis_url; ``name``: of this client in CLIENT LIST. Raises UrlError."""
        self.listeners: list[RedisListener] = []
        self.away_reason = "not connected yet"
        self.invalidations = 0
        self.connects = 0
        self.unanswered = 0
        self.overloaded = 0
        self._thread = RedisThread(parse_redis_url(url), name, self)
        self._away = True
        self._waiting = 0
        self._waiting_bytes = 0
        self._token: trio.lowlevel.TrioToken | None = None

    @property
    def commands(self) -> int:
        """Commands sent so far, without those of connecting."""
        return self._thread.commands

    @property
    def batches(self) -> int:
        """Round trips that the commands took."""
        return self._thread.batches

    @property
    def away(self) -> bool:
        """Whether there is no connection just now."""
        return self._away

    @property
    def idle(self) -> bool:
        """Whether everything that was submitted is answered."""
        return not self._waiting

    def submit(self, commands: Sequence[Command], answer: Answer) -> None:
        """See RedisPort.submit."""
        size = sum(len(part) for command in commands for part in command if isinstance(part, bytes))
        # However large: what comes alone is taken.
        crowded = self._waiting > 0 and (
            self._waiting + len(commands) > COMMANDS_WAITING_MAX or self._waiting_bytes + size > BYTES_WAITING_MAX
        )
        if self._away or crowded:
            self.unanswered += len(commands)
            self.overloaded += len(commands) if crowded else 0
            answer(None)
            return
        self._waiting += len(commands)
        self._waiting_bytes += size
        self._thread.queue.put(Job(commands, answer, size))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stay connected until cancelled; started at once, connected or not.

        A cancellation still does what was submitted before, then answers everything else with None. It takes as long
        as Redis takes to answer, some seconds at most.
        """
        self._token = trio.lowlevel.current_trio_token()
        limiter = trio.CapacityLimiter(1)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: trio.to_thread.run_sync(self._thread.work, limiter=limiter))
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._thread.stop()
        finally:
            self._away = True
            self.away_reason = "this node stops"
            self._answer_unknown([])

    # --- Ear, in the thread -----------------------------------------------------------------------------------------

    def heard(self, events: list[Event]) -> None:
        """See Ear.heard."""
        assert self._token is not None
        self._token.run_sync_soon(self._settle, events)

    def back(self, ready: Ready) -> None:
        """See Ear.back."""
        self._in_trio(lambda: self._set_back(ready))

    def lost(self, unknown: list[Job], reason: str) -> None:
        """See Ear.lost."""
        self._in_trio(lambda: self._set_lost(unknown, reason))

    def failed(self, reason: str) -> None:
        """See Ear.failed."""
        self._in_trio(lambda: self._note_failure(reason))

    def _in_trio(self, function: Callable[[], None]) -> None:
        """Call it on the trio thread, behind all that was heard before, and wait until it is done."""
        trio.from_thread.run_sync(function, trio_token=self._token)

    # --- On the trio thread -----------------------------------------------------------------------------------------

    def _settle(self, events: list[Event]) -> None:
        """Tell what the thread heard."""
        for event in events:
            if isinstance(event, tuple):
                job, replies = event
                self._waiting -= len(job.commands)
                self._waiting_bytes -= job.size
                job.answer(replies)
            else:
                self.invalidations += 1 if event is None else len(event)
                for listener in self.listeners:
                    listener.invalidated(event)

    def _set_back(self, ready: Ready) -> None:
        self._away = False
        self.away_reason = ""
        self.connects += 1
        log.info("redis is there", version=ready.version)
        if ready.identity.evicts:
            log.warning(
                "this redis drops data when its memory is full: deliveries slow down whenever it does; "
                "set its maxmemory-policy to noeviction",
                policy=ready.policy,
            )
        for listener in self.listeners:
            listener.back(ready.identity)

    def _set_lost(self, unknown: list[Job], reason: str) -> None:
        self._away = True
        self.away_reason = reason
        log.warning("redis is away", reason=reason)
        self._answer_unknown(unknown)
        for listener in self.listeners:
            listener.lost()

    def _answer_unknown(self, unknown: list[Job]) -> None:
        """Answer what was sent, and then what has been queued since."""
        queue = self._thread.queue
        while not queue.empty():
            job = queue.get_nowait()
            if job is None:
                # The word to stop, which is not a job: the thread looks at its flag as well.
                continue
            unknown.append(job)
        self._waiting = self._waiting_bytes = 0
        for job in unknown:
            self.unanswered += len(job.commands)
            job.answer(None)

    def _note_failure(self, reason: str) -> None:
        if reason != self.away_reason:
            log.warning("redis cannot be used", reason=reason)
        self.away_reason = reason
