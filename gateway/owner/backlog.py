"""How much waits in the owner: two numbers for the whole node, so that its memory is bounded."""

from collections.abc import Collection
from typing import Final

from msgspec import Struct

from gateway.broker import Origin
from gateway.refusals import Refused, overloaded
from protocol.frames import AddMembers, Command, CreateConversation, RemoveMembers, Rename, Send

COMMAND_BYTES_MEAN: Final = 256
"""Bytes that the texts of one waiting command may take on average: twice an ordinary message, so that it is their
number which bounds those, and 16 MiB where 65,536 may wait. The largest send takes 53 KB on the wire and, decoded and
encoded, 168 KB here: as many of those would be 11 GB. Bounded so, what waits takes at most some 100 MB (up to six bytes
for each that counts, where one letter of another script makes Python keep all of a text in four bytes each), besides
about 1 KB for each command."""


class Backlog(Struct):
    """Commands that wait: sends to become durable, and any command for what the store is asked about first.

    Attributes:
        waiting_max: from so many on, commands are refused as overloaded.
        waiting: so many wait now.
        waiting_bytes: what their texts take: of an entry its encoded bytes, of a command ``size_of``.
        waiting_bytes_max: from so many on, too. (One command more may be taken than fits.)
    """

    waiting_max: int
    waiting: int = 0
    waiting_bytes: int = 0
    waiting_bytes_max: int = 0

    def __post_init__(self) -> None:
        self.waiting_bytes_max = self.waiting_max * COMMAND_BYTES_MEAN

    @property
    def full(self) -> bool:
        """No more may wait."""
        return self.waiting >= self.waiting_max or self.waiting_bytes >= self.waiting_bytes_max

    def refusal(self) -> Refused:
        """What is answered while it is full."""
        if self.waiting >= self.waiting_max:
            return overloaded(self.waiting)
        return overloaded(self.waiting_bytes, "bytes of commands")

    def add(self, size: int) -> None:
        """One more waits, of so many bytes."""
        self.waiting += 1
        self.waiting_bytes += size

    def remove(self, size: int, count: int = 1) -> None:
        """So many wait no longer, of so many bytes together."""
        self.waiting -= count
        self.waiting_bytes -= size

    def remove_all(self, commands: Collection[tuple[Origin, Command]]) -> None:
        """These wait no longer."""
        self.remove(sum(size_of(command) for _, command in commands), len(commands))


def size_of(command: Command) -> int:
    """Characters of those parts of a command that may be long."""
    match command:
        case Send(body=body, metadata=metadata):
            return len(body) + sum(len(key) + len(value) for key, value in (metadata or {}).items())
        case CreateConversation(members=users, title=title):
            return len(title) + sum(map(len, users))
        case AddMembers(users=users) | RemoveMembers(users=users):
            return sum(map(len, users))
        case Rename(title=title):
            return len(title)
        case _:
            return 0
