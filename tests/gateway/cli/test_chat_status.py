"""The status of a chat in terminals of any width."""

from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from gateway.cli.chat_status import ELLIPSIS, fitted

STATUS = [("title", " bob "), ("warn", " connection lost, trying again in 3.2 s (Connection refused) ")]


def text(fragments: list[tuple[str, str]]) -> str:
    return "".join(part for _style, part in fragments)


def test_what_has_room_stays_as_it_is() -> None:
    shown = fitted(STATUS, 90, 3)
    assert text(shown) == text(STATUS)
    assert {style for style, _part in shown} == {"title", "warn"}


def test_a_long_one_breaks_between_words() -> None:
    assert text(fitted(STATUS, 40, 3)).splitlines() == [
        " bob  connection lost, trying again in ",
        "3.2 s (Connection refused) ",
    ]


def test_what_has_no_room_is_shortened_with_a_sign() -> None:
    assert text(fitted(STATUS, 25, 2)).splitlines() == [" bob  connection lost, ", "trying again in 3.2 s…"]


def test_a_word_wider_than_the_terminal_is_broken() -> None:
    assert text(fitted([("", "https://node.example/v1")], 10, 3)) == "https://no\nde.example\n/v1"


@given(st.lists(st.text("ab 漢é", max_size=30), max_size=5), st.integers(2, 20), st.integers(1, 4))
def test_it_always_fits_and_what_is_missing_is_marked(parts: list[str], columns: int, lines_max: int) -> None:
    shown = text(fitted([("", part) for part in parts], columns, lines_max))
    lines = shown.split("\n")
    assert len(lines) <= lines_max
    assert all(get_cwidth(line) <= columns for line in lines)
    left = "".join("".join(parts).split())
    kept = "".join(shown.split())
    assert kept == left or (kept.endswith(ELLIPSIS) and left.startswith(kept.removesuffix(ELLIPSIS)))
