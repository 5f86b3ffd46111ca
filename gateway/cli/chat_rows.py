"""Cutting styled text into rows of a terminal of any width: between words where that is possible."""

import re
from typing import Final

from prompt_toolkit.utils import get_cwidth

from gateway.cli.chat_model import Fragments

_WORDS: Final = re.compile(r"\n|[^\S\n]+|\S+")


def in_rows(fragments: Fragments, columns: int, indent: int = 0) -> list[Fragments]:
    """The same in rows of at most ``columns`` columns; every row but the first begins with ``indent`` spaces.

    A line break begins a row. Of spaces, what has no room in a row is left out; a word wider than a row is broken where
    it stands. Only a character of two columns is wider than a terminal of one.
    """
    rows: list[Fragments] = [[]]
    used = begin = 0

    def next_row() -> None:
        nonlocal used, begin
        used = begin = indent
        rows.append([("", " " * indent)] if indent else [])

    for style, text in fragments:
        for word in _WORDS.findall(text):
            if word == "\n":
                next_row()
                continue
            pieces = [word]
            if used + get_cwidth(word) > columns:
                if word.isspace():
                    pieces = [" " * (columns - used)]
                elif get_cwidth(word) > columns - indent:
                    pieces = list(word)
                elif used > begin:
                    next_row()
            for piece in pieces:
                if used > begin and used + get_cwidth(piece) > columns:
                    next_row()
                rows[-1].append((style, piece))
                used += get_cwidth(piece)
    return rows
