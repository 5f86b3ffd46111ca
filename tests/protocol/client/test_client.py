import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.client import (
    ClientClosed,
    Closed,
    ConversationCreated,
    MembersAdded,
    MessageReceived,
    NotReachable,
    PresenceChanged,
    Refused,
    RequestTimeout,
    Resumed,
    StateChanged,
    TypingChanged,
    connect,
)
from protocol.errors import ErrorCode
from protocol.frames import (
    Authenticate,
    EntryKind,
    ErrorReply,
    GetConversation,
    History,
    MarkReceipt,
    Ping,
    Rename,
    TokenExpiring,
    Typing,
    TypingPush,
    WatchPresence,
)
from tests.fakes.node import FakeNode
from tests.fakes.waiting import next_of


async def test_online_then_send_and_receive(autojump_clock, node: FakeNode, connected) -> None:
    async with connected(device="phone") as client:
        await client.wait_online()
        assert (client.user, client.node, client.device) == ("alice", "fake", "phone")
        events = client.events()
        await next_of(events, Resumed)
        assert (await client.send("c", "hello")).seq == 1
        await node.say("c", "hi", metadata={"k": "v"})
        event = await next_of(events, MessageReceived)
        assert (event.seq, event.body, event.sender, event.metadata) == (2, "hi", "bob", {"k": "v"})
    assert node.close_codes == [1000]
    assert [attempt[:2] for attempt in node.attempts] == [("t", "phone")]


