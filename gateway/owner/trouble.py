"""When the store does not simply say yes: what was refused, what is unknown, and what takes too long.

From the first answer that is not a yes, a conversation stands still until all its appends are answered. Then:

- a newer epoch: it belongs to another owner; forget it, acknowledge nothing;
- nothing that may be in the store: all refused, the head goes back, the next use loads it again;
- otherwise the very same rows are appended again until each is known: a seq that may be taken is never given to
  another entry.
"""

from collections.abc import Callable, Sequence
from typing import Final

import trio

from gateway.broker import EdgePort
from gateway.owner.backlog import Backlog
from gateway.owner.conversation import Conversation, Pending
from gateway.owner.counters import OwnerCounters
from gateway.refusals import Refused, outcome_unknown, unavailable
from store.entries import Append
from store.interface import NotWritten, StaleEpoch, StoreError

ANSWER_MAX_S: Final = 10.0
"""Seconds after which a send that the store has not answered is told OUTCOME_UNKNOWN: as long as a client waits
before it gives a connection up, so that it learns more than silence."""

OVERDUE_CHECK_S: Final = 1.0
"""Seconds between two looks for overdue sends; an answer may come so much later than ANSWER_MAX_S."""

REPEAT_MIN_S: Final = 0.05
"""Seconds before rows of unknown outcome are appended again the first time; doubles while nothing becomes known."""

REPEAT_MAX_S: Final = 5.0
"""Seconds between two repeats at most: what a healed store makes senders wait."""


class Troubles:
    """Keeps conversations whose appends went wrong until they are settled one way or the other.

    Attributes:
        unsettled: conversations with sends that the store had not answered at the last look, or that came since.
    """

    def __init__(
        self,
        edge: EdgePort,
        counters: OwnerCounters,
        backlog: Backlog,
        settle: Callable[[Conversation], None],
        recovered: Callable[[Conversation], None],
        drop: Callable[[Conversation], None],
        append_again: Callable[[Sequence[Append]], None],
    ) -> None:
        self.unsettled: set[Conversation] = set()
        self._edge = edge
        self._counters = counters
        self._backlog = backlog
        self._settle = settle
        self._recovered = recovered
        self._drop = drop
        self._append_again = append_again
        self._unknown: list[Conversation] = []
        self._wake = trio.Event()
        self._repeat_s = REPEAT_MIN_S

    def note(self, conversation: Conversation, error: StoreError | None) -> None:
        """Take the next answer of a conversation in trouble; with the last one outstanding, judge them all."""
        if conversation.outcomes is None:
            conversation.outcomes = []
            conversation.close()
        conversation.outcomes.append(error)
        if len(conversation.outcomes) == len(conversation.flights):
            self._judge(conversation, conversation.outcomes)

    def _judge(self, conversation: Conversation, outcomes: list[StoreError | None]) -> None:
        known = next((index for index, error in enumerate(outcomes) if error is not None), len(outcomes))
        for _ in range(known):
            self._repeat_s = REPEAT_MIN_S
            conversation.uncertain = max(0, conversation.uncertain - 1)
            if not conversation.flights[1:]:
                conversation.outcomes = None  # this one was the last: settling it may resume the conversation
            self._settle(conversation)
        rest = outcomes[known:]
        if not rest:
            self._recovered(conversation)
            return
        for index, error in enumerate(rest):
            if not isinstance(error, NotWritten | StaleEpoch):
                conversation.uncertain = max(conversation.uncertain, index + 1)
        if any(isinstance(error, StaleEpoch) for error in rest):
            self._give_up(conversation, _lost())
        elif conversation.uncertain:
            self._counters.unknown_outcomes += conversation.uncertain
            conversation.outcomes = []
            self._unknown.append(conversation)
            self._wake.set()
        else:
            self._counters.not_written += sum(len(append.entries) for append in conversation.flights)
            self._give_up(conversation, unavailable(f"the store could not write it ({rest[0]})"))

    def give_up(self, conversation: Conversation) -> None:
        """Answer everybody that a conversation is another's now, what is under way being of unknown outcome."""
        self._give_up(conversation, _lost())

    def _give_up(self, conversation: Conversation, refusal: Refused) -> None:
        """Answer everybody, and forget the conversation: its next use loads what the store has."""
        uncertain = sum(len(append.entries) for append in conversation.flights[: conversation.uncertain])
        sends, conversation.pending = conversation.pending, []
        conversation.flights, conversation.unflushed, conversation.outcomes = [], [], None
        self._backlog.remove(sum(len(send.stored.encoded) for send in sends), len(sends))
        unknown = outcome_unknown()
        for index, send in enumerate(sends):
            self._refuse(send, unknown if index < uncertain else refusal)
        self._drop(conversation)

    def _refuse(self, send: Pending, refusal: Refused) -> None:
        """Answer a send and its repeats, once."""
        if send.origin is not None:
            self._edge.reply(send.origin, refusal.reply(send.request_id))
            send.origin = None
        for origin, request_id in send.repeats or ():
            self._edge.reply(origin, refusal.reply(request_id))
        send.repeats = None

    async def repeat_forever(self) -> None:
        """Append rows of unknown outcome again, less and less often while that does not help."""
        while True:
            await self._wake.wait()
            await trio.sleep(self._repeat_s)
            self._wake = trio.Event()  # not before: what has become unknown meanwhile is repeated now
            self._repeat_s = min(self._repeat_s * 2, REPEAT_MAX_S)
            conversations, self._unknown = self._unknown, []
            self._append_again([append for conversation in conversations for append in conversation.flights])

    async def answer_overdue_forever(self) -> None:
        """Tell senders whose send the store does not answer that its outcome is unknown."""
        while True:
            await trio.sleep(OVERDUE_CHECK_S)
            overdue_s = trio.current_time() - ANSWER_MAX_S
            self.unsettled = {each for each in self.unsettled if each.pending}
            for conversation in [each for each in self.unsettled if each.pending[0].arrived_s <= overdue_s]:
                self._answer_overdue(conversation, overdue_s)

    def _answer_overdue(self, conversation: Conversation, overdue_s: float) -> None:
        unknown = outcome_unknown()
        late = [send for send in conversation.pending if send.arrived_s <= overdue_s]
        for send in late:
            self._counters.unanswered += send.origin is not None
            self._refuse(send, unknown)
        if late and conversation.waiting:
            refusal = unavailable("the store has not answered for an earlier command of this conversation")
            self._backlog.remove_all(conversation.waiting)
            for origin, command in conversation.waiting:
                self._edge.reply(origin, refusal.reply(command.id))
            conversation.waiting.clear()


def _lost() -> Refused:
    return unavailable("this node does not own the conversation any more")
