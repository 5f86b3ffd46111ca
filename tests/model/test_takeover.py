"""The rules by which a conversation changes owners hold in small worlds, and each is needed."""

import pytest

from tests.model.proofs import breaks_without, holds, in_the_nightly_run
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
    "a bucket after a takeover": {
        "epoch {} learns that its bucket is open",
        "epoch {} answers a read with {} entries",
    },
    "forgetting": {
        "epoch {} forgets the conversation",
        "epoch {} acknowledges {}",
    },
}
"""What must have happened in a world, so that its holding proves something."""


@pytest.mark.parametrize("name", WORLDS)
def test_holds(name: str) -> None:
    holds(name, Takeover(WORLDS[name]), HAPPENED[name])


@in_the_nightly_run
@pytest.mark.parametrize("name", LARGE_WORLDS)
@pytest.mark.timeout(3600)
def test_holds_in_a_larger_world(name: str) -> None:
    holds(name, Takeover(LARGE_WORLDS[name]))


@pytest.mark.parametrize("rule", Rule)
def test_breaks_without(rule: Rule) -> None:
    breaks_without(rule, Takeover, WORLDS[SHOWN_IN[rule]])
