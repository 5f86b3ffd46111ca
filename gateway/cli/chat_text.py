"""Text of others on a terminal: what they write is shown, and commands nothing."""

import re
from typing import Final

_BREAKS: Final = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_BIDI: Final = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Marks that turn the direction of all that follows in a line, ticks and names included (Unicode annex 9). Letters have
a direction of their own, which stays."""

_CONTROLS: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")

_JSON_ESCAPES: Final = {
    code: f"\\u{code:04x}"
    for code in (*range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def in_lines(text: str) -> str:
    """The same without control characters; line breaks stay, as ``\\n``."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", _BIDI.sub("", _BREAKS.sub("\n", text.replace("\t", "    "))))


def in_one_line(text: str) -> str:
    """The same without control characters and line breaks."""
    return " ".join(in_lines(text).split("\n"))


def json_for_terminals(encoded: str) -> str:
    """JSON with what ``msgspec`` leaves as it is, but a terminal may obey, as escapes: the same to every reader."""
    return encoded.translate(_JSON_ESCAPES)
