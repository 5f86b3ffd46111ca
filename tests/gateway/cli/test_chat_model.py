import pytest

from gateway.cli.chat_model import LINES_MAX, ChatModel
from protocol.client import (
    Closed,
    Connecting,
    ConversationCreated,
    ConversationLeft,
    ConversationRenamed,
    MembersAdded,
    MembersRemoved,
    MessageReceived,
    Online,
    OtherEntry,
    PresenceChanged,
    ReceiptChanged,
    Resumed,
    StateChanged,
    TypingChanged,
    Waiting,
)
from protocol.frames import Member


def message(seq: int, sender: str = "bob", body: str = "hi") -> MessageReceived:
    return MessageReceived("c", seq, 1_700_000_000_000_000, sender, f"m{seq}", body)


def text(fragments) -> str:
    return "".join(part for _, part in fragments)


def lines_of(model: ChatModel) -> list[str]:
    return [text(line) for line in model.newest_first()][::-1]


@pytest.fixture
def model() -> ChatModel:
    model = ChatModel("alice", "bob", [Member("alice"), Member("bob", 2, 1)])
    model.state = Online("alice", "d", "n")
    return model


def test_messages_show_their_names_and_each_only_once(model: ChatModel) -> None:
    assert model.take(message(1), 0)
    assert not model.take(message(1), 0)
    assert model.take(message(2, "alice", "from my other device"), 0)
    lines = lines_of(model)
    assert lines[0].endswith("bob  hi")
    assert "you  from my other device" in lines[1]


def test_ticks_on_the_way_stored_delivered_read(model: ChatModel) -> None:
    line = model.sending("hello")
    assert model.tick(line) == "…"
    line.seq = 3
    assert model.tick(line) == "·"
    model.take(ReceiptChanged("c", "bob", 3, 2), 0)
    assert model.tick(line) == "✓"
    model.take(ReceiptChanged("c", "bob", 3, 3), 0)
    assert model.tick(line) == "✓✓"
    model.take(ReceiptChanged("c", "bob", 2, 1), 0)  # late: nothing goes back
    assert model.tick(line) == "✓✓"


def test_one_s_own_receipts_are_no_tick(model: ChatModel) -> None:
    line = model.sending("hello")
    line.seq = 3
    model.take(ReceiptChanged("c", "alice", 3, 3), 0)
    assert model.tick(line) == "·"


def test_in_a_group_the_slowest_member_counts() -> None:
    model = ChatModel("alice", "Team", [Member("bob", 5, 5), Member("carol", 0, 0)])
    line = model.sending("hello")
    line.seq = 5
    assert model.tick(line) == "·"
    model.take(ReceiptChanged("c", "carol", 5, 0), 0)
    assert model.tick(line) == "✓"
    model.take(MembersRemoved("c", 6, 0, "bob", "m", ["carol"]), 0)
    assert model.tick(line) == "✓✓"
    model.take(MembersAdded("c", 7, 0, "bob", "m", ["dave"]), 0)
    assert model.tick(line) == "·"


def test_what_was_not_sent_says_why(model: ChatModel) -> None:
    model.sending("hello").failed = "BODY_EMPTY: no"
    assert "✗ not sent: BODY_EMPTY: no" in "\n".join(lines_of(model))


def test_typing_ends_by_itself_and_with_the_message(model: ChatModel) -> None:
    model.take(TypingChanged("c", "bob", True), 100.0)
    assert "bob is typing…" in text(model.status(105.0))
    assert "typing" not in text(model.status(106.0))
    model.take(TypingChanged("c", "bob", True), 200.0)
    model.take(message(9), 201.0)
    assert "typing" not in text(model.status(201.0))


def test_presence(model: ChatModel) -> None:
    model.take(PresenceChanged("bob", True, 0), 0)
    assert "● bob is online" in text(model.status(0))
    model.take(PresenceChanged("bob", False, 1_700_000_000_000), 0)
    assert "○ bob is offline, last seen" in text(model.status(0))
    model.take(PresenceChanged("carol", True, 0), 0)
    assert "● 1 of 2 online" in text(model.status(0))


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (
            Waiting(2.13, "the connection broke off"),
            "connection lost, trying again in 2.1 s (the connection broke off)",
        ),
        (Connecting(2), "connecting"),
        (Closed("replaced", False), "closed: replaced"),
    ],
)
def test_the_state_of_the_connection_is_told_calmly(model: ChatModel, state, shown: str) -> None:
    model.take(StateChanged(state), 0)
    assert shown in text(model.status(0))


def test_nothing_is_claimed_of_others_while_nobody_tells(model: ChatModel) -> None:
    model.take(PresenceChanged("bob", True, 0), 0)
    model.take(TypingChanged("c", "bob", True), 0)
    model.take(StateChanged(Waiting(2.0, "the connection broke off")), 1)
    assert "typing" not in text(model.status(1))
    model.take(StateChanged(Connecting(1)), 2)
    assert "online" not in text(model.status(2))
    model.take(StateChanged(Online("alice", "a", "n")), 3)
    assert "● bob is online" in text(model.status(3))
    assert "typing" not in text(model.status(3))


def test_changes_of_the_conversation_are_notes(model: ChatModel) -> None:
    model.take(ConversationCreated("c", 1, 0, "alice", "m", "", ["alice", "bob"]), 0)
    model.take(ConversationRenamed("c", 2, 0, "bob", "m", "Crew"), 0)
    model.take(MembersAdded("c", 3, 0, "alice", "m", ["carol", "dave"]), 0)
    model.take(MembersRemoved("c", 4, 0, "carol", "m", ["carol"]), 0)
    model.take(OtherEntry("c", 5, 0, "bob", "m", 99), 0)
    model.take(ConversationLeft("c"), 0)
    assert not model.take(Resumed(True), 0)
    shown = "\n".join(lines_of(model))
    for note in (
        "you began this conversation", "bob renamed the conversation: Crew", "you added carol, dave", "carol left",
        "something that this version cannot show", "you are no longer in this conversation",
    ):  # fmt: skip
        assert note in shown
    assert model.title == "Crew"
    assert model.others == ["bob", "dave"]


def test_older_entries_go_above(model: ChatModel) -> None:
    model.take(message(5, body="five"), 0)
    model.prepend([message(3, body="three"), message(4, body="four")])
    assert [line.text for line in model.lines] == ["three", "four", "five"]
    assert model.seen_seq == 5


def test_lines_are_bounded(model: ChatModel) -> None:
    for seq in range(1, LINES_MAX + 50):
        model.take(message(seq), 0)
    assert len(model.lines) == LINES_MAX


def test_what_others_write_commands_nothing(model: ChatModel) -> None:
    model.take(message(1, body="hi\u2028\x1b[2Jyes"), 0)
    model.note("over\nand out")
    lines = lines_of(model)
    assert lines[0].endswith("hi\n\ufffd[2Jyes")
    assert lines[1].endswith("over and out")


def test_a_title_is_one_line_without_commands(model: ChatModel) -> None:
    model.take(ConversationRenamed("c", 2, 0, "bob", "m", "a\x1b[2J\nb"), 0)
    assert text(model.status(0)).startswith(" a\ufffd[2J b ")
    assert "bob renamed the conversation: a\ufffd[2J b" in "\n".join(lines_of(model))
