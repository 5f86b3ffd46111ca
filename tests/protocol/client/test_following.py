import random
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.client import ConversationLeft, MembersRemoved, MessageReceived, Resumed
from protocol.errors import ErrorCode
from protocol.frames import EntryKind, History, ListConversations, Resync, Send, Sync
from tests.fakes.node import FakeConnection, FakeNode, Refusals
from tests.fakes.waiting import bodies, next_of


def commands(node: FakeNode, kind: type) -> list:
    return [c for c in node.received if isinstance(c, kind)]


async def test_a_new_client_begins_with_what_comes_from_now_on(autojump_clock, node: FakeNode, connected) -> None:
    for n in range(5):
        node.append("c", f"old {n}")
    async with connected() as client:
        events = client.events()
        assert await next_of(events, Resumed) == Resumed(False)
        await node.say("c", "new")
        assert await bodies(events, 1) == ["new"]


async def test_replay_begins_with_the_newest_of_each_conversation(autojump_clock, node: FakeNode, connected) -> None:
    for n in range(130):
        node.append("c", str(n))
    async with connected(replay=True) as client:
        events = client.events()
        assert await bodies(events, 100) == [str(n) for n in range(30, 130)]


async def test_what_was_missed_comes_once_and_in_order(autojump_clock, node: FakeNode, connected) -> None:
    node.append("c", "before")
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.say("c", "1")
        assert await bodies(events, 1) == ["1"]
        await node.connection.close(1012)
        for n in range(2, 5):
            node.append("c", str(n))
        node.append("new", "hello", kind=EntryKind.CREATED, users=["alice", "bob"])
        node.append("new", "from a conversation that began meanwhile")
        assert await next_of(events, Resumed) == Resumed(True)
        await node.say("c", "5")
        got = await bodies(events, 1)
    assert got == ["5"]
    assert commands(node, Sync)[-1].cursors == {"c": 2}


async def test_the_missed_entries_themselves(autojump_clock, node: FakeNode, connected) -> None:
    node.append("c", "before")
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.connection.close(1012)
        for n in range(1, 4):
            node.append("c", str(n))
        assert await bodies(events, 3) == ["1", "2", "3"]
        assert not commands(node, History)


async def test_more_than_a_sync_carries_is_filled_in_by_history(autojump_clock, node: FakeNode, connected) -> None:
    node.append("c", "before")
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.connection.close(1012)
        for n in range(750):
            node.append("c", str(n))
        assert await next_of(events, Resumed) == Resumed(False)
        assert await bodies(events, 750) == [str(n) for n in range(750)]
    assert commands(node, History)


async def test_pushes_that_are_lost_repeated_or_out_of_order(autojump_clock, node: FakeNode, connected) -> None:
    rng = random.Random(7)
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.say("c", "0")
        entries = [node.append("c", str(n)) for n in range(1, 60)]
        arriving = [entry for entry in entries for _ in range(rng.choice([0, 1, 1, 2]))] + entries[-1:]
        rng.shuffle(arriving)
        for entry in arriving:
            await node.connection.push_entry("c", entry)
        assert await bodies(events, 60) == [str(n) for n in range(60)]


async def test_a_gap_that_an_acknowledgement_closes_is_not_asked_for(autojump_clock, node: FakeNode, connected) -> None:
    async def acknowledge_last(connection: FakeConnection, command: Send) -> bool:
        node.store_send(command)
        for n in range(3):
            await node.say("c", f"behind it {n}")
        await wait_all_tasks_blocked()
        return False

    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.say("c", "before")
        node.scripts[Send] = acknowledge_last
        assert (await client.send("c", "own")).seq == 2
        assert await bodies(events, 4) == ["before", "behind it 0", "behind it 1", "behind it 2"]
    assert not commands(node, History)


async def test_a_gap_is_asked_for_at_last_while_an_acknowledgement_does_not_come(
    autojump_clock, node: FakeNode, connected
) -> None:
    async def never(_connection: FakeConnection, _command: Send) -> bool:
        node.append("c", "lost on its way")
        await node.say("c", "behind it")
        return True

    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.say("c", "before")
        node.scripts[Send] = never
        client.submit("c", "own")
        assert await bodies(events, 3) == ["before", "lost on its way", "behind it"]


async def test_pushes_during_the_sync(autojump_clock, node: FakeNode, connected) -> None:
    async def push_first(connection: FakeConnection, command: Sync) -> bool:
        await node.say("c", "pushed before the sync is answered")
        return False

    node.append("c", "before")
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.connection.close(1012)
        node.append("c", "missed")
        node.scripts[Sync] = push_first
        assert await bodies(events, 2) == ["missed", "pushed before the sync is answered"]


