"""What a device of the crash test has appended, until it is acknowledged: messages, and changes of members."""

import random
from uuid import uuid4

from msgspec import Struct

from gateway.check.recorder import payload_of
from protocol.frames import AddMembers, Command, RemoveMembers, Send

CHANGE_SHARE = 0.05
"""Share of what the device that changes members appends which is such a change."""


class Outgoing(Struct):
    """One entry to be. ``op`` is the word of histories: send, add or remove; ``seq`` is 0 until acknowledged."""

    conversation: str
    name: str
    body: str = ""
    op: str = "send"
    users: tuple[str, ...] = ()
    attempt: int = 0
    call: int = 0
    request_id: int = 0
    seq: int = 0

    @property
    def payload(self) -> str:
        return payload_of(self.body) if self.op == "send" else ""

    def command(self) -> Command:
        """The next attempt."""
        if self.op == "send":
            return Send(self.request_id, self.conversation, self.name, self.body, None, self.attempt)
        make = AddMembers if self.op == "add" else RemoveMembers
        return make(self.request_id, self.conversation, self.name, list(self.users), self.attempt)


class Membership:
    """Lets a guest into a conversation and out again, one change after the other."""

    def __init__(self, conversation: str, guest: str, rng: random.Random) -> None:
        self._conversation, self._guest, self._rng = conversation, guest, rng
        self._last: Outgoing | None = None
        self._inside = False

    def next(self) -> Outgoing | None:
        """A change, now and then, if the one before it was acknowledged."""
        if self._rng.random() >= CHANGE_SHARE or (self._last is not None and not self._last.seq):
            return None
        op = "remove" if self._inside else "add"
        self._inside = not self._inside
        self._last = Outgoing(self._conversation, uuid4().hex, op=op, users=(self._guest,))
        return self._last
