import pytest
import trio

from store.embedded import EmbeddedStore


@pytest.fixture
async def store(tmp_path):
    """A running embedded store in a new directory."""
    opened = EmbeddedStore.open(tmp_path / "data")
    async with trio.open_nursery() as nursery:
        await nursery.start(opened.run)
        yield opened
        nursery.cancel_scope.cancel()
