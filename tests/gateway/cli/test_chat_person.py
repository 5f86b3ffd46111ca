"""A person's chat, typed into prompt_toolkit's pipe instead of a terminal."""

import io
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.output.vt100 import Vt100_Output
from trio.testing import MockClock

from gateway.cli.chat_model import ChatModel
from gateway.cli.chat_person import Person
from gateway.cli.chat_screen import ChatScreen
from gateway.cli.chat_session import Chat, Goal, open_chat
from protocol.client import MessageReceived, Waiting, connect
from protocol.frames import (
    Conversation,
    ConversationKind,
    ConversationReply,
    EntryKind,
    GetConversation,
    MarkReceipt,
    Member,
    Typing,
)
from tests.fakes.node import FakeConnection, FakeNode


@pytest.fixture
def patient_clock() -> MockClock:
    """Jumps only when the screen's thread had time to work."""
    return MockClock(autojump_threshold=0.3)


@asynccontextmanager
async def opened(node: FakeNode) -> AsyncIterator[tuple[Chat, PipeInput]]:
    """Alice's chat with bob, and what she types on."""
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        async with connect("ws://node", token="t", opener=node.opener, rng=random.Random(1)) as client:
            yield await open_chat(client, Goal("alice", ["bob"], "")), keyboard


async def notes(chat: Chat, text: str) -> None:
    while not any(text in line.text for line in chat.model.lines):  # noqa: ASYNC110 - a plain model tells nobody
        await trio.sleep(1)


async def test_a_person_writes_reads_and_leaves(patient_clock, node: FakeNode) -> None:
    async with opened(node) as (chat, keyboard), trio.open_nursery() as nursery:
        nursery.start_soon(Person(chat).run)
        await notes(chat, "/help tells")
        keyboard.send_text("hello\r")
        await notes(chat, "hello")
        await node.say("d-bob", "hi alice")
        await notes(chat, "hi alice")
        keyboard.send_text("/nonsense\r/members\r/history x\r/history \u00b2\r/history\r")
        await notes(chat, "there is no /nonsense")
        await notes(chat, "you, bob")
        await notes(chat, "/history takes a number from 1 to 200, not 'x'")
        await notes(chat, "/history takes a number from 1 to 200, not '\u00b2'")
        await trio.sleep(5)
        keyboard.send_text("/quit\r")
    assert [e.body for e in node.logs["d-bob"] if e.kind == EntryKind.MESSAGE] == ["hello", "hi alice"]
    assert max(c.read_seq for c in node.received if isinstance(c, MarkReceipt)) == 3
    assert [c.typing for c in node.received if isinstance(c, Typing)] == [True, False]


async def test_what_was_read_meanwhile_is_told_after_a_reconnect(patient_clock, node: FakeNode) -> None:
    """Receipts are pushed to who is there only, and one of the last moment may die with its node."""

    async def all_read(connection: FakeConnection, command: GetConversation) -> bool:
        members = [Member("alice", 0, 0), Member("bob", 2, 2)]
        conversation = Conversation(command.conversation_id, ConversationKind.DIRECT, "", 2, 0, 0, None, members)
        await connection.put(ConversationReply(command.id, conversation))
        return True

    async with opened(node) as (chat, keyboard), trio.open_nursery() as nursery:
        nursery.start_soon(Person(chat).run)
        await notes(chat, "/help tells")
        keyboard.send_text("hello\r")
        await notes(chat, "hello")
        await trio.sleep(5)
        assert chat.model.tick(chat.model.lines[-1]) == "·"
        told = sum(isinstance(command, MarkReceipt) for command in node.received)
        node.scripts[GetConversation] = all_read
        await node.connection.close(1012)
        await node.connected(2)
        await trio.sleep(5)
        assert chat.model.tick(chat.model.lines[-1]) == "✓✓"
        assert sum(isinstance(command, MarkReceipt) for command in node.received) > told
        keyboard.send_text("/quit\r")


async def test_control_c_leaves(patient_clock, node: FakeNode) -> None:
    async with opened(node) as (chat, keyboard):
        keyboard.send_text("\x03")
        await Person(chat).run()


async def test_cancelling_closes_the_screen(patient_clock, node: FakeNode) -> None:
    async with opened(node) as (chat, _keyboard):
        with trio.move_on_after(3) as scope:
            await Person(chat).run()
    assert scope.cancelled_caught


async def test_a_screen_that_was_closed_before_it_opened_does_not_open(patient_clock, node: FakeNode) -> None:
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        screen = ChatScreen(ChatModel("alice", "bob", []), lambda text: None, lambda any_text: None)
        screen.close()
        await screen.run()


async def rendered(model: ChatModel, until: str) -> str:
    """What a terminal of 12 lines shows, once ``until`` is there."""
    written = io.StringIO()
    output = Vt100_Output(written, lambda: Size(rows=12, columns=40), term="dumb")
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=output):
        screen = ChatScreen(model, lambda _line: None, lambda _any: None)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(screen.run)
                while until not in written.getvalue():  # noqa: ASYNC110 - a terminal tells nobody
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue())


async def test_the_newest_message_is_shown_however_many_lines_the_one_before_has() -> None:
    model = ChatModel("alice", "bob", [])
    model.take(MessageReceived("c", 1, 0, "bob", "m1", "line\n" * 60), 0)
    model.take(MessageReceived("c", 2, 0, "bob", "m2", "newest"), 0)
    assert "newest" in await rendered(model, "newest")


async def test_the_end_of_a_message_taller_than_the_terminal_is_shown() -> None:
    model = ChatModel("alice", "bob", [])
    model.take(MessageReceived("c", 1, 0, "bob", "m1", "word " * 400 + "the end"), 0)
    await rendered(model, "the end")


async def test_the_rest_of_a_wrapped_line_is_indented() -> None:
    model = ChatModel("alice", "bob", [])
    model.take(MessageReceived("c", 1, 0, "bob", "m1", "x" * 100), 0)
    model.take(MessageReceived("c", 2, 0, "bob", "m2", "newest"), 0)
    lines = (await rendered(model, "newest")).split("\r\n")
    wrapped = [line for line in lines if "x" in line and "bob" not in line]
    assert len(wrapped) >= 2
    assert all(line.startswith(" " * 11) for line in wrapped)


async def test_a_status_that_is_wider_than_the_terminal_takes_more_lines() -> None:
    """Rendered by prompt_toolkit into a narrow terminal that is a piece of memory."""
    model = ChatModel("alice", "bob", [])
    model.state = Waiting(3.2, "nobody listens at 127.0.0.1:8480")
    shown = await rendered(model, "8480")
    assert " ".join(shown.split()).startswith(
        "bob connection lost, trying again in 3.2 s (nobody listens at 127.0.0.1:8480"
    )
