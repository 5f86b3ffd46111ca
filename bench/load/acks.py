"""Senders of 1:1 messages at a fixed rate, and how long each waits for its acknowledgement."""

import time
from collections import deque

from bench.load.accounts import Door
from bench.load.pairs import Pairs, _Sender
from bench.machine import Cores


class AckTimes(Pairs):
    """As ``Pairs``, with the time from the moment a send was due to the reading of its acknowledgement."""

    def __init__(
        self, door: Door, cores: Cores, senders: list[str], receivers: list[str], conversations: list[str]
    ) -> None:
        """Connect all ends."""
        super().__init__(door, cores, senders, receivers, conversations)
        self._due_ns: dict[int, deque[int]] = {fd: deque() for fd in self._senders}
        self._waits_ns: list[int] = []

    def timed(self, rate_per_s: float, seconds: float) -> list[int]:
        """Send at a fixed rate, whatever comes back, and wait for the rest; what each send waited, nanoseconds.

        Raises BenchError when a connection is closed, or an acknowledgement or delivery is missing at the end.
        """
        self._waits_ns = []
        self._pace(rate_per_s, seconds)
        self._settle()
        return self._waits_ns

    def _send(self, sender: _Sender, count: int, stamp_ns: int) -> None:
        self._due_ns[sender.fd].extend([stamp_ns] * count)
        super()._send(sender, count, stamp_ns)

    def _acks(self, sender: _Sender, data: bytes) -> int:
        acks = super()._acks(sender, data)
        now_ns, due_ns = time.perf_counter_ns(), self._due_ns[sender.fd]
        self._waits_ns += [now_ns - due_ns.popleft() for _ in range(acks)]  # answered in the order of sending
        return acks
