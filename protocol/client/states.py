"""The states of a client and the one table of their transitions."""

from collections.abc import Callable
from typing import Final

import trio
from msgspec import Struct

from protocol.client.errors import ClientClosed


class Connecting(Struct, frozen=True, tag_field="state", tag="connecting"):
    """An attempt is under way; ``attempt`` counts from 1 since the client was last online."""

    attempt: int


class Online(Struct, frozen=True, tag_field="state", tag="online"):
    """Authenticated: the node ``node`` serves this client as ``user`` on ``device``."""

    user: str
    device: str
    node: str


class Waiting(Struct, frozen=True, tag_field="state", tag="waiting"):
    """The next attempt comes in ``delay_s`` seconds; ``reason`` says in a sentence why the last connection ended."""

    delay_s: float
    reason: str


class Closed(Struct, frozen=True, tag_field="state", tag="closed"):
    """The end: ``reason`` says why, ``by_user`` whether the program asked for it."""

    reason: str
    by_user: bool


State = Connecting | Online | Waiting | Closed

TRANSITIONS: Final[dict[type[State], frozenset[type[State]]]] = {
    Connecting: frozenset({Online, Waiting, Closed}),
    Online: frozenset({Waiting, Closed}),
    Waiting: frozenset({Connecting, Closed}),
    Closed: frozenset(),
}


class StateBox:
    """The present state, and who wants to know about changes.

    Args:
        on_change: called with each new state, from the task that changed it.
    """

    def __init__(self, on_change: Callable[[State], None]) -> None:
        self.state: State = Connecting(1)
        self.error: ClientClosed | None = None
        self._on_change = on_change
        self._changed = trio.Event()

    def change(self, new: State) -> None:
        """Go to ``new``; anything the table does not allow is a fault of the client and fails loudly."""
        if type(new) not in TRANSITIONS[type(self.state)]:
            raise AssertionError(f"no way from {type(self.state).__name__} to {type(new).__name__}")
        self.state = new
        self._changed.set()
        self._changed = trio.Event()
        self._on_change(new)

    def close(self, error: ClientClosed, *, by_user: bool) -> None:
        """Go to Closed once; later calls change nothing, so the first reason is the one that is told."""
        if isinstance(self.state, Closed):
            return
        self.error = error
        self.change(Closed(str(error), by_user))

    async def wait_change(self) -> None:
        """Wait for the next change. Cancelling leaves nothing behind."""
        await self._changed.wait()

    async def wait_online(self) -> Online:
        """Wait until online. Cancelling leaves nothing behind.

        Raises:
            ClientClosed: the client is, or became, closed.
        """
        while not isinstance(self.state, Online):
            if self.error is not None:
                raise self.error
            await self._changed.wait()
        return self.state