async def test_a_push_hides_nothing_of_a_conversation_that_began_meanwhile(
    autojump_clock, node: FakeNode, connected
) -> None:
    async def push_first(connection: FakeConnection, command: Sync) -> bool:
        await node.say("new", "pushed before the sync is answered")
        return False

    node.append("c", "before")
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.connection.close(1012)
        node.append("new", "", kind=EntryKind.CREATED, users=["alice", "bob"])
        node.append("new", "missed")
        node.scripts[Sync] = push_first
        assert await bodies(events, 2) == ["missed", "pushed before the sync is answered"]


async def test_a_conversation_that_begins_during_the_sync_is_told_though_the_sync_does_not_name_it(
    autojump_clock, node: FakeNode, connected
) -> None:
    async def answer_first(connection: FakeConnection, command: Sync) -> bool:
        await node.connection.push_entry("new", node.append("new", "pushed"))
        entries, node.logs["new"] = node.logs.pop("new"), []
        del node.logs["new"]
        await node.answer(connection, command)
        node.logs["new"] = entries
        return True

    node.append("c", "before")
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.connection.close(1012)
        node.scripts[Sync] = answer_first
        assert await bodies(events, 1) == ["pushed"]
        await node.say("new", "and more")
        assert await bodies(events, 1) == ["and more"]


