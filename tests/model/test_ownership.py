"""The rules of leases and slots hold in small worlds, and each is needed."""

import pytest

from tests.model.ownership import LARGE_WORLDS, SHOWN_IN, WORLDS, Ownership, Rule
from tests.model.proofs import breaks_without, holds, in_the_nightly_run

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
    holds(name, Ownership(WORLDS[name]), HAPPENED[name])


@in_the_nightly_run
@pytest.mark.parametrize("name", LARGE_WORLDS)
@pytest.mark.timeout(3600)
def test_holds_in_a_larger_world(name: str) -> None:
    holds(name, Ownership(LARGE_WORLDS[name]))


@pytest.mark.parametrize("rule", Rule)
def test_breaks_without(rule: Rule) -> None:
    breaks_without(rule, Ownership, WORLDS[SHOWN_IN[rule]])
