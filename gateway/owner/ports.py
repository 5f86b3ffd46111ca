"""What an owner has to know about ownership: which conversations are its own, and whether it may still speak."""

from typing import Protocol


class Ownership(Protocol):
    """Says which conversations this node owns. Plain calls: both are asked on the hot path."""

    def epoch(self, conversation_id: str) -> int | None:
        """The epoch under which this node owns the conversation; None: it does not, another node has to be asked."""

    def may_speak(self, conversation_id: str, epoch: int) -> bool:
        """Whether this node is sure, now, that nobody owns the conversation after it owned it under ``epoch``.

        Asked after an append came back durable and before it is delivered and acknowledged, and before a read is
        answered from memory.
        """


class SingleOwner:
    """Ownership of a node that is alone with its store: everything is its own, for good."""

    def epoch(self, conversation_id: str) -> int | None:
        """Always 1."""
        return 1

    def may_speak(self, conversation_id: str, epoch: int) -> bool:
        """Always."""
        return True
