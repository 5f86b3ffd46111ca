"""The conversations in an owner's memory, the least recently used first."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from gateway.owner.conversation import Conversation
from gateway.owner.counters import OwnerCounters

EVICTION_LOOKS_MAX: Final = 8
"""Conversations looked at for one that is idle when room is needed. Busy ones are recently used and thus rarely among
the oldest; if eight are, memory grows by one instead of the loop stalling in a search."""


class Memory:
    """Holds at most ``conversations_max`` conversations, more only while those have something under way."""

    def __init__(self, conversations_max: int, keep: Callable[[str], bool], counters: OwnerCounters) -> None:
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        self._conversations_max = conversations_max
        self._keep = keep
        self._counters = counters
        self.find = self._conversations.get
        """The conversation with an id, or None. Does not count as a use."""
        self.use = self._conversations.move_to_end
        """Note that the conversation with this id was used."""

    def __len__(self) -> int:
        return len(self._conversations)

    def add(self, conversation_id: str) -> Conversation:
        """A new conversation, waiting to be loaded; makes room for it first."""
        self._make_room()
        conversation = self._conversations[conversation_id] = Conversation(conversation_id)
        return conversation

    def all(self) -> list[Conversation]:
        """Every conversation, in no order that matters."""
        return list(self._conversations.values())

    def drop(self, conversation: Conversation) -> None:
        """Forget a conversation, so that its next use loads it again."""
        if self._conversations.get(conversation.conversation_id) is conversation:
            del self._conversations[conversation.conversation_id]

    def _make_room(self) -> None:
        looks = EVICTION_LOOKS_MAX
        while len(self._conversations) >= self._conversations_max and looks:
            looks -= 1
            conversation_id, oldest = next(iter(self._conversations.items()))
            if oldest.idle and not self._keep(conversation_id):
                del self._conversations[conversation_id]
                self._counters.evicted += 1
            else:
                self._conversations.move_to_end(conversation_id)
