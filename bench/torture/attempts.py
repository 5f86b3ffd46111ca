"""The attempts of one command: each is a call of its own in the history."""

from collections.abc import Callable

from gateway.check.recorder import Recorder
from protocol.frames import Command

Make = Callable[[int, int], Command]
"""Makes a command for a request id and the number of an attempt."""


class Attempts:
    """Records each attempt of a command that appends an entry, as the client makes them."""

    def __init__(self, recorder: Recorder, process: str, op: str, make: Make, **fields: object) -> None:
        """Describe a command; ``fields`` are those of its invocations."""
        self._recorder = recorder
        self._process, self._op = process, op
        self._make = make
        self._fields = fields
        self._attempt = 0
        self._call = 0

    def command(self, request_id: int, attempt: int) -> Command:
        """The command of an attempt, whose beginning is recorded when it is made for the first time."""
        if attempt != self._attempt:
            if self._attempt:
                self.end("info", error="no answer, or one that asked to try again")
            self._attempt, self._call = attempt, self._recorder.next_call()
            self._recorder.record("invoke", self._op, self._process, call=self._call, attempt=attempt, **self._fields)
        return self._make(request_id, attempt)

    def end(self, kind: str, **fields: object) -> None:
        """Record how the present attempt ended; one that was never made has no end."""
        if self._call:
            self._recorder.record(kind, self._op, self._process, call=self._call, **fields)