async def test_resync_asks_for_the_named_conversations(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.say("c", "1")
        node.append("c", "lost")
        await node.connection.put(Resync(["c"]))
        assert await bodies(events, 2) == ["1", "lost"]
        assert commands(node, Sync)[-1].only_named
        node.append("c", "lost too")
        await node.connection.put(Resync())
        assert await bodies(events, 1) == ["lost too"]


async def test_a_program_that_does_not_keep_up_stops_the_reading_and_misses_nothing(
    autojump_clock, node: FakeNode, connected
) -> None:
    async with connected(events_max=10) as client:
        events = client.events()
        await next_of(events, Resumed)
        for n in range(500):
            node.append("c", str(n))
        async with trio.open_nursery() as nursery:

            async def push() -> None:
                for entry in list(node.logs["c"]):
                    await node.connection.push_entry("c", entry)

            nursery.start_soon(push)
            await wait_all_tasks_blocked()
            await trio.sleep(200)  # more than the idle timeout: not reading is not silence
            assert len(node.connections) == 1
            assert await bodies(events, 250) == [str(n) for n in range(250)]
            # A program that asks for something while it is behind gets its answer.
            assert (await client.send("d", "still alive")).seq == 1
            assert await bodies(events, 250) == [str(n) for n in range(250, 500)]


async def test_memory_stays_bounded_while_answers_are_awaited(autojump_clock, node: FakeNode, connected) -> None:
    """While a reply is awaited reading goes on; what does not fit is not kept, but fetched again."""

    async def slow(connection: FakeConnection, command: Send) -> bool:
        for n in range(300):
            await node.say("c", str(n))
        return False

    node.scripts[Send] = slow
    async with connected(events_max=10) as client:
        events = client.events()
        await next_of(events, Resumed)
        await client.send("d", "hello")
        assert await bodies(events, 300) == [str(n) for n in range(300)]
    assert commands(node, History)


async def test_left_while_away(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.say("c", "1")
        await node.connection.close(1012)
        del node.logs["c"]
        assert await next_of(events, ConversationLeft) == ConversationLeft("c")
        await next_of(events, Resumed)
        await node.connection.close(1012)
        await next_of(events, Resumed)
    assert commands(node, Sync)[-1].cursors == {}


async def test_removed_while_online_then_added_again(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.say("c", "1")
        await node.say("c", "", kind=EntryKind.MEMBERS_REMOVED, users=["alice"])
        await next_of(events, MembersRemoved)
        for _ in range(5):
            node.append("c", "not for alice")
        await node.say("c", "", kind=EntryKind.MEMBERS_ADDED, users=["alice"])
        await node.say("c", "hello again")
        assert await bodies(events, 1) == ["hello again"]
    assert not commands(node, History)


async def test_removed_and_added_again_within_a_gap_is_not_left(
    patient_clock, node: FakeNode, connected, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    async with connected(state_file=path) as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.say("c", "1")
        node.append("c", "lost")
        node.append("c", "", kind=EntryKind.MEMBERS_REMOVED, users=["alice"])
        await node.say("c", "", kind=EntryKind.MEMBERS_ADDED, users=["alice"])
        await node.say("c", "again")
        assert await bodies(events, 3) == ["1", "lost", "again"]
    node.append("c", "later")
    async with connected(state_file=path) as client:
        assert await bodies(client.events(), 1) == ["later"]


async def test_a_node_with_fewer_entries_than_were_seen(autojump_clock, node: FakeNode, connected) -> None:
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        for n in range(5):
            await node.say("c", str(n))
        assert await bodies(events, 5) == [str(n) for n in range(5)]
        await node.connection.close(1012)
        del node.logs["c"][2:]
        assert await next_of(events, Resumed) == Resumed(False)
        await node.say("c", "new 3")
        assert await bodies(events, 1) == ["new 3"]


async def test_a_refusal_that_may_pass_only_delays_the_sync(autojump_clock, node: FakeNode, connected) -> None:
    node.scripts[ListConversations] = Refusals((ErrorCode.UNAVAILABLE, 100), (ErrorCode.OVERLOADED, 100))
    async with connected() as client:
        await next_of(client.events(), Resumed)
    assert len(commands(node, ListConversations)) == 3
    assert len(node.connections) == 1


async def test_more_conversations_than_one_sync_can_name(autojump_clock, node: FakeNode, connected) -> None:
    for n in range(1500):
        node.append(f"c{n}", "old")
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.connection.close(1012)
        node.append("c1234", "missed")
        node.logs = {"new": [], **node.logs}
        node.append("new", "", kind=EntryKind.CREATED, users=["alice"])
        node.append("new", "in a new conversation")
        assert sorted(await bodies(events, 2)) == ["in a new conversation", "missed"]
    syncs = commands(node, Sync)
    assert [len(sync.cursors) for sync in syncs] == [1000, 500, 1]
    assert all(sync.only_named for sync in syncs)


async def test_a_new_conversation_is_found_behind_known_ones_with_news(
    autojump_clock, node: FakeNode, connected
) -> None:
    for n in range(1200):
        node.append(f"c{n}", "old")
    async with connected() as client:
        events = client.events()
        await next_of(events, Resumed)
        await node.connection.close(1012)
        node.append("c7", "later than the new conversation")
        node.append("new", "", kind=EntryKind.CREATED, users=["alice"])
        node.append("new", "in a new conversation")
        newest_first = ["c7", "new", *(name for name in node.logs if name not in {"c7", "new"})]
        node.logs = {name: node.logs[name] for name in newest_first}
        assert sorted(await bodies(events, 2)) == ["in a new conversation", "later than the new conversation"]


async def test_a_run_that_ends_before_it_has_begun_everywhere_leaves_no_beginning_to_go_on_from(
    patient_clock, node: FakeNode, connected, tmp_path: Path
) -> None:
    async def slow(connection: FakeConnection, command: ListConversations) -> bool:
        return True

    for n in range(3):
        node.append("c", f"old {n}")
    node.scripts[ListConversations] = slow
    async with connected(state_file=tmp_path / "state") as client:
        await client.send("d", "a script's only message")
    del node.scripts[ListConversations]
    async with connected(state_file=tmp_path / "state") as client:
        await client.wait_online()
        await trio.sleep(1)
        await node.say("c", "new")
        assert await bodies(client.events(), 1) == ["new"]


async def test_what_was_missed_before_the_beginning_was_complete_is_fetched(
    autojump_clock, node: FakeNode, connected
) -> None:
    async def cut(connection: FakeConnection, command: ListConversations) -> bool:
        if len(node.connections) > 1:
            return False
        await node.say("c", "pushed")
        await connection.close(1012)
        node.append("c", "missed")
        return True

    node.scripts[ListConversations] = cut
    async with connected() as client:
        assert await bodies(client.events(), 2) == ["pushed", "missed"]


async def test_cursors_outlive_a_restart(patient_clock, node: FakeNode, connected, tmp_path: Path) -> None:
    path = tmp_path / "state"
    async with connected(state_file=path) as client:
        events = client.events()
        await next_of(events, Resumed)
        for n in range(4):
            await node.say("c", str(n))
        assert await bodies(events, 2) == ["0", "1"]
        await wait_all_tasks_blocked()
    node.append("c", "4")
    async with connected(state_file=path) as client:
        assert await bodies(client.events(), 3) == ["2", "3", "4"]


async def test_an_event_that_was_not_dealt_with_comes_again_after_a_crash(
    patient_clock, node: FakeNode, connected, tmp_path: Path
) -> None:
    path = tmp_path / "state"

    async def program() -> None:
        async with connected(state_file=path) as client:
            events = client.events()
            await next_of(events, Resumed)
            await node.say("c", "0")
            async for event in events:
                if isinstance(event, MessageReceived):
                    raise LookupError("crash")

    with pytest.raises(LookupError):
        await program()
    async with connected(state_file=path) as client:
        assert await bodies(client.events(), 1) == ["0"]
