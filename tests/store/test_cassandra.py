"""The cluster's store on tables in memory: what every store must do, and what it does when answers are missing."""

import pytest

from store.cassandra import CassandraStore
from tests.fakes.memory_tables import MemoryTables
from tests.store.conformance import StoreConformance
from tests.store.running import running


@pytest.fixture
def tables():
    return MemoryTables()


@pytest.fixture
async def store(tables):
    """A running store that owns everything."""
    async with running(CassandraStore(tables, lambda _conversation_id, _epoch: True)) as made:
        yield made


class TestCassandraInMemory(StoreConformance):
    """As one replica that never fails."""
