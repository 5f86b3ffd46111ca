"""A loop that somebody else can stop for a while and let go on."""

from collections.abc import Awaitable, Callable

import trio


class PausableLoop:
    """Runs an endless async function, and cancels it for the time of a pause.

    The function has to be fit for that: a cancellation at any of its checkpoints loses nothing, and calling it anew
    goes on where it was.
    """

    def __init__(self, serve: Callable[[], Awaitable[None]]) -> None:
        self._serve = serve
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()
        self._go_on = trio.Event()
        self._go_on.set()

    async def run(self) -> None:
        """Run the function for ever, but for pauses."""
        while True:
            self._stopped = trio.Event()
            with trio.CancelScope() as self._scope:
                if not self._go_on.is_set():
                    self._scope.cancel()
                await self._serve()
            self._stopped.set()
            await self._go_on.wait()

    async def pause(self) -> None:
        """Stop the function, and return when it has stopped. ``run`` must be running, and not be paused.

        After a cancellation it may be stopped or not: call ``resume`` in any case.
        """
        self._go_on = trio.Event()
        self._scope.cancel()
        await self._stopped.wait()

    def resume(self) -> None:
        """Let it go on. Does nothing where there is no pause."""
        self._go_on.set()
