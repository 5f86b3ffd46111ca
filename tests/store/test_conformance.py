"""The embedded store does what every store must do, in memory's generations and in the index alike."""

import pytest

from store import embedded_recent
from tests.store.conformance import StoreConformance


class TestEmbedded(StoreConformance):
    """As it is used: the index of what these tests append is in memory."""


class TestEmbeddedIndexed(StoreConformance):
    """With tiny generations: entries move to the index all the time, one or two at once."""

    @pytest.fixture(autouse=True)
    def _tiny_generations(self, monkeypatch):
        monkeypatch.setattr(embedded_recent, "GENERATION_ENTRIES", 3)
        monkeypatch.setattr(embedded_recent, "INDEX_ENTRIES_MIN", 2)
        monkeypatch.setattr(embedded_recent, "INDEX_ENTRIES_PER_ENTRY", 1)
