"""Parts of a store that have to run while a test uses them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio


@asynccontextmanager
async def running(part: Any) -> AsyncIterator[Any]:
    """A part with ``run``, once it has started; it is cancelled in the end."""
    async with trio.open_nursery() as nursery:
        await nursery.start(part.run)
        yield part
        nursery.cancel_scope.cancel()
