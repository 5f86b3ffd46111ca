"""Requests to Cassandra from trio: a bounded number under way, and answers brought over from the driver in batches.

The driver answers in a thread of its own. Answers gather in a deque, and one wake-up of trio takes all that are there.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import trio
from cassandra.cluster import EXEC_PROFILE_DEFAULT, ResponseFuture, Session
from cassandra.query import BatchStatement, BoundStatement, Statement

from store.cassandra_session import read_error, write_error
from store.interface import NotWritten, OutcomeUnknown, StoreError, Unavailable

WAITING_PER_PLACE: Final = 16
"""Requests that may wait for each one that may be under way; what comes on top is refused at once."""

Rows = list[tuple[Any, ...]]
Answered = Callable[[Rows, StoreError | None], None]


class Request:
    """One statement on its way.

    ``partitions``: those that it writes; 0 makes it a read. (A transaction counts as two: it can fail half-way.)
    ``told``: whether it was answered.
    """

    __slots__ = ("answered", "future", "partitions", "profile", "statement", "told")

    def __init__(
        self, statement: Statement, partitions: int, answered: Answered, profile: object = EXEC_PROFILE_DEFAULT
    ) -> None:
        self.statement = statement
        self.partitions = partitions
        self.answered = answered
        self.profile = profile
        self.future: ResponseFuture | None = None
        self.told = False

    def meaning(self, error: BaseException | None) -> StoreError | None:
        """What an error of the driver means for it."""
        if error is None:
            return None
        if not self.partitions:
            return read_error(error)
        assert self.future is not None, "sent"
        return write_error(error, self.future, self.partitions)


class Requests:
    """Sends requests, at most ``requests_max`` at once. All methods belong to the trio thread.

    Attributes:
        sent: requests sent, ever; a batch is one.
        statements: those in them, ever; a batch is as many as it has rows.
    """

    def __init__(self, session: Session, requests_max: int) -> None:
        self.sent = 0
        self.statements = 0
        self._session = session
        self._requests_max = requests_max
        self._under_way = 0
        self._waiting: deque[Request] = deque()
        self._answers: deque[tuple[Request, Rows, BaseException | None]] = deque()
        self._token = trio.lowlevel.current_trio_token()
        self._idle = trio.Event()

    def submit(self, request: Request) -> None:
        """Send a request, or let it wait for its turn; it is answered later, once."""
        if self._under_way < self._requests_max:
            self._send(request)
        elif len(self._waiting) < self._requests_max * WAITING_PER_PLACE:
            self._waiting.append(request)
        else:
            text = f"{self._under_way} requests to Cassandra are under way and {len(self._waiting)} wait: try again"
            error = NotWritten(text) if request.partitions else Unavailable(text)
            self._token.run_sync_soon(request.answered, [], error)

    async def run(self, statement: BoundStatement, partitions: int, profile: object = EXEC_PROFILE_DEFAULT) -> Rows:
        """Send a statement and wait for its rows. Raises as its kind does; a cancelled one may still be executed."""
        event = trio.Event()
        found: list[tuple[Rows, StoreError | None]] = []

        def answered(rows: Rows, error: StoreError | None) -> None:
            found.append((rows, error))
            event.set()

        self.submit(Request(statement, partitions, answered, profile))
        await event.wait()
        rows, error = found[0]
        if error is not None:
            raise error
        return rows

    async def finished(self) -> None:
        """Wait until nothing is under way."""
        while self._under_way or self._waiting or self._answers:
            self._idle = trio.Event()
            await self._idle.wait()

    def _send(self, request: Request) -> None:
        self._under_way += 1
        self.sent += 1
        statement = request.statement
        self.statements += len(statement) if isinstance(statement, BatchStatement) else 1
        future = self._session.execute_async(statement, execution_profile=request.profile)
        request.future = future
        future.add_callbacks(self._answer, self._fail, callback_args=(request,), errback_args=(request,))

    # The next two run in the driver's thread, or in trio's when there is an answer at once.

    def _answer(self, rows: Rows | None, request: Request) -> None:
        self._bring(request, rows or [], None)

    def _fail(self, error: BaseException, request: Request) -> None:
        self._bring(request, [], error)

    def _bring(self, request: Request, rows: Rows, error: BaseException | None) -> None:
        self._answers.append((request, rows, error))
        try:
            self._token.run_sync_soon(self._take, idempotent=True)
        except trio.RunFinishedError:
            return  # nobody is left to hear of it

    def _take(self) -> None:
        """Tell all answers that are there, and send what waited for their places."""
        answers = self._answers
        for _ in range(len(answers)):
            request, rows, error = answers.popleft()
            if request.told:
                continue  # the driver calls back for each of the replicas that it has sent a slow read to
            request.told = True
            self._under_way -= 1
            request.answered(rows, request.meaning(error))
        while self._waiting and self._under_way < self._requests_max:
            self._send(self._waiting.popleft())
        if not self._under_way:
            self._idle.set()

    def refuse_waiting(self) -> None:
        """Answer what was not sent yet, at the end."""
        while self._waiting:
            request = self._waiting.popleft()
            text = "the store has ended"
            request.answered([], OutcomeUnknown(text) if request.partitions else Unavailable(text))
