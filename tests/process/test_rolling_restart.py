"""A cluster restarted node by node under load: nothing is lost, and clients come back elsewhere."""

import itertools
import random
import time
from pathlib import Path

import pytest
import trio

from gateway.check.history import SeenEntry
from gateway.check.recorder import Recorder
from protocol.client import Client, connect
from protocol.client.wire import Address
from tests.process.cluster_nodes import DEADLINE_S, PATIENT, ClusterNode, ClusterNodes
from tests.process.test_crash import checked
from tests.process.test_two_clients import Talker, seen

pytestmark = pytest.mark.process

USERS = ("alice", "bob", "carol", "dave")
GROUPS = 6
"""Conversations; as the nodes have half of the slots each, some of them are owned by either."""
SENDS_BETWEEN = 100
"""Messages that are acknowledged between two restarts."""
PAGE = 200


class Speaker(Talker):
    """Says something again and again, and knows what everybody was acknowledged."""

    longest_wait_s = 0.0

    def __init__(self, client: Client, user: str, recorder: Recorder, said: "Said") -> None:
        super().__init__(client, user, recorder)
        self._said = said

    async def speak(self, groups: list[str]) -> None:
        """Until cancelled, and then to the end of what was begun."""
        rng = random.Random(self.user)
        for number in itertools.count():
            with trio.CancelScope(shield=True):
                began_s = time.monotonic()
                await self.say(rng.choice(groups), f"{self.user} {number}")
                self.longest_wait_s = max(self.longest_wait_s, time.monotonic() - began_s)
            self._said.note()
            await trio.lowlevel.checkpoint()

    async def read_all(self, conversation: str) -> None:
        call = self.recorder.next_call()
        self.recorder.record("invoke", "read", self.user, call=call, conversation=conversation, final=True)
        entries: list[SeenEntry] = []
        more = True
        while more:
            page = await self.client.history(conversation, after_seq=len(entries), limit=PAGE)
            entries += [seen(event) for event in page.entries]
            more = page.has_more
        span = {"first_seq": 1, "last_seq": len(entries), "head_seq": len(entries)}
        self.recorder.record("ok", "read", self.user, call=call, entries=tuple(entries), **span)


class Said:
    """How many messages were acknowledged, all together."""

    def __init__(self) -> None:
        self.count = 0
        self._more = trio.Event()

    def note(self) -> None:
        self.count += 1
        self._more.set()
        self._more = trio.Event()

    async def more(self, count: int) -> None:
        """Wait until there are so many more."""
        wanted = self.count + count
        while self.count < wanted:
            await self._more.wait()


class Hurrying(random.Random):
    """Jitter that draws short delays: a device that could connect does."""

    def random(self) -> float:
        return 0.02


def one_of(each: list[ClusterNode], first: int):
    """Where a device connects: to the next node in turn, as through a load balancer that knows no more than that."""
    turn = itertools.count(first)

    async def opener(_address: Address) -> trio.SocketStream:
        node = each[next(turn) % len(each)]
        return await trio.open_tcp_stream(node.host, node.port)

    return opener


async def create(speaker: Speaker, number: int, recorder: Recorder) -> str:
    """A group of everybody."""
    call, name, others = recorder.next_call(), f"group {number}", [user for user in USERS if user != speaker.user]
    fields = {"user": speaker.user, "client_msg_id": name, "users": (speaker.user, *others)}
    recorder.record("invoke", "create", speaker.user, call=call, **fields)
    made = (await speaker.client.create_group(name, others, client_msg_id=name)).conversation_id
    recorder.record("ok", "create", speaker.user, call=call, conversation=made, seq=1)
    return made


async def test_a_rolling_restart_under_load_loses_nothing(nodes: ClusterNodes, tmp_path: Path) -> None:
    running = [nodes.start(name, *PATIENT) for name in ("first", "second")]
    history, said = tmp_path / "history.jsonl", Said()
    with Recorder(history) as recorder, trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            speakers: list[Speaker] = []
            for number, user in enumerate(USERS):
                client = await nursery.start(_stay, running, number, user)
                speakers.append(Speaker(client, user, recorder, said))
                nursery.start_soon(speakers[-1].listen)
            groups = [await create(speakers[number % len(USERS)], number, recorder) for number in range(GROUPS)]
            async with trio.open_nursery() as speaking:
                for speaker in speakers:
                    speaking.start_soon(speaker.speak, groups)
                await said.more(SENDS_BETWEEN)
                for node in running:
                    recorder.record("info", "fault", "driver", fault="drain")
                    assert await trio.to_thread.run_sync(node.terminate) == 0, node.stderr_tail()
                    await said.more(SENDS_BETWEEN)
                    await trio.to_thread.run_sync(node.start)
                    await said.more(SENDS_BETWEEN)
                speaking.cancel_scope.cancel()
            own = {speaker.user: sum(body.startswith(speaker.user) for body in speaker.heard) for speaker in speakers}
            assert not any(own.values()), "nobody gets back what it said"
            for group in groups:
                await speakers[0].read_all(group)
            nursery.cancel_scope.cancel()
    print(f"{said.count} sends, longest wait {max(speaker.longest_wait_s for speaker in speakers):.3f} s")
    logs = "".join(node.stderr_path.read_text() for node in running)
    assert "node marked dead" not in logs, "who drains gives its lease up itself"
    assert logs.count("slots handed over") >= len(running)
    assert sum(speaker.connects - 1 for speaker in speakers) >= len(USERS), "each was on a node that went"
    report = checked(history, ())
    judged = {invariant["breach"]: invariant["judged"] for invariant in report["invariants"]}
    for breach in ("lost-write", "duplicate", "inconsistent", "poll-skip", "late-arrival", "phantom", "realtime"):
        assert judged[breach] > 0


async def _stay(running: list[ClusterNode], number: int, user: str, *, task_status: trio.TaskStatus[Client]) -> None:
    """Have a client until cancelled."""
    token = running[0].token(user)
    async with connect(
        running[0].ws_url, token=token, device="phone", opener=one_of(running, number), rng=Hurrying()
    ) as client:
        await client.wait_online()
        task_status.started(client)
        await trio.sleep_forever()
