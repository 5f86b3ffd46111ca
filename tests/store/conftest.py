import pytest

from store.embedded import EmbeddedStore
from tests.store.running import running


@pytest.fixture
async def store(tmp_path):
    """A running embedded store in a new directory."""
    async with running(EmbeddedStore.open(tmp_path / "data")) as opened:
        yield opened
