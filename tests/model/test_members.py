"""The rules by which member rows follow the log hold in small worlds, and each is needed."""

import pytest

from tests.model.members import LARGE_WORLDS, SHOWN_IN, WORLDS, Members, Rule
from tests.model.proofs import breaks_without, holds, in_the_nightly_run

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
    holds(name, Members(WORLDS[name]), HAPPENED[name])


@in_the_nightly_run
@pytest.mark.parametrize("name", LARGE_WORLDS)
@pytest.mark.timeout(3600)
def test_holds_in_a_larger_world(name: str) -> None:
    holds(name, Members(LARGE_WORLDS[name]))


@pytest.mark.parametrize("rule", Rule)
def test_breaks_without(rule: Rule) -> None:
    breaks_without(rule, Members, WORLDS[SHOWN_IN[rule]])
