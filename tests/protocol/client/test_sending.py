from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.client import (
    MessageNotSent,
    MessageReceived,
    MessageSent,
    Resumed,
    SendExpired,
    SendQueueFull,
    SendRefused,
    StateFileError,
)
from protocol.client.engine import NOTES_DELAY_S
from protocol.client.events import EventQueue
from protocol.client.send_queue import SendQueue
from protocol.client.state_file import Changes, SavedMessage, StateFile
from protocol.errors import ErrorCode
from protocol.frames import Send
from tests.fakes.node import FakeConnection, FakeNode, Refusals
from tests.fakes.waiting import next_of


def sends(node: FakeNode) -> list[tuple[str, int]]:
    return [(c.body, c.attempt) for c in node.received if isinstance(c, Send)]


async def lose(connection: FakeConnection, command: Send) -> bool:
    """Store the first attempt, and cut the connection instead of answering."""
    if command.attempt > 1:
        return False
    connection.node.store_send(command)
    await trio.aclose_forcefully(connection.node.streams[-1])
    return True


async def test_order_of_one_conversation_is_kept_across_refusals_and_reconnects(
    autojump_clock, node: FakeNode, connected
) -> None:
    node.scripts[Send] = Refusals((ErrorCode.RATE_LIMITED, 500), (ErrorCode.UNAVAILABLE, 0), (ErrorCode.OVERLOADED, 0))
    async with connected() as client:
        await client.wait_online()
        outgoing = [client.submit("c", str(n)) for n in range(20)]
        await trio.sleep(0.7)
        await node.connection.close(1012)
        await client.flush()
        assert [(await item.wait_settled()).seq for item in outgoing] == list(range(1, 21))
    assert [entry.body for entry in node.logs["c"]] == [str(n) for n in range(20)]


async def test_a_repeat_keeps_its_id_and_counts_its_attempts(autojump_clock, node: FakeNode, connected) -> None:
    node.scripts[Send] = Refusals((ErrorCode.OUTCOME_UNKNOWN, 0), (ErrorCode.INTERNAL, 0))
    async with connected() as client:
        await client.send("c", "hello")
    assert sends(node) == [("hello", 1), ("hello", 2), ("hello", 3)]
    assert len({c.client_msg_id for c in node.received if isinstance(c, Send)}) == 1


async def test_retry_after_is_waited_for(autojump_clock, node: FakeNode, connected) -> None:
    node.scripts[Send] = Refusals((ErrorCode.RATE_LIMITED, 20_000))
    async with connected() as client:
        await client.wait_online()
        start = trio.current_time()
        await client.send("c", "hello")
        assert trio.current_time() - start == pytest.approx(20)


async def test_an_attempt_that_came_too_soon_is_none_to_be_looked_for(
    autojump_clock, node: FakeNode, connected
) -> None:
    node.scripts[Send] = Refusals(
        (ErrorCode.OUTCOME_UNKNOWN, 0), (ErrorCode.RATE_LIMITED, 0), (ErrorCode.RATE_LIMITED, 0)
    )
    async with connected() as client:
        await client.send("c", "hello")
    assert sends(node) == [("hello", 1), ("hello", 2), ("hello", 2), ("hello", 2)]


async def test_conversations_do_not_wait_for_each_other(autojump_clock, node: FakeNode, connected) -> None:
    node.scripts[Send] = Refusals((ErrorCode.RATE_LIMITED, 20_000))
    async with connected() as client:
        slow = client.submit("a", "slow")
        await client.wait_online()
        start = trio.current_time()
        await client.send("b", "fast")
        assert trio.current_time() == start
        await slow.wait_settled()


@pytest.mark.parametrize("code", [c for c in ErrorCode if not c.retry])
async def test_final_refusals_are_raised_and_do_not_block_the_next(
    autojump_clock, node: FakeNode, connected, code: ErrorCode
) -> None:
    node.scripts[Send] = Refusals((code, 0))
    async with connected() as client:
        first, second = client.submit("c", "bad"), client.submit("c", "good")
        with pytest.raises(SendRefused) as refused:
            await first.wait_settled()
        assert refused.value.code is code
        assert (await second.wait_settled()).seq == 1


