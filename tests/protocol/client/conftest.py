"""A fake node and clients connected to it. Tests ask for ``autojump_clock`` themselves, or it is not the clock."""

import math
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol

import pytest
import trio
from trio.testing import MockClock

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


@pytest.fixture
def patient_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """A clock that jumps as ``autojump_clock`` does, but never while a thread works on the state file: how long a disk
    takes is no time of the test.
    """
    clock, in_thread, threads = MockClock(autojump_threshold=0), trio.to_thread.run_sync, 0

    async def run_sync(*work: Any, **options: Any) -> Any:
        nonlocal threads
        threads += 1
        clock.autojump_threshold = math.inf
        try:
            return await in_thread(*work, **options)
        finally:
            threads -= 1
            if not threads:
                clock.autojump_threshold = 0

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    return clock


async def _end_of_patience() -> None:
    """Heartbeats keep a virtual clock going for ever: end a test that waits in vain."""
    await trio.sleep(3600)
    raise AssertionError("the test waits for something that does not come")
