"""kill -9 at random moments under load, a restart on the same data, and a checker that finds nothing wrong.

The load: messages, receipts, and a guest who is let in and out.
"""

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from bench.processes import NodeProcess
from gateway.check.recorder import Recorder
from protocol.frames import ConversationKind, ConversationReply, CreateConversation, GetConversation, MarkReceipt, Ok
from tests.process.device import Device, Guest, Place
from tests.process.outgoing import Membership
from tests.process.wire import connected

pytestmark = [pytest.mark.process, pytest.mark.slow]

ROUNDS = 20
DEVICES = [(user, name) for user in ("alice", "bob", "carol", "dave") for name in ("phone", "laptop")]
GUEST = "erin"
CONVERSATIONS = [("alice", "bob", "carol", "dave"), ("alice", "bob"), ("carol", "dave"), ("bob",)]
ACKNOWLEDGED_PER_ROUND = (20, 400)
DEADLINE_S = 600
SOMETIMES = (
    "kill-with-sends-in-flight", "reconnect", "resume-with-news", "unknown-outcome", "duplicate-answered",
    "concurrent-sends", "member-removed",
)  # fmt: skip
"""What must have happened, or the run proves nothing."""
JUDGED = (
    "lost-write", "duplicate", "inconsistent", "nonmonotonic-send", "poll-skip", "late-arrival", "stale-read",
    "phantom", "realtime", "bucket-gap", "leak", "leak-to-outsider",
)  # fmt: skip


class Rounds:
    """The node, its devices, and the switches that say when to connect and when to send."""

    def __init__(self, node: NodeProcess, recorder: Recorder, rng: random.Random, *, cuts: bool = True) -> None:
        self.cuts = cuts
        self.node, self.recorder, self.rng = node, recorder, rng
        self.devices = [Device(node, user, name, recorder, random.Random(rng.random())) for user, name in DEVICES]
        self.guest = Guest(node, GUEST, "phone", recorder, random.Random(rng.random()))
        self.up = trio.Event()
        self.sending = trio.Event()

    async def create_conversations(self) -> None:
        for number, members in enumerate(CONVERSATIONS):
            creator, others = members[0], list(members[1:])
            kind = ConversationKind.GROUP if len(members) > 2 else ConversationKind.DIRECT
            call, name = self.recorder.next_call(), f"new-{number}"
            self.recorder.record(
                "invoke", "create", "setup", call=call, user=creator, client_msg_id=name, users=members
            )
            async with connected(self.node, creator, device="setup") as wire:
                command = CreateConversation(0, kind, others, name, "everybody" if others[1:] else "")
                where = (await wire.ask(command, ConversationReply)).conversation.conversation_id
            self.recorder.record("ok", "create", "setup", call=call, conversation=where, seq=1)
            for device in self.devices:
                if device.user in members:
                    device.places[where] = Place()
            if kind is ConversationKind.GROUP:
                self.devices[0].membership = Membership(where, GUEST, random.Random(self.rng.random()))

    async def load(self, acknowledged: int) -> None:
        """Let the devices send until so many more messages were acknowledged, with ``cuts`` cutting one on the way."""
        counter, reached, half = itertools.count(1), trio.Event(), acknowledged // 2

        def count() -> None:
            number = next(counter)
            if number == half and self.cuts:
                self.rng.choice(self.devices).cut()
            if number == acknowledged:
                reached.set()

        for device in self.devices:
            device.on_acknowledged = count
        self.sending.set()
        await reached.wait()

    async def crash(self) -> None:
        """Kill the node in the midst of it and start it again; the devices come back and send what is unanswered."""
        self.up = trio.Event()
        self.recorder.record("info", "fault", "driver", fault="kill")
        await trio.to_thread.run_sync(self.node.kill)
        self.sending = trio.Event()
        await trio.to_thread.run_sync(self.node.start)
        self.up.set()

    async def settle(self) -> None:
        """Until everything was acknowledged and has reached every device."""
        self.sending = trio.Event()
        for device in self.devices:
            while not device.idle:
                await device.moved.wait()
        heads: dict[str, int] = {}
        for device in self.devices:
            for conversation, place in device.places.items():
                heads[conversation] = max(place.upto, heads.get(conversation, 0))
        for device in self.devices:
            while any(place.upto < heads[where] for where, place in device.places.items()):
                await device.moved.wait()
        self.recorder.record("info", "quiet", "driver")

    async def restart_with_all_read(self) -> None:
        """Everybody reads everything; the node drains and starts again, and still knows."""
        heads: dict[tuple[str, str], int] = {}
        for device in self.devices:
            async with connected(self.node, device.user, device="reader") as wire:
                for where in device.places:
                    asked = await wire.ask(GetConversation(0, where), ConversationReply)
                    head_seq = heads[device.user, where] = asked.conversation.head_seq
                    await wire.ask(MarkReceipt(0, where, head_seq, head_seq), Ok)
        assert await trio.to_thread.run_sync(self.node.terminate) == 0
        await trio.to_thread.run_sync(self.node.start)
        for (user, where), head_seq in heads.items():
            async with connected(self.node, user, device="reader") as wire:
                asked = await wire.ask(GetConversation(0, where), ConversationReply)
            known = {member.user: member for member in asked.conversation.members}
            assert (known[user].delivered_seq, known[user].read_seq) == (head_seq, head_seq)


@pytest.mark.timeout(DEADLINE_S + 30)
async def test_twenty_crashes_lose_double_reorder_and_skip_nothing(tmp_path: Path) -> None:
    seed = int(os.environ.get("CRASH_SEED", random.randrange(2**32)))
    print(f"CRASH_SEED={seed}")
    rng = random.Random(seed)
    history = tmp_path / "history.jsonl"
    node = NodeProcess(tmp_path / "data", "--commands-per-s-max", "0")
    with node, Recorder(history) as recorder, trio.fail_after(DEADLINE_S):
        rounds = Rounds(node, recorder, rng)
        await rounds.create_conversations()
        rounds.up.set()
        async with trio.open_nursery() as nursery:
            for device in rounds.devices:
                nursery.start_soon(device.run, lambda: rounds.up, lambda: rounds.sending)
            async with trio.open_nursery() as visit:
                visit.start_soon(rounds.guest.run, lambda: rounds.up, lambda: rounds.sending)
                for _ in range(ROUNDS):
                    await rounds.load(rng.randint(*ACKNOWLEDGED_PER_ROUND))
                    await rounds.crash()
                await rounds.load(ACKNOWLEDGED_PER_ROUND[0])
                visit.cancel_scope.cancel()
            await rounds.settle()
            nursery.cancel_scope.cancel()
        await rounds.restart_with_all_read()
        for device in rounds.devices:
            await device.read_everything()
    report = checked(history, SOMETIMES)
    assert report["sometimes"]["kill"] == ROUNDS
    judged = {invariant["breach"]: invariant["judged"] for invariant in report["invariants"]}
    assert min(judged[breach] for breach in JUDGED) > 0, judged


def checked(history: Path, sometimes: Sequence[str]) -> dict[str, Any]:
    """The verdict of ``tidegate check``, which has to be a good one."""
    demanded = [word for name in sometimes for word in ("--sometimes", name)]
    command = [sys.executable, "-m", "gateway.cli.main", "check", str(history), *demanded]
    ended = subprocess.run(
        [*command, "--json"], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout)
