"""The heads of the conversations that this node owns, more of them than its owner holds in memory.

A head that was written under an epoch stays right as long as the node owns the slot under that epoch: nobody else
appends, and every append of its own is noted here before it is acknowledged.
"""

from typing import Final

from gateway.broker import Head

REMEMBERED_MAX: Final = 262_144
"""Heads that are remembered, in two halves of which the older is dropped; some 250 bytes each."""


class OwnHeads:
    """Remembers heads.

    Attributes:
        changed: those noted since somebody took this away, by conversation; None while nobody wants them.
    """

    def __init__(self) -> None:
        self.changed: dict[str, str] | None = None
        self._recent: dict[str, str] = {}
        self._older: dict[str, str] = {}

    def note(self, conversation_id: str, epoch: int, head: Head) -> None:
        """The conversation's head is ``head`` now: to be called before that is acknowledged."""
        value = f"{epoch}:{head.seq}:{head.time_us}"
        if len(self._recent) >= REMEMBERED_MAX // 2:
            self._older, self._recent = self._recent, {}
        self._recent[conversation_id] = value
        if self.changed is not None:
            self.changed[conversation_id] = value

    def get(self, conversation_id: str, epoch: int) -> Head | None:
        """The head noted under an epoch, if it is remembered."""
        value = self._recent.get(conversation_id) or self._older.get(conversation_id)
        if value is None:
            return None
        noted, head = read_head(value)
        return head if noted == epoch else None

    def remembered(self) -> dict[str, str]:
        """All of them."""
        return self._older | self._recent


def read_head(value: str) -> tuple[int, Head]:
    """Epoch and head of what ``changed`` and ``remembered`` hold."""
    epoch, seq, time_us = map(int, value.split(":"))
    return epoch, Head(seq, time_us)
