"""A fake node and clients connected to it. Tests ask for ``autojump_clock`` themselves, or it is not the clock."""

import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Protocol

import pytest
import trio

from protocol.client import Client, connect
from tests.fakes.node import FakeNode


class Connect(Protocol):
    def __call__(self, **options: object) -> AbstractAsyncContextManager[Client]: ...


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_of_patience)
        yield FakeNode(nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture
def connected(node: FakeNode) -> Connect:
    """``connect`` to the fake node."""
    return partial(connect, "ws://node", token="t", opener=node.opener, rng=random.Random(1))


async def _end_of_patience() -> None:
    """Heartbeats keep a virtual clock going for ever: end a test that waits in vain."""
    await trio.sleep(3600)
    raise AssertionError("the test waits for something that does not come")
