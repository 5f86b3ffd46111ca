"""What is shown of every model: its worlds hold, and break without any one of its rules."""

from collections.abc import Callable, Collection
from typing import Any

import pytest

from tests.model.explore import World, explore
from tests.model.nightly import NIGHTLY

STATES_MIN = 1_000
"""A world with fewer states is too small to prove anything."""

in_the_nightly_run = pytest.mark.skipif(not NIGHTLY, reason="a larger world, for the nightly run: set NIGHTLY=1")


def holds(name: str, world: World, happens: Collection[str] = ()) -> None:
    """Visit all states of a world; ``happens``: what must be among its steps, so that its holding proves something."""
    result = explore(world)
    print(f"{name}: {result.states} states")
    assert result.path == []
    assert result.states > STATES_MIN
    assert set(happens) <= result.happened


def breaks_without(rule: Any, model: Callable[..., World], bounds: Any) -> None:
    """Leave one rule out of a world in which that shows."""
    result = explore(model(bounds, rule))
    print(f"without {rule.name}: broken after {result.states} states", *result.path, sep="\n  ")
    assert result.path, f"nothing breaks without this rule: {rule.value}"