async def test_events_end_when_the_block_is_left(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        await client.wait_online()
        events = client.events()
    seen = [event async for event in events]
    assert seen[-1] == StateChanged(Closed("the client was closed by the program", True))
    with pytest.raises(ClientClosed, match="closed by the program"):
        await client.send("c", "too late")
    with pytest.raises(ClientClosed, match="closed by the program"):
        await client.get_conversation("c")


async def test_an_error_in_the_block_comes_out_as_it_is(autojump_clock, node: FakeNode, connected) -> None:
    async def program() -> None:
        async with connected() as client:
            await client.wait_online()
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await program()
    await wait_all_tasks_blocked()
    assert node.close_codes == [1000]


async def test_leaving_takes_no_time_connected_or_not(autojump_clock, node: FakeNode, connected) -> None:
    start = trio.current_time()
    async with connected():
        pass
    async with connected() as client:
        await client.wait_online()
    node.mute_handshakes = 1
    async with connected():
        await wait_all_tasks_blocked()
    assert trio.current_time() == start


async def test_leaving_by_cancellation(autojump_clock, node: FakeNode, connected) -> None:
    with trio.move_on_after(5) as scope:
        async with connected() as client:
            async for _ in client.events():
                pass
    assert scope.cancelled_caught
    await wait_all_tasks_blocked()
    assert node.close_codes == [1000]


@pytest.mark.parametrize(
    "url",
    [
        *("", "node:8480", "ftp://node", "ws://", "ws://node/?token=x"),
        *("ws://no..de", "ws://" + "x" * 64 + ".example", "ws://node/a b", "ws://node/\u00fc"),
    ],
)
async def test_bad_addresses(url: str) -> None:
    with pytest.raises(ValueError, match=r"ws://HOST:PORT|tokens go elsewhere|host is no name"):
        async with connect(url, token="t"):
            pass


async def test_too_long_a_device_name(connected) -> None:
    with pytest.raises(ValueError, match="a device name of 65 characters: no more than 64 are allowed"):
        async with connected(device="x" * 65):
            pass


async def test_each_command_has_its_method(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        group = await client.create_group("Team", ["bob"])
        name = group.conversation_id
        assert (await client.create_group("Team", ["bob"], client_msg_id=name)).conversation_id == name
        await client.add_members(name, ["carol"])
        await client.rename(name, "Crew")
        await client.send(name, "hello")
        await client.remove_members(name, ["carol"])
        page = await client.history(name, after_seq=1, limit=2)
        assert [entry.seq for entry in page.entries] == [2, 3]
        assert (page.head_seq, page.has_more) == (5, True)
        assert [entry.seq for entry in (await client.history(name, before_seq=3)).entries] == [1, 2]
        assert (await client.get_conversation(name)).head_seq == 5
        await client.mark_read(name, 5)
        await client.mark_delivered(name, 5)
        direct = await client.create_direct("bob")
        note = await client.note_to_self()
        listed = [conversation.conversation_id async for conversation in client.conversations()]
        assert listed == [name, direct.conversation_id, note.conversation_id]
        assert (await client.watch_presence(["bob"]))[0].online
    receipts = [c for c in node.received if isinstance(c, MarkReceipt)]
    assert [(c.delivered_seq, c.read_seq) for c in receipts] == [(5, 5), (5, 0)]


async def test_what_the_client_did_itself_is_no_event(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        name = (await client.create_group("Team", ["bob"])).conversation_id
        await client.rename(name, "Crew")
        await client.send(name, "hello")
        await node.say(name, "hi")
        event = await next_of(events, MessageReceived, ConversationCreated, MembersAdded)
        assert event.body == "hi"
    assert not [c for c in node.received if isinstance(c, History)]


async def test_a_refusal_names_its_code(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        with pytest.raises(Refused, match="NOT_FOUND: no such conversation") as refused:
            await client.get_conversation("nowhere")
        assert refused.value.code is ErrorCode.NOT_FOUND


async def test_a_refusal_that_may_pass_is_waited_for(autojump_clock, node: FakeNode, connected) -> None:
    node.append("c", "hi")
    times: list[float] = []

    async def overloaded(connection, command) -> bool:
        times.append(trio.current_time())
        if len(times) < 3:
            await connection.put(ErrorReply(command.id, ErrorCode.OVERLOADED, "busy", 5000))
            return True
        return False

    node.scripts[GetConversation] = overloaded
    async with connected() as client:
        assert (await client.get_conversation("c")).head_seq == 1
    assert times[1] - times[0] == pytest.approx(5.0)
    assert times[2] - times[1] == pytest.approx(5.0)


async def test_a_request_outlives_a_lost_connection_and_counts_its_attempts(
    autojump_clock, node: FakeNode, connected
) -> None:
    node.append("c", "hi")

    async def lose(connection, command) -> bool:
        if command.attempt == 1:
            node.append("c", command.title, "alice", kind=EntryKind.RENAMED, client_msg_id=command.client_msg_id)
            await connection.close(1012)
            return True
        return False

    node.scripts[Rename] = lose
    async with connected() as client:
        await client.rename("c", "Crew")
    renames = [c for c in node.received if isinstance(c, Rename)]
    assert [c.attempt for c in renames] == [1, 2]
    assert len({c.client_msg_id for c in renames}) == 1


async def test_a_request_without_an_answer_ends_in_time(autojump_clock, node: FakeNode, connected) -> None:
    async def silent(connection, command) -> bool:
        return True

    node.scripts[GetConversation] = silent
    async with connected() as client:
        start = trio.current_time()
        with pytest.raises(RequestTimeout, match="no answer from ws://node:80 within 30 s"):
            await client.get_conversation("c")
        assert trio.current_time() - start == pytest.approx(30.0)


async def test_a_cancelled_request_leaves_the_connection_usable(autojump_clock, node: FakeNode, connected) -> None:
    node.append("c", "hi")

    async def slow(connection, command) -> bool:
        await trio.sleep(5)
        return False

    node.scripts[GetConversation] = slow
    async with connected() as client:
        await client.wait_online()
        with trio.move_on_after(1):
            await client.get_conversation("c")
        del node.scripts[GetConversation]
        assert (await client.get_conversation("c")).head_seq == 1
    assert len(node.connections) == 1


async def test_not_reachable_says_why(autojump_clock, node: FakeNode, connected) -> None:
    node.refusals.extend([ConnectionRefusedError(111, "Connection refused")] * 50)
    async with connected() as client:
        with pytest.raises(NotReachable, match="cannot reach ws://node:80: connection refused"):
            await client.wait_online(timeout_s=20)


async def test_heartbeats_at_the_interval_that_the_node_asks_for(autojump_clock, node: FakeNode, connected) -> None:
    node.heartbeat_interval_s = 7.0
    async with connected() as client:
        await client.wait_online()
        await trio.sleep(30)
    assert len([c for c in node.received if isinstance(c, Ping)]) == 4


async def test_the_token_is_refreshed_over_the_live_connection(autojump_clock, node: FakeNode, connected) -> None:
    tokens = iter(["one", "two", "three"])

    async def provider() -> str:
        return next(tokens)

    async with connected(token=provider) as client:
        await client.wait_online()
        await node.connection.put(TokenExpiring(60))
        await wait_all_tasks_blocked()
        await trio.sleep(0.1)
    assert [c.token for c in node.received if isinstance(c, Authenticate)] == ["two"]
    assert len(node.connections) == 1


async def test_typing_and_presence(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        client.typing("c")  # offline: nothing happens
        await client.watch_presence(["bob"])
        client.typing("c")
        events = client.events()
        await node.connection.put(TypingPush("c", "bob", True))
        assert await next_of(events, TypingChanged) == TypingChanged("c", "bob", True)
        await node.connection.close(1012)
        assert await next_of(events, PresenceChanged) == PresenceChanged("bob", True, 0)
    assert len([c for c in node.received if isinstance(c, Typing)]) == 1


async def test_presence_is_watched_again_as_soon_as_a_node_under_load_lets_it(
    autojump_clock, node: FakeNode, connected
) -> None:
    refused = 0

    async def overloaded(connection, command) -> bool:
        nonlocal refused
        refused += 1
        if refused > 2:
            return False
        await connection.put(ErrorReply(command.id, ErrorCode.OVERLOADED, "busy", 1000))
        return True

    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await client.watch_presence(["bob"])
        node.scripts[WatchPresence] = overloaded
        await node.connection.close(1012)
        assert await next_of(events, PresenceChanged) == PresenceChanged("bob", True, 0)
    assert refused == 3


async def test_a_refused_list_of_users_leaves_the_one_before_in_force(
    autojump_clock, node: FakeNode, connected
) -> None:
    async def too_many(connection, command) -> bool:
        if command.users == ["bob"]:
            return False
        await connection.put(ErrorReply(command.id, ErrorCode.BAD_REQUEST, "too many"))
        return True

    node.scripts[WatchPresence] = too_many
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await client.watch_presence(["bob"])
        with pytest.raises(Refused, match="too many"):
            await client.watch_presence(["carol"] * 100)
        await node.connection.close(1012)
        assert await next_of(events, PresenceChanged) == PresenceChanged("bob", True, 0)


async def test_what_a_program_that_does_not_keep_up_is_not_told_is_counted(
    autojump_clock, node: FakeNode, connected
) -> None:
    async with connected(events_max=1) as client:
        await client.wait_online()
        await node.say("c", "one")
        for typing in (True, False):
            await node.connection.put(TypingPush("c", "bob", typing))
        assert (await client.send("d", "the answer is read behind all of that")).seq == 1
        assert client.shed_events == 2


async def test_messages_that_the_program_got_are_marked_delivered(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        for text in ("one", "two"):
            await node.say("c", text)
        await next_of(events, MessageReceived)
        await next_of(events, MessageReceived)
        await trio.sleep(2)
    receipts = [c for c in node.received if isinstance(c, MarkReceipt)]
    assert [(c.conversation_id, c.delivered_seq, c.read_seq) for c in receipts] == [("c", 2, 0)]


@pytest.mark.parametrize("code", [ErrorCode.UNAVAILABLE, ErrorCode.OVERLOADED])
async def test_a_receipt_that_was_lost_or_put_off_is_told_again(
    autojump_clock, node: FakeNode, connected, code: ErrorCode
) -> None:
    async def fail(connection, command) -> bool:
        match len([c for c in node.received if isinstance(c, MarkReceipt)]):
            case 1:
                await trio.aclose_forcefully(node.streams[-1])
            case 2:
                await connection.put(ErrorReply(command.id, code, "no store", 500))
            case _:
                return False
        return True

    node.scripts[MarkReceipt] = fail
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.say("c", "one")
        await next_of(events, MessageReceived)
        await trio.sleep(60)
    assert [c.delivered_seq for c in node.received if isinstance(c, MarkReceipt)] == [1, 1, 1]


async def test_receipts_of_many_conversations_leave_room_for_other_commands(
    autojump_clock, node: FakeNode, connected
) -> None:
    """A node takes 100 commands a second and 400 at once; what comes beyond is refused."""
    times: list[float] = []

    async def note(connection, command) -> bool:
        times.append(trio.current_time())
        return False

    node.scripts[MarkReceipt] = note
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        for n in range(500):
            await node.say(f"c{n}", "news")
            await next_of(events, MessageReceived)
        await trio.sleep(30)
    assert len(times) == 500
    assert max(sum(start <= time < start + 1 for time in times) for start in times) <= 51


async def test_receipts_of_a_busy_conversation_are_collected(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        for _ in range(100):
            await node.say("c", "news")
            await next_of(events, MessageReceived)
            await trio.sleep(0.1)
    receipts = [c.delivered_seq for c in node.received if isinstance(c, MarkReceipt)]
    assert receipts[-1] == 100
    assert len(receipts) <= 11


async def test_a_program_that_leaves_with_its_first_message_has_got_it(
    autojump_clock, node: FakeNode, connected
) -> None:
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.say("c", "one")
        await next_of(events, MessageReceived)
    assert [c.delivered_seq for c in node.received if isinstance(c, MarkReceipt)] == [1]


async def test_receipts_may_be_left_to_the_program(autojump_clock, node: FakeNode, connected) -> None:
    async with connected(mark_delivered=False) as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.say("c", "one")
        await next_of(events, MessageReceived)
        await trio.sleep(2)
    assert not [c for c in node.received if isinstance(c, MarkReceipt)]
