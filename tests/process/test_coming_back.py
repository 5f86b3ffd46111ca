"""Who comes back to a node of a cluster gets all that was missed, whatever became of owners and of Redis meanwhile."""

from pathlib import Path

import pytest
import trio

from bench.node import read_metrics
from bench.processes import NodeProcess
from bench.send_cross import wait_shared
from protocol.client import Client, MessageReceived, Resumed, connect
from tests.process.cluster_nodes import DEADLINE_S, PATIENT, ClusterNodes
from tests.process.test_two_clients import Eager
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.process

GROUPS = 12


class Bob:
    """A user who looks in now and then; his cursors outlive each visit."""

    def __init__(self, node: NodeProcess, state_file: Path) -> None:
        self._node = node
        self._state_file = state_file

    async def looks_in(self) -> list[str]:
        """What he missed: messages that a Sync brings, and nothing that comes later."""
        heard = []
        async with connect(
            self._node.ws_url, token=self._node.token("bob"), device="b", state_file=self._state_file, rng=Eager()
        ) as client:
            async for event in client.events():
                if isinstance(event, Resumed):
                    break
                if isinstance(event, MessageReceived):
                    heard.append(event.body)
        return sorted(heard)

    def heads(self) -> dict[str, float]:
        """How his node has come by heads so far."""
        metrics = read_metrics(self._node)
        return {name: metrics[f"tidegate_heads_{name}_total"] for name in ("own", "shared", "asked")}


async def say(alice: Client, groups: list[str], word: str) -> list[str]:
    """Have something said in some groups; what it was, in order."""
    for number, group in enumerate(groups):
        await alice.send(group, f"{word} {number:02}")
    return [f"{word} {number:02}" for number in range(len(groups))]


async def test_a_sync_brings_all_that_was_missed_and_only_that(
    nodes: ClusterNodes, redis_server: RedisServer, tmp_path: Path
) -> None:
    first, second = nodes.start("first", *PATIENT), nodes.start("second", *PATIENT)
    await trio.to_thread.run_sync(wait_shared, first, second)
    bob = Bob(second, tmp_path / "bob.state")
    with trio.fail_after(DEADLINE_S):
        async with connect(first.ws_url, token=first.token("alice"), device="a", rng=Eager()) as alice:
            groups = [(await alice.create_group(f"group {n}", ["bob"])).conversation_id for n in range(GROUPS)]
            await bob.looks_in()
            # Nothing is missed, and nobody has to be asked: owners have told the heads, this node's own it remembers.
            before = bob.heads()
            assert await bob.looks_in() == []
            after = bob.heads()
            assert after["own"] + after["shared"] - before["own"] - before["shared"] == GROUPS
            assert after["shared"] > before["shared"], "some are the first node's"
            assert after["asked"] == before["asked"]

            assert await say(alice, groups[::3], "some") == await bob.looks_in()
            redis_server.flush()
            assert await say(alice, groups, "flushed") == await bob.looks_in()
            redis_server.kill()
            assert await say(alice, groups[1::3], "alone") == await bob.looks_in()
            redis_server.start()
            assert await say(alice, groups[::2], "together") == await bob.looks_in()
            assert await bob.looks_in() == []


async def test_a_sync_after_a_takeover_brings_what_both_owners_acknowledged(
    nodes: ClusterNodes, tmp_path: Path
) -> None:
    first, second = nodes.start("first"), nodes.start("second")
    await trio.to_thread.run_sync(wait_shared, first, second)
    bob = Bob(second, tmp_path / "bob.state")
    with trio.fail_after(DEADLINE_S):
        async with connect(second.ws_url, token=second.token("alice"), device="a", rng=Eager()) as alice:
            groups = [(await alice.create_group(f"group {n}", ["bob"])).conversation_id for n in range(GROUPS)]
            await bob.looks_in()
            before = await say(alice, groups, "before")
            await trio.to_thread.run_sync(first.kill)
            # At once, while nobody answers for the slots of the dead: their logs are read.
            assert await bob.looks_in() == before
            assert await say(alice, groups, "after") == await bob.looks_in()
            assert await bob.looks_in() == []
