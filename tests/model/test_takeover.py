"""The rules by which a conversation changes owners hold in small worlds, and each is needed."""

import pytest

from tests.model.explore import explore
from tests.model.nightly import NIGHTLY
from tests.model.takeover import LARGE_WORLDS, SHOWN_IN, WORLDS, Rule, Takeover

HAPPENED = {
    "takeovers": {
        "epoch {} acknowledges {}",
        "epoch {} finds a newer epoch and stops",
        "epoch {} answers a read with {} entries",
    },
    "late changes of the conversation's row": {
        "epoch {} does not find its segment {} and begins again",
        "epoch {} acknowledges {}",
    },
    "buckets": {
        "epoch {} learns that its bucket is open",
        "epoch {} acknowledges {}",
    },
    "forgetting": {
        "epoch {} forgets the conversation",
        "epoch {} acknowledges {}",
    },
}
"""What must have happened in a world, so that its holding proves something."""


@pytest.mark.parametrize("name", WORLDS)
def test_holds(name: str) -> None:
    result = explore(Takeover(WORLDS[name]))
    print(f"{name}: {result.states} states")
    assert result.path == []
    assert result.states > 1_000
    assert HAPPENED[name] <= result.happened


@pytest.mark.parametrize("name", LARGE_WORLDS)
@pytest.mark.skipif(not NIGHTLY, reason="a larger world, for the nightly run: set NIGHTLY=1")
@pytest.mark.timeout(1800)
def test_holds_in_a_larger_world(name: str) -> None:
    result = explore(Takeover(LARGE_WORLDS[name]))
    print(f"{name}: {result.states} states")
    assert result.path == []
    assert result.states > 1_000


@pytest.mark.parametrize("rule", Rule)
def test_breaks_without(rule: Rule) -> None:
    result = explore(Takeover(WORLDS[SHOWN_IN[rule]], rule))
    print(f"without {rule.name}: broken after {result.states} states", *result.path, sep="\n  ")
    assert result.path, f"nothing breaks without this rule: {rule.value}"
