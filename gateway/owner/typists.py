"""Who types: throttled, ended by itself, and never worth a task or a place in the log."""

import heapq
from collections.abc import Callable
from typing import Final

import trio
from msgspec import Struct

from gateway.broker import EdgePort, Origin
from gateway.owner.conversation import Conversation
from gateway.owner.counters import OwnerCounters
from protocol.frames import Ok, Typing, TypingPush
from protocol.limits import TYPING_ENDS_S, TYPING_INTERVAL_S, TYPING_MEMBERS_MAX

TYPISTS_MAX: Final = 10_000
"""Users typing at once on this node; more are not shown. Bounds memory, some 3 MB."""


class Typist(Struct):
    """A user who types in a conversation, or did within the last TYPING_ENDS_S (trio's clock, seconds)."""

    pushed_s: float
    ends_s: float
    typing: bool


class Typists:
    """Pushes who begins and who ends to type."""

    def __init__(
        self,
        edge: EdgePort,
        counters: OwnerCounters,
        find: Callable[[str], Conversation | None],
        may_speak: Callable[[Conversation], bool],
    ) -> None:
        self._edge = edge
        self._counters = counters
        self._find = find
        self._may_speak = may_speak
        self._typists: dict[tuple[str, str], Typist] = {}
        self._ends: list[tuple[float, tuple[str, str]]] = []  # a heap: when to look at whom, once for each typist
        self._wake = trio.Event()

    def submit(self, conversation: Conversation, origin: Origin, command: Typing) -> None:
        """Note that the origin's user types, or has stopped. Raises as ``require_member`` does."""
        conversation.require_member(origin.user)
        if conversation.is_channel or len(conversation.members) > TYPING_MEMBERS_MAX:
            self._counters.typing_shed += 1
        elif command.typing:
            self._begin(conversation, origin.user)
        else:
            self._stop(conversation, origin.user)
        if command.id:
            self._edge.reply(origin, Ok(command.id))

    def _begin(self, conversation: Conversation, user: str) -> None:
        now_s = trio.current_time()
        key = (conversation.conversation_id, user)
        typist = self._typists.get(key)
        if typist is None:
            if len(self._typists) >= TYPISTS_MAX:
                self._counters.typing_shed += 1
                return
            self._typists[key] = Typist(now_s, now_s + TYPING_ENDS_S, typing=True)
            heapq.heappush(self._ends, (now_s + TYPING_ENDS_S, key))
            self._wake.set()
            self._push(conversation, user, typing=True)
            return
        if now_s - typist.pushed_s < TYPING_INTERVAL_S:
            if typist.typing:
                typist.ends_s = now_s + TYPING_ENDS_S
            self._counters.typing_throttled += 1
            return
        typist.pushed_s, typist.ends_s, typist.typing = now_s, now_s + TYPING_ENDS_S, True
        self._push(conversation, user, typing=True)

    def _stop(self, conversation: Conversation, user: str) -> None:
        typist = self._typists.get((conversation.conversation_id, user))
        if typist is not None and typist.typing:
            typist.typing = False
            self._push(conversation, user, typing=False)

    def _push(self, conversation: Conversation, user: str, typing: bool) -> None:
        others = [other for other in conversation.recipients if other != user]
        if others and self._may_speak(conversation):  # else another owner may have removed some of them
            self._counters.typing_pushed += 1
            push = TypingPush(conversation.conversation_id, user, typing)
            self._edge.signal(others, push, conversation.conversation_id)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End what was not repeated, until cancelled; what is typed then ends by itself at the receivers."""
        task_status.started()
        while True:
            if not self._ends:
                self._wake = trio.Event()
                await self._wake.wait()
            await trio.sleep_until(self._ends[0][0])
            self._end_due(trio.current_time())

    def _end_due(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            _, key = heapq.heappop(self._ends)
            typist = self._typists[key]
            if typist.ends_s > now_s:  # repeated meanwhile
                heapq.heappush(self._ends, (typist.ends_s, key))
                continue
            del self._typists[key]
            conversation = self._find(key[0])
            if typist.typing and conversation is not None and key[1] in conversation.members:
                self._push(conversation, key[1], typing=False)
