import json

import pytest

from gateway.cli.chat_text import in_lines, in_one_line, json_for_terminals


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("caf\u00e9 \u65e5\u672c \u05e9\u05dc\u05d5\u05dd \U0001f600", None),
        ("one\ntwo\r\nthree\rfour\u2028five\x85six", "one\ntwo\nthree\nfour\nfive\nsix"),
        ("a\tb", "a    b"),
        ("\x1b]0;title\x07\x1b[2J\x9b31m\x00\x7f", "\ufffd]0;title\ufffd\ufffd[2J\ufffd31m\ufffd\ufffd"),
        ("paid \u202e001\u202c \u2067x\u2069", "paid 001 x"),
    ],
)
def test_a_terminal_gets_text_and_line_breaks_only(text: str, lines: str | None) -> None:
    assert in_lines(text) == (text if lines is None else lines)
    assert in_one_line(text) == (text if lines is None else lines.replace("\n", " "))


def test_json_is_the_same_without_what_a_terminal_obeys() -> None:
    text = "\x7f\x9b31m \u202e \u2066 \u2028 caf\u00e9"
    shown = json_for_terminals(json.dumps(text, ensure_ascii=False))
    assert json.loads(shown) == text
    assert in_one_line(shown) == shown
