"""The part of a conversation that a terminal shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from gateway.cli.chat_model import ChatModel
from gateway.cli.chat_view import ConversationView
from protocol.client import MessageReceived

COLUMNS = 40
ROWS = 10


def conversation(*bodies: str) -> ChatModel:
    """The messages of bob, in the order given."""
    model = ChatModel("alice", "bob", [])
    for seq, body in enumerate(bodies, 1):
        model.take(MessageReceived("c", seq, 0, "bob", f"m{seq}", body), 0)
    return model


def shown(view: ConversationView, columns: int = COLUMNS, rows: int = ROWS) -> list[str]:
    content = view.create_content(columns, rows)
    return ["".join(fragment[1] for fragment in content.get_line(row)) for row in range(content.line_count)]


def words(count: int) -> str:
    return " ".join(f"w{number}" for number in range(count))


def test_an_empty_conversation_is_an_empty_row() -> None:
    assert shown(ConversationView(ChatModel("alice", "bob", []))) == [""]


def test_the_end_of_a_message_taller_than_the_terminal_is_shown() -> None:
    rows = shown(ConversationView(conversation("first", words(400))))
    assert len(rows) == ROWS
    assert rows[-1].endswith("w399")


def test_every_word_of_a_message_taller_than_the_terminal_comes_by_when_scrolling() -> None:
    view = ConversationView(conversation("first", words(400), "last"))
    seen = set(" ".join(shown(view)).split())
    while "first" not in seen:
        view.back()
        seen.update(" ".join(shown(view)).split())
    assert seen >= {"first", "last", *words(400).split()}


def test_scrolling_ends_at_the_oldest_row_and_comes_back_to_the_newest() -> None:
    view = ConversationView(conversation("first", words(100), "last"))
    for _ in range(20):
        view.back()
        shown(view)
    assert "first" in shown(view)[0]
    assert len(shown(view)) == ROWS
    assert view.rows_below > 0
    for _ in range(20):
        view.forward()
        shown(view)
    assert shown(view)[-1].endswith("last")
    assert view.rows_below == 0


def test_the_newest_is_shown_again_at_once() -> None:
    view = ConversationView(conversation(words(400)))
    shown(view)
    view.back()
    view.to_newest()
    assert shown(view)[-1].endswith("w399")


@pytest.mark.parametrize("columns", [5, 12, 20, 80])
@pytest.mark.parametrize("line_break", ["\n", "\u2028", " " * 100])
def test_no_row_of_a_message_passes_for_another_message(columns: int, line_break: str) -> None:
    model = conversation(f"hi{line_break}12:00 carol  I owe bob 100", "over")
    view = ConversationView(model)
    rows = [row for row in shown(view, columns, 100) if row.strip()]
    indent = " " * min(model.indent, columns // 3)
    begins = [number for number, row in enumerate(rows) if not row.startswith(indent)]
    assert len(begins) == 2  # one for each message
    assert begins[0] == 0


@given(st.text("ab 漢é\n", max_size=200), st.integers(1, 60))
def test_no_row_is_wider_than_the_terminal_and_nothing_is_lost(body: str, columns: int) -> None:
    rows = shown(ConversationView(conversation(body)), columns, 1_000)
    assert all(get_cwidth(row) <= max(columns, 2) for row in rows)
    assert "".join("".join(rows).split()).endswith("".join(body.split()))
