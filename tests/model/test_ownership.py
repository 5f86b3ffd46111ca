"""The rules of leases and slots hold in small worlds, and each is needed."""

import pytest

from tests.model.explore import explore
from tests.model.nightly import NIGHTLY
from tests.model.ownership import LARGE_WORLDS, SHOWN_IN, WORLDS, Ownership, Rule

HAPPENED = {
    "leases": {
        "the lease of {} is marked dead",
        "the renewal {} of {} is applied",
        "{} learns that it owns epoch {} and loads",
    },
    "handover": {
        "{} takes the slot back at version {}",
        "{} finds version {} still its own and goes on",
        "{} learns that the slot is another's",
        "{} acknowledges its append under epoch {}",
    },
    "handover and takeover": {
        "{} hands over to {} at version {}",
        "{} claims the slot at version {}",
    },
    "a node joins": {
        "{} takes its lease",
        "{} hands over to {} at version {}",
    },
}
"""What must have happened in a world, so that its holding proves something."""


@pytest.mark.parametrize("name", WORLDS)
def test_holds(name: str) -> None:
    result = explore(Ownership(WORLDS[name]))
    print(f"{name}: {result.states} states")
    assert result.path == []
    assert result.states > 1_000
    assert HAPPENED[name] <= result.happened


@pytest.mark.parametrize("name", LARGE_WORLDS)
@pytest.mark.skipif(not NIGHTLY, reason="a larger world, for the nightly run: set NIGHTLY=1")
@pytest.mark.timeout(1800)
def test_holds_in_a_larger_world(name: str) -> None:
    result = explore(Ownership(LARGE_WORLDS[name]))
    print(f"{name}: {result.states} states")
    assert result.path == []
    assert result.states > 1_000


@pytest.mark.parametrize("rule", Rule)
def test_breaks_without(rule: Rule) -> None:
    result = explore(Ownership(WORLDS[SHOWN_IN[rule]], rule))
    print(f"without {rule.name}: broken after {result.states} states", *result.path, sep="\n  ")
    assert result.path, f"nothing breaks without this rule: {rule.value}"