@pytest.mark.parametrize(
    ("body", "metadata", "code"),
    [
        ("", None, "BODY_EMPTY"),
        ("x" * 4001, None, "4,001 characters"),
        ("x", {"k": "v" * 70_000}, "no more than 65,536"),
        ("caf\udce9", None, r"BAD_REQUEST: U\+DCE9, half of a surrogate pair"),
        ("x", {"k": "\ud83d"}, r"U\+D83D, half of a surrogate pair"),
        ("x", {"retries": 3}, r"BAD_REQUEST: Expected `str`, got `int`"),
        (b"x", None, r"BAD_REQUEST: Expected `str`, got `bytes`"),
    ],
)
async def test_what_no_node_takes_is_refused_before_it_is_sent(
    autojump_clock, node: FakeNode, connected, body: str, metadata: dict[str, str] | None, code: str
) -> None:
    async with connected() as client:
        with pytest.raises(SendRefused, match=code):
            await client.send("c", body, metadata)
    assert sends(node) == []


async def test_a_stored_message_whose_answer_was_lost_is_found_by_sync(
    autojump_clock, node: FakeNode, connected
) -> None:
    """The client sees its own entry in the sync, or the answer to its repeat, whichever comes first: one outcome."""
    node.scripts[Send] = lose
    node.append("c", "first")
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        assert (await client.send("c", "hello")).seq == 2
        await node.say("c", "after")
        assert (await next_of(events, MessageReceived)).body == "after"
    assert [entry.body for entry in node.logs["c"]] == ["first", "hello", "after"]


async def test_an_answer_that_never_comes_is_asked_for_again(autojump_clock, node: FakeNode, connected) -> None:
    async def forget(connection: FakeConnection, command: Send) -> bool:
        return command.attempt == 1

    node.scripts[Send] = forget
    async with connected() as client:
        assert (await client.send("c", "hello")).seq == 1
    assert sends(node) == [("hello", 1), ("hello", 2)]
    assert len(node.connections) == 1


async def test_cancelling_before_the_first_attempt_takes_the_message_back(
    autojump_clock, node: FakeNode, connected
) -> None:
    node.refusals.extend([OSError("down")] * 3)
    async with connected() as client:
        with trio.move_on_after(0.01) as scope:
            await client.send("c", "never mind")
        assert scope.cancelled_caught
        assert client.unsent == 0
        await client.wait_online()
        await client.send("c", "hello")
    assert sends(node) == [("hello", 1)]


async def test_cancelling_later_leaves_the_message_to_the_queue_and_an_event_tells(
    autojump_clock, node: FakeNode, connected
) -> None:
    node.scripts[Send] = Refusals((ErrorCode.UNAVAILABLE, 5000))
    async with connected() as client:
        await client.wait_online()
        with trio.move_on_after(1):
            await client.send("c", "hello", client_msg_id="mine")
        assert client.unsent == 1
        event = await next_of(client.events(), MessageSent)
        assert (event.client_msg_id, event.seq) == ("mine", 1)
        node.scripts[Send] = Refusals((ErrorCode.UNAVAILABLE, 5000), (ErrorCode.NOT_FOUND, 0))
        with trio.move_on_after(1):
            await client.send("c", "again")
        failed = await next_of(client.events(), MessageNotSent)
        assert (failed.body, failed.reason) == ("again", "NOT_FOUND: no")


async def test_a_message_that_is_settled_when_its_call_is_cancelled_is_told_by_an_event() -> None:
    """The task that was cancelled has not run yet when the acknowledgement comes."""
    told = []
    queue = SendQueue(None, told.append, 10)
    item = queue.submit("c", "hello", None, "mine")
    item.attempts = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.wait, item)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        assert queue.stored("c", "mine", 7, 0)
    assert told == [MessageSent("c", "mine", 7, 0)]


async def test_the_queue_is_bounded_and_ids_are_unique(autojump_clock, node: FakeNode, connected) -> None:
    node.refusals.extend([OSError("down")] * 100)
    async with connected(sends_max=2) as client:
        client.submit("c", "1", client_msg_id="a")
        with pytest.raises(ValueError, match="each message needs its own"):
            client.submit("c", "1", client_msg_id="a")
        client.submit("c", "2")
        with pytest.raises(SendQueueFull, match="2 messages wait to be sent, no more than 2 may"):
            client.submit("c", "3")


