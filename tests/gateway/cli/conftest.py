"""A fake node, for the commands that talk to one."""

from collections.abc import AsyncIterator

import pytest
import trio

from tests.fakes.node import FakeNode


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    async with trio.open_nursery() as nursery:
        yield FakeNode(nursery)
        nursery.cancel_scope.cancel()
