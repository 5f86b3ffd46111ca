"""Fitting the status of a chat into a terminal of any width: between words, and never cut without a sign."""

import re
from typing import Final

from prompt_toolkit.utils import get_cwidth

from gateway.cli.chat_model import Fragments

ELLIPSIS: Final = "…"
"""Stands for what has no room."""

_WORDS: Final = re.compile(r"\s+|\S+")


def fitted(fragments: Fragments, columns: int, lines_max: int) -> Fragments:
    """The same in lines of at most ``columns`` columns, broken between words where that is possible.

    What has no room in ``lines_max`` lines is left out, and an ellipsis stands for it.
    """
    lines = _wrapped(fragments, max(columns, 1))
    if len(lines) > lines_max:
        lines = [*lines[: lines_max - 1], _with_ellipsis(lines[lines_max - 1], columns)]
    joined: Fragments = []
    for line in lines:
        joined += [("", "\n"), *line] if joined else line
    return joined


def _wrapped(fragments: Fragments, columns: int) -> list[Fragments]:
    lines: list[Fragments] = [[]]
    used = 0
    for style, text in fragments:
        for word in _WORDS.findall(text):
            if used + get_cwidth(word) > columns:
                if word.isspace():
                    continue  # the break takes its place; what follows may have room yet, behind another space
                if used:
                    lines.append([])
                    used = 0
            for piece in _pieces(word, columns):
                if used + get_cwidth(piece) > columns:
                    lines.append([])
                    used = 0
                lines[-1].append((style, piece))
                used += get_cwidth(piece)
    return lines


def _pieces(word: str, columns: int) -> list[str]:
    """The word, or its characters if no line has room for it."""
    return [word] if get_cwidth(word) <= columns else list(word)


def _with_ellipsis(line: Fragments, columns: int) -> Fragments:
    """The line with an ellipsis at its end, without the words that it takes the place of."""
    kept = list(line)
    while kept and (kept[-1][1].isspace() or _width(kept) + len(ELLIPSIS) > columns):
        kept.pop()
    return [*kept, (kept[-1][0] if kept else "", ELLIPSIS)]


def _width(line: Fragments) -> int:
    return sum(get_cwidth(text) for _style, text in line)
