"""How much waits in the owner: one number for the whole node, so that its memory is bounded."""

from msgspec import Struct


class Backlog(Struct):
    """Commands that wait: sends to become durable, and any command for a conversation to be loaded or settled.

    Attributes:
        waiting: so many wait now.
        waiting_max: from so many on, commands are refused as overloaded.
    """

    waiting_max: int
    waiting: int = 0

    @property
    def full(self) -> bool:
        """No more may wait."""
        return self.waiting >= self.waiting_max
