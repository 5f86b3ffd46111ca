"""Fitting the status of a chat into a terminal of any width: between words, and never cut without a sign."""

from typing import Final

from prompt_toolkit.utils import get_cwidth

from gateway.cli.chat_model import Fragments
from gateway.cli.chat_rows import in_rows

ELLIPSIS: Final = "…"
"""Stands for what has no room."""


def fitted(fragments: Fragments, columns: int, lines_max: int) -> Fragments:
    """The same in lines of at most ``columns`` columns, broken between words where that is possible.

    What has no room in ``lines_max`` lines is left out, and an ellipsis stands for it.
    """
    lines = in_rows(fragments, max(columns, 1))
    if len(lines) > lines_max:
        lines = [*lines[: lines_max - 1], _with_ellipsis(lines[lines_max - 1], columns)]
    joined: Fragments = []
    for line in lines:
        joined += [("", "\n"), *line] if joined else line
    return joined


def _with_ellipsis(line: Fragments, columns: int) -> Fragments:
    """The line with an ellipsis at its end, without the words that it takes the place of."""
    kept = list(line)
    while kept and (kept[-1][1].isspace() or _width(kept) + len(ELLIPSIS) > columns):
        kept.pop()
    return [*kept, (kept[-1][0] if kept else "", ELLIPSIS)]


def _width(line: Fragments) -> int:
    return sum(get_cwidth(text) for _style, text in line)
