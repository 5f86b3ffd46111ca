"""Half a minute of fuzzing; ``make fuzz`` runs longer. The targets also run over their seeds, without a fuzzer."""

import random

import pytest

from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS, fuzz_planted, seeds

SECONDS_IN_ALL = 30


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_pass(target: str) -> None:
    inputs = list(seeds(target))
    assert inputs
    for data in inputs:
        TARGETS[target](data)


def test_planted_target_fails() -> None:
    with pytest.raises(AssertionError, match="planted"):
        fuzz_planted(b"tide!")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_found(target: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("atheris")
    found_nothing = fuzz(target, SECONDS_IN_ALL // len(TARGETS), random.randrange(1, 2**31))
    assert found_nothing, capfd.readouterr().out


@pytest.mark.slow
def test_planted_bug_is_found(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("atheris")
    assert not fuzz("planted", 30, 1)
    report = capfd.readouterr().out
    assert "AssertionError: planted" in report
    assert f"planted: input {b'tide!'.hex()}" in report