async def test_unsent_messages_outlive_a_restart_in_order(
    patient_clock, node: FakeNode, connected, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    node.refusals.extend([OSError("down")] * 100)
    async with connected(state_file=path) as client:
        for n in range(3):
            client.submit("c", str(n))
        device = client.device
    node.refusals.clear()
    async with connected(state_file=path) as client:
        assert client.unsent == 3
        assert client.device == device
        told = [(await next_of(client.events(), MessageSent)).seq for _ in range(3)]
        assert told == [1, 2, 3]
    assert sends(node) == [("0", 1), ("1", 1), ("2", 1)]
    async with connected(state_file=path) as client:
        assert client.unsent == 0


async def test_a_message_taken_back_and_submitted_again_outlives_a_restart(
    patient_clock, node: FakeNode, connected, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    node.refusals.extend([OSError("down")] * 100)
    async with connected(state_file=path) as client:
        with trio.move_on_after(5):
            await client.send("c", "once more", client_msg_id="mine")
        client.submit("c", "once more", client_msg_id="mine")
    node.refusals.clear()
    async with connected(state_file=path) as client:
        assert client.unsent == 1
        await client.flush()
    assert sends(node) == [("once more", 1)]


async def test_every_outcome_of_an_earlier_run_is_told_however_late_the_program_asks(
    patient_clock, node: FakeNode, connected, tmp_path: Path
) -> None:
    count = EventQueue.CONTROL_EVENTS_MAX + 50
    path = tmp_path / "state"
    node.refusals.extend([OSError("down")] * 100)
    async with connected(state_file=path) as client:
        for n in range(count):
            client.submit("c", str(n))
    node.refusals.clear()
    node.scripts[Send] = Refusals(*[(ErrorCode.NOT_FOUND, 0)] * count)
    async with connected(state_file=path) as client:
        await client.flush()
        events = client.events()
        assert [(await next_of(events, MessageNotSent)).body for _ in range(count)] == [str(n) for n in range(count)]


async def test_the_same_id_in_another_conversation_is_another_message(
    autojump_clock, node: FakeNode, connected
) -> None:
    """An id is its sender's within one conversation: another device may use it in another one."""
    node.scripts[Send] = Refusals((ErrorCode.UNAVAILABLE, 5000))
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        outgoing = client.submit("a", "for a", client_msg_id="daily")
        await trio.sleep(1)
        await node.say("b", "for b", "alice", client_msg_id="daily")
        assert (await next_of(events, MessageReceived)).body == "for b"
        await outgoing.wait_settled()
    assert [entry.body for entry in node.logs["a"]] == ["for a"]


async def test_an_answer_is_on_disk_before_its_question_counts_as_dealt_with(
    patient_clock, node: FakeNode, connected, tmp_path: Path, monkeypatch
) -> None:
    """Whenever a crash comes, a program that answers each message once has answered it."""
    answered: set[str] = set()
    commit = StateFile.commit
    count = 20

    async def look(self: StateFile, changes: Changes) -> None:
        await commit(self, changes)
        answered.update(message.body for message in changes.messages.values())
        for seq in range(1, changes.cursors.get("questions", 0) + 1):
            assert f"to {seq}" in answered

    monkeypatch.setattr(StateFile, "commit", look)
    async with connected(state_file=tmp_path / "state") as client:
        events = client.events()
        await next_of(events, Resumed)
        for _ in range(count):
            await node.say("questions", "?")
        for _ in range(count):
            question = await next_of(events, MessageReceived)
            await trio.sleep(NOTES_DELAY_S)  # the moment in which the file is written
            client.submit("answers", f"to {question.seq}")
    assert len(answered) == count


async def test_an_attempt_is_on_disk_before_it_is_made(
    patient_clock, node: FakeNode, connected, tmp_path: Path
) -> None:
    """What a run that crashes in mid-send leaves behind, read at the very moment that the node sees the send."""
    path = tmp_path / "state"
    left: list[list[SavedMessage]] = []

    async def look(connection: FakeConnection, command: Send) -> bool:
        copy = tmp_path / "copy"
        copy.write_bytes(path.read_bytes())
        file = await StateFile.open(copy)
        left.append((await file.load()).messages)
        await file.aclose()
        return False

    node.scripts[Send] = look
    async with connected(state_file=path) as client:
        await client.send("c", "hello", {"k": "v"}, client_msg_id="mine")
    ((saved,),) = left
    assert (saved.client_msg_id, saved.body, saved.metadata, saved.attempts) == ("mine", "hello", {"k": "v"}, 1)
    assert saved.first_attempt_ms > 0


async def test_after_a_crash_in_mid_send_the_repeat_is_marked_and_stored_once(
    patient_clock, node: FakeNode, connected, tmp_path: Path
) -> None:
    path, copy = tmp_path / "state", tmp_path / "copy"

    async def crash(connection: FakeConnection, command: Send) -> bool:
        if command.attempt == 1:
            copy.write_bytes(path.read_bytes())
            connection.node.store_send(command)
            crashed.set()
            await trio.sleep_forever()
        return False

    crashed = trio.Event()
    node.scripts[Send] = crash
    async with connected(state_file=path) as client:
        client.submit("c", "hello")
        await crashed.wait()
    async with connected(state_file=copy) as client:
        await client.flush()
    assert [entry.body for entry in node.logs["c"]] == ["hello"]
    assert sends(node)[-1] == ("hello", 2)


async def test_a_repeat_that_the_node_would_not_recognise_is_given_up(autojump_clock) -> None:
    told = []
    queue = SendQueue(None, told.append, 10, wall_clock_ms=lambda: 100_000_000_000)
    queue.restore([SavedMessage("old", "c", "body", None, 1, 100_000_000_000 - 86_400_000)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.run, None, None)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [(event.client_msg_id, "may or may not have been stored" in event.reason) for event in told] == [
        ("old", True)
    ]
    assert issubclass(SendExpired, Exception)


async def test_a_state_file_of_another_user_is_refused(
    patient_clock, node: FakeNode, connected, tmp_path: Path
) -> None:
    async with connected(state_file=tmp_path / "state") as client:
        await client.wait_online()
    node.user = "mallory"
    async with connected(state_file=tmp_path / "state") as client:
        with pytest.raises(Exception, match="the token is mallory's, but this client and its state are alice's"):
            await client.wait_online()


async def test_a_state_file_that_cannot_be_written_ends_the_client(
    patient_clock, node: FakeNode, connected, tmp_path: Path, monkeypatch
) -> None:
    async def full(self, changes) -> None:
        raise StateFileError("the disk is full")

    async with connected(state_file=tmp_path / "state") as client:
        await client.wait_online()
        with monkeypatch.context() as patch:
            patch.setattr(StateFile, "commit", full)
            with pytest.raises(StateFileError, match="disk is full"):
                await client.send("c", "hello")
    assert sends(node) == []


async def test_what_could_not_be_written_is_written_at_the_end_if_the_disk_has_room_again(
    patient_clock, node: FakeNode, connected, tmp_path: Path, monkeypatch
) -> None:
    async def full(self, changes) -> None:
        raise StateFileError("the disk is full")

    path = tmp_path / "state"
    async with connected(state_file=path) as client:
        await client.wait_online()
        with monkeypatch.context() as patch:
            patch.setattr(StateFile, "commit", full)
            with pytest.raises(StateFileError, match="disk is full"):
                await client.send("c", "hello")
    async with connected(state_file=path) as client:
        await client.flush()
    assert sends(node) == [("hello", 2)]


async def test_an_error_of_the_program_is_not_hidden_by_one_of_the_state_file(
    patient_clock, node: FakeNode, connected, tmp_path: Path, monkeypatch
) -> None:
    async def full(self, changes) -> None:
        raise StateFileError("the disk is full")

    async def program() -> None:
        async with connected(state_file=tmp_path / "state") as client:
            await client.wait_online()
            monkeypatch.setattr(StateFile, "commit", full)
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await program()


async def test_a_message_of_an_earlier_run_that_no_node_takes_is_given_up_and_told(
    patient_clock, node: FakeNode, connected, tmp_path: Path
) -> None:
    """There was a version that let metadata of any type into the file."""
    file = await StateFile.open(tmp_path / "state")
    message = SavedMessage("mine", "c", "hello", {"retries": 3}, 0, 0)  # type: ignore[dict-item]
    await file.commit(Changes(messages={"mine": message}))
    await file.aclose()
    async with connected(state_file=tmp_path / "state") as client:
        not_sent = await next_of(client.events(), MessageNotSent)
    assert (not_sent.client_msg_id, not_sent.reason[:11]) == ("mine", "BAD_REQUEST")
