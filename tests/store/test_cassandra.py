"""The cluster's store on tables in memory: what every store must do, and what it does when answers are missing."""

import pytest
import trio

from store.cassandra import CassandraStore
from tests.fakes.memory_tables import MemoryTables
from tests.store.conformance import StoreConformance


@pytest.fixture
def tables():
    return MemoryTables()


@pytest.fixture
async def store(tables):
    """A running store that owns everything."""
    made = CassandraStore(tables, lambda _conversation_id, _epoch: True)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made
        nursery.cancel_scope.cancel()


class TestCassandraInMemory(StoreConformance):
    """As one replica that never fails."""
