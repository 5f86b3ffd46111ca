"""The client against a node process: what the fake node believes is so."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from gateway.auth import development_token
from protocol.client import Client, MembersAdded, MessageReceived, Refused, Resumed, connect
from protocol.errors import ErrorCode
from protocol.frames import ConversationKind
from tests.fakes.waiting import bodies, next_of

pytestmark = pytest.mark.process


class Node:
    """A node process that can be killed and started again at the same address."""

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory / "data"
        self.port = 0
        self._log = directory / "node.log"
        self._process: trio.Process | None = None

    async def start(self) -> None:
        arguments = [sys.executable, "-m", "gateway.cli.main", "serve", "--port", str(self.port)]
        arguments += ["--data-dir", str(self.data_dir)]
        with self._log.open("ab") as log:
            self._process = await trio.lowlevel.open_process(arguments, stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout is not None
        text = b""
        while not (found := re.search(rb"listening on http://[^:]+:(\d+)", text)):
            data = await self._process.stdout.receive_some()
            assert data, f"the node did not start: {self._log.read_text()[-2000:]}"
            text += data
        self.port = int(found[1])

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            await self._process.stdout.aclose()

    def connect(self, user: str, **options):
        async def token() -> str:
            return development_token(self.data_dir, user)

        return connect(f"ws://127.0.0.1:{self.port}", token=token, **options)


@pytest.fixture
async def real_node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    try:
        await node.start()
        yield node
    finally:
        with trio.CancelScope(shield=True):
            await node.kill()


async def up_to_date(client: Client) -> AsyncIterator:
    events = client.events()
    await next_of(events, Resumed)
    return events


async def test_two_users_across_a_kill(real_node: Node, tmp_path: Path) -> None:
    with trio.fail_after(240):
        async with (
            real_node.connect("alice", state_file=tmp_path / "alice") as alice,
            real_node.connect("bob") as bob,
        ):
            heard = await up_to_date(bob)
            await up_to_date(alice)
            direct = (await alice.create_direct("bob")).conversation_id
            assert (await bob.create_direct("alice")).conversation_id == direct
            first = await alice.send(direct, "before")
            assert await bodies(heard, 1) == ["before"]
            await real_node.kill()
            outgoing = [alice.submit(direct, f"while down {n}") for n in range(10)]
            await real_node.start()
            seqs = [(await item.wait_settled()).seq for item in outgoing]
            assert seqs == list(range(first.seq + 1, first.seq + 11))
            assert await bodies(heard, 10) == [f"while down {n}" for n in range(10)]
            page = await bob.history(direct)
            assert [entry.seq for entry in page.entries] == list(range(1, first.seq + 11))


async def test_groups_members_and_refusals(real_node: Node) -> None:
    with trio.fail_after(240):
        async with real_node.connect("alice") as alice, real_node.connect("carol") as carol:
            heard = await up_to_date(carol)
            own = await up_to_date(alice)
            group = (await alice.create_group("Team", ["bob"])).conversation_id
            await alice.send(group, "carol cannot see this")
            with pytest.raises(Refused) as refused:
                await carol.history(group)
            assert refused.value.code is ErrorCode.NOT_FOUND
            await alice.add_members(group, ["carol"])
            assert (await next_of(heard, MembersAdded)).users == ["carol"]
            await carol.send(group, "hello")
            assert (await next_of(own, MessageReceived, MembersAdded)).body == "hello"
            await alice.rename(group, "Crew")
            assert (await alice.get_conversation(group)).title == "Crew"
            assert [c.conversation_id async for c in carol.conversations()] == [group]
            await alice.mark_read(group, 4)
            assert [p.online for p in await alice.watch_presence(["carol"])] == [True]
            await alice.remove_members(group, ["carol"])
            with pytest.raises(Refused):
                await carol.get_conversation(group)


async def test_channels_are_for_those_who_are_connected_and_read_by_the_others_later(real_node: Node) -> None:
    with trio.fail_after(240):
        async with real_node.connect("alice") as alice, real_node.connect("bob") as bob:
            heard = await up_to_date(bob)
            channel = (await alice.create_channel("News", [f"user{n:03}" for n in range(200)])).conversation_id
            with pytest.raises(Refused) as refused:
                await bob.history(channel)
            assert refused.value.code is ErrorCode.NOT_FOUND
            await alice.add_members(channel, ["bob", "carol"])
            assert (await next_of(heard, MembersAdded)).users == ["bob", "carol"]
            await alice.send(channel, "hello")
            assert await bodies(heard, 1) == ["hello"]
            await bob.send(channel, "hello yourself")
            shown = await bob.get_conversation(channel)
            assert (shown.kind, shown.members, shown.member_count) == (ConversationKind.CHANNEL, [], 203)
            listed = [member.user async for member in bob.members(channel)]
            assert listed == ["alice", "bob", "carol", *(f"user{n:03}" for n in range(200))]
            async with real_node.connect("carol", replay=True) as carol:
                caught_up = carol.events()
                assert await bodies(caught_up, 2) == ["hello", "hello yourself"]
                await alice.send(channel, "all here")
                assert await bodies(caught_up, 1) == ["all here"]
                assert await bodies(heard, 1) == ["all here"]
                await alice.remove_members(channel, ["carol"])
                await alice.send(channel, "without carol")
                with pytest.raises(Refused):
                    await carol.send(channel, "still here?")
            assert await bodies(heard, 1) == ["without carol"]


async def test_a_backlog_larger_than_a_sync_and_than_the_queue(real_node: Node, tmp_path: Path) -> None:
    with trio.fail_after(240):
        async with real_node.connect("bob", state_file=tmp_path / "bob", events_max=50) as bob:
            await up_to_date(bob)
            direct = (await bob.create_direct("alice")).conversation_id
        async with real_node.connect("alice") as alice:
            for n in range(300):
                alice.submit(direct, str(n))
            await alice.flush()
        async with real_node.connect("bob", state_file=tmp_path / "bob", events_max=50) as bob:
            assert await bodies(bob.events(), 300) == [str(n) for n in range(300)]
