"""Two real nodes on a real Cassandra and Redis: one gateway to their clients, whichever is killed or drained."""

from pathlib import Path

import pytest
import trio

from gateway.check.checker import check
from gateway.check.history import parse
from gateway.check.recorder import Recorder
from protocol.client import Refused, Resumed, connect
from tests.fakes.waiting import bodies, next_of
from tests.process.cluster_nodes import DEADLINE_S, PATIENT, ClusterNodes
from tests.process.test_two_clients import Eager, Talker

pytestmark = pytest.mark.process


async def test_users_of_two_nodes_chat_and_one_node_is_killed_between_two_messages(
    nodes: ClusterNodes, tmp_path: Path
) -> None:
    first, second = nodes.start("first"), nodes.start("second")
    path = tmp_path / "history.jsonl"
    with Recorder(path) as recorder, trio.fail_after(DEADLINE_S):
        async with (
            connect(first.ws_url, token=first.token("alice"), device="a", rng=Eager()) as one,
            connect(second.ws_url, token=second.token("bob"), device="b", rng=Eager()) as other,
            trio.open_nursery() as nursery,
        ):
            alice, bob = Talker(one, "alice", recorder), Talker(other, "bob", recorder)
            nursery.start_soon(alice.listen)
            nursery.start_soon(bob.listen)
            await one.wait_online()
            await other.wait_online()
            # Some of these conversations are the first node's, some the second's.
            direct = (await one.create_direct("bob")).conversation_id
            groups = [(await one.create_group(f"group {n}", ["bob"])).conversation_id for n in range(8)]
            for conversation in (direct, *groups):
                await alice.say(conversation, f"before {conversation}")
            await bob.until(9)
            recorder.record("info", "fault", "driver", fault="kill")
            await trio.to_thread.run_sync(second.kill)
            for conversation in (direct, *groups):
                await alice.say(conversation, f"after {conversation}")
            for conversation in (direct, *groups):
                await alice.read_all(conversation)
            await trio.to_thread.run_sync(second.start)
            await bob.until(18)
            nursery.cancel_scope.cancel()
    expected = [f"{when} {each}" for when in ("before", "after") for each in (direct, *groups)]
    assert sorted(set(bob.heard)) == sorted(expected)
    report = check(parse(path.read_bytes().splitlines()))
    assert not report.names() & {"lost-write", "duplicate", "inconsistent", "nonmonotonic-send"}, report.as_text()
    assert report.judged["lost-write"] == 18


async def test_a_drained_node_hands_over_and_nobody_waits_for_a_lease(nodes: ClusterNodes) -> None:
    first, second = nodes.start("first", *PATIENT), nodes.start("second", *PATIENT)
    with trio.fail_after(DEADLINE_S):
        async with connect(second.ws_url, token=second.token("alice"), device="a", rng=Eager()) as client:
            groups = [(await client.create_group(f"group {n}", ["bob"])).conversation_id for n in range(8)]
            code = await trio.to_thread.run_sync(first.terminate)
            assert code == 0, first.stderr_tail()
            assert "slots handed over" in first.stderr_path.read_text(), "it was the first and owned all"
            for number, conversation in enumerate(groups):
                assert (await client.send(conversation, f"m{number}")).seq == 2
    assert "node marked dead" not in second.stderr_path.read_text(), "it gave its lease up itself"


async def test_a_channels_entries_find_its_followers_on_both_nodes(nodes: ClusterNodes) -> None:
    first, second = nodes.start("first"), nodes.start("second")
    crowd = [f"reader{number:03}" for number in range(250)]
    with trio.fail_after(DEADLINE_S):
        async with (
            connect(first.ws_url, token=first.token("alice"), device="a", rng=Eager()) as one,
            connect(second.ws_url, token=second.token("bob"), device="b", rng=Eager()) as other,
        ):
            await one.wait_online()
            heard = other.events()
            await next_of(heard, Resumed)
            # Some are the first node's, some the second's; Bob is added while he is connected.
            channels = [(await one.create_channel(f"news {n}", crowd)).conversation_id for n in range(6)]
            for channel in channels:
                await one.add_members(channel, ["bob", "carol"])
                for number in range(5):
                    await one.send(channel, f"{number} {channel}")
            expected = sorted(f"{number} {channel}" for channel in channels for number in range(5))
            assert sorted(await bodies(heard, 30)) == expected
            members = [member.user async for member in other.members(channels[0])]
            assert members == ["alice", "bob", "carol", *crowd]
            async with connect(
                second.ws_url, token=second.token("carol"), device="c", rng=Eager(), replay=True
            ) as third:
                read = third.events()
                assert sorted(await bodies(read, 30)) == expected
                for channel in channels:
                    await one.send(channel, f"now {channel}")
                assert sorted(await bodies(read, 6)) == sorted(f"now {channel}" for channel in channels)
            await bodies(heard, 6)
            await one.remove_members(channels[0], ["bob"])
            with pytest.raises(Refused):
                await other.history(channels[0])
