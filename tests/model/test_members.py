"""The rules by which member rows follow the log hold in small worlds, and each is needed."""

import pytest

from tests.model.explore import explore
from tests.model.members import LARGE_WORLDS, SHOWN_IN, WORLDS, Members, Rule
from tests.model.nightly import NIGHTLY

HAPPENED = {
    "a fast clock first": {
        "epoch {} writes the member row of entry {} again",
        "epoch {} acknowledges {} {}",
        "epoch {} finds a newer epoch and stops",
    },
    "a slow clock first": {
        "epoch {} writes the member row of entry {} again",
        "epoch {} acknowledges {} {}",
        "epoch {} finds a newer epoch and stops",
    },
}
"""What must have happened in a world, so that its holding proves something."""


@pytest.mark.parametrize("name", WORLDS)
def test_holds(name: str) -> None:
    result = explore(Members(WORLDS[name]))
    print(f"{name}: {result.states} states")
    assert result.path == []
    assert result.states > 1_000
    assert HAPPENED[name] <= result.happened


@pytest.mark.parametrize("name", LARGE_WORLDS)
@pytest.mark.skipif(not NIGHTLY, reason="a larger world, for the nightly run: set NIGHTLY=1")
@pytest.mark.timeout(1800)
def test_holds_in_a_larger_world(name: str) -> None:
    result = explore(Members(LARGE_WORLDS[name]))
    print(f"{name}: {result.states} states")
    assert result.path == []
    assert result.states > 1_000


@pytest.mark.parametrize("rule", Rule)
def test_breaks_without(rule: Rule) -> None:
    result = explore(Members(WORLDS[SHOWN_IN[rule]], rule))
    print(f"without {rule.name}: broken after {result.states} states", *result.path, sep="\n  ")
    assert result.path, f"nothing breaks without this rule: {rule.value}"
