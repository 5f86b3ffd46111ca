"""Looking at the slot table now, once for all who ask at the same time."""

from collections.abc import Awaitable, Callable

import trio

from store.coordination import SlotTable
from store.interface import Unavailable


class _Look:
    """One reading of the table, and who waits for it."""

    __slots__ = ("done", "error", "table")

    def __init__(self) -> None:
        self.table: SlotTable | None = None
        self.error = ""
        self.done = False


class TableLooks:
    """Reads the table, one reading at a time: who asks during one shares the next.

    Attributes:
        looks: readings, ever.
    """

    def __init__(self, read: Callable[[], Awaitable[SlotTable]]) -> None:
        self.looks = 0
        self._read = read
        self._next: _Look | None = None
        self._reading = False
        self._changed = trio.Event()

    async def look(self) -> SlotTable:
        """The table as it was at some time after this was called.

        Raises Unavailable. Cancelling is safe: if others wait for the same reading, one of them begins it anew.
        """
        if self._next is None:
            self._next = _Look()
        look = self._next
        while not look.done:
            if self._reading:
                await self._changed.wait()
            else:
                await self._perform(look)
        if look.table is None:
            raise Unavailable(look.error)
        return look.table

    async def _perform(self, look: _Look) -> None:
        self._reading = True
        if self._next is look:
            self._next = None
        self.looks += 1
        try:
            look.table = await self._read()
            look.done = True
        except Unavailable as error:
            look.error = str(error)
            look.done = True
        finally:
            self._reading = False
            self._changed.set()
            self._changed = trio.Event()
