"""One user who sends to many conversations at once, repeats what has to be, and notes when each was answered."""

import heapq
import select
import time
from collections.abc import Sequence

from bench.errors import BenchError
from bench.load.setup import SetupClient
from bench.load.wire import client_frame
from protocol.codec import encode_msgpack
from protocol.errors import ErrorCode
from protocol.frames import ErrorReply, Reply, Send, SendAck

TO_BE_REPEATED = frozenset((ErrorCode.UNAVAILABLE, ErrorCode.OVERLOADED, ErrorCode.OUTCOME_UNKNOWN))
"""Refusals after which a client sends the same message again."""

ANSWERS_TIMEOUT_S = 60.0
"""Seconds within which all conversations have to answer."""


class Asker(SetupClient):
    """Sends as a client does that wants each message delivered."""

    def answer_times(self, conversations: Sequence[str], name: str, began_s: float) -> list[float]:
        """Send one message to each conversation; when it was acknowledged, seconds from ``began_s``, in any order.

        ``name`` tells these messages from others; ``began_s`` is a reading of the monotonic clock. Raises BenchError
        when one is refused for good, or some are not answered in time.
        """
        waiting = {self.next_id(): Send(0, each, f"{name}-{at}", name) for at, each in enumerate(conversations)}
        again: list[tuple[float, int]] = []
        times: list[float] = []
        self._write([Send(number, *_rest(send)) for number, send in waiting.items()])
        while waiting:
            now_s = time.monotonic()
            if now_s > began_s + ANSWERS_TIMEOUT_S:
                raise BenchError(f"{len(waiting)} conversations did not answer within {ANSWERS_TIMEOUT_S:g} s")
            while again and again[0][0] <= now_s:
                number = heapq.heappop(again)[1]
                self._write([Send(number, *_rest(waiting[number]))])
            for reply in self._replies(again[0][0] - now_s if again else 1.0):
                if isinstance(reply, SendAck):
                    del waiting[reply.id]
                    times.append(time.monotonic() - began_s)
                elif isinstance(reply, ErrorReply):
                    if reply.code not in TO_BE_REPEATED:
                        raise BenchError(f"the node refused a send for good: {reply.message}")
                    waiting[reply.id].attempt += 1
                    heapq.heappush(again, (time.monotonic() + reply.retry_after_ms / 1000, reply.id))
        return times

    def _write(self, sends: list[Send]) -> None:
        self.connection.sendall(b"".join(client_frame(encode_msgpack(send)) for send in sends))

    def _replies(self, wait_s: float) -> list[Reply]:
        """What comes within ``wait_s`` seconds; nothing if nothing does."""
        if not select.select([self.connection], [], [], max(0.0, wait_s))[0]:
            return []
        return [frame for frame in self._frames() if isinstance(frame, Reply)]


def _rest(send: Send) -> tuple[str, str, str, None, int]:
    """All of a send but its id."""
    return send.conversation_id, send.client_msg_id, send.body, None, send.attempt
