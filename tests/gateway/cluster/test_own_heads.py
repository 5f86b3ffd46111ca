"""What a node remembers of its own conversations' heads."""

import pytest

from gateway.broker import Head
from gateway.cluster import own_heads
from gateway.cluster.own_heads import OwnHeads


def test_a_head_is_given_under_the_epoch_it_was_noted_with() -> None:
    own = OwnHeads()
    own.note("d1", 3, Head(5, 900))
    own.note("d1", 3, Head(6, 1_000))
    assert own.get("d1", 3) == Head(6, 1_000)
    assert own.get("d1", 4) is None
    assert own.get("d2", 3) is None


def test_changes_are_collected_only_while_somebody_wants_them() -> None:
    own = OwnHeads()
    own.note("d1", 3, Head(5, 900))
    assert own.changed is None
    own.changed = {}
    own.note("d2", 3, Head(1, 2))
    own.note("d2", 3, Head(2, 3))
    assert own.changed == {"d2": "3:2:3"}
    assert own.remembered() == {"d1": "3:5:900", "d2": "3:2:3"}


def test_the_oldest_are_forgotten_and_never_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_heads, "REMEMBERED_MAX", 8)
    own = OwnHeads()
    for number in range(40):
        own.note(f"d{number}", 1, Head(number + 1, 0))
        own.note("d0", 1, Head(number + 1, 0))
        assert own.get("d0", 1) == Head(number + 1, 0)
    assert len(own.remembered()) <= 8
    assert own.get("d39", 1) == Head(40, 0)
    assert own.get("d1", 1) is None
