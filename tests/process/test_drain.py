"""A real node that drains under load: nothing that was accepted stays unanswered, and a load balancer is told first."""

import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trio

from bench.processes import NodeProcess
from protocol.errors import CloseCode
from protocol.frames import Conversation, ConversationKind, ConversationReply, CreateConversation, GoAway, Send, SendAck
from tests.process.wire import Closed, Wire, connected

pytestmark = pytest.mark.process

SENDERS = 20
WINDOW = 8
WITHIN_S = 240.0
"""Seconds in which a drain has to be seen: far more than it takes on a busy machine, and less than its lead below."""


class Sender:
    """Sends until it is told to go away; by the time it is closed everything has to be answered."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.unanswered: set[int] = set()
        self.acknowledged = 0
        self.warm = trio.Event()
        self.code = 0

    async def run(self, node: NodeProcess) -> None:
        async with connected(node, self.name) as wire:
            created = await wire.ask(
                CreateConversation(0, ConversationKind.DIRECT, [f"{self.name}-peer"], f"{self.name}-create"),
                ConversationReply,
            )
            conversation: Conversation = created.conversation
            for _ in range(WINDOW):
                await self._send(wire, conversation)
            try:
                await self._converse(wire, conversation)
            except Closed as closed:
                self.code = closed.code

    async def _converse(self, wire: Wire, conversation: Conversation) -> None:
        leaving = False
        while True:
            frame = await wire.receive()
            leaving = leaving or isinstance(frame, GoAway)
            if isinstance(frame, SendAck):
                self.unanswered.remove(frame.id)
                self.acknowledged += 1
                if self.acknowledged >= WINDOW:
                    self.warm.set()
                if not leaving:
                    await self._send(wire, conversation)

    async def _send(self, wire: Wire, conversation: Conversation) -> None:
        number = wire.next_id()
        self.unanswered.add(number)
        await wire.send(Send(number, conversation.conversation_id, f"{self.name}-{number}", "under load"))


async def test_under_load_everybody_is_answered_before_the_node_closes(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "data", "--commands-per-s-max", "0") as node:
        senders = [Sender(f"u{number}") for number in range(SENDERS)]
        async with trio.open_nursery() as nursery:
            for sender in senders:
                nursery.start_soon(sender.run, node)
            for sender in senders:
                await sender.warm.wait()
            node.signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(node.wait) == 0
        assert [sender.code for sender in senders] == [CloseCode.SERVICE_RESTART] * SENDERS
        assert not [sender.name for sender in senders if sender.unanswered]
        log = node.stderr_path.read_text()
        assert "Traceback" not in log


def ready_status(node: NodeProcess) -> int:
    try:
        with urllib.request.urlopen(f"{node.url}/health/ready", timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def test_a_load_balancer_learns_of_the_drain_while_connections_are_still_accepted(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "data", "--drain-lead-s", "600", "--drain-grace-s", "660") as node:
        assert ready_status(node) == 200
        node.signal(signal.SIGTERM)
        with trio.fail_after(WITHIN_S):
            while await trio.to_thread.run_sync(ready_status, node) != 503:
                await trio.lowlevel.checkpoint()
        async with connected(node, "alice"):
            node.signal(signal.SIGTERM)  # the second one: this has been seen
            assert await trio.to_thread.run_sync(node.wait) == 0
