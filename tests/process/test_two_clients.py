"""Two clients of the SDK chat; the node is killed between two messages, and neither notices more than a pause."""

import gc
import os
import random
from pathlib import Path

import pytest
import trio

from bench.processes import NodeProcess
from gateway.check.checker import check
from gateway.check.history import SeenEntry, parse
from gateway.check.recorder import Recorder, payload_of
from protocol.client import Client, ConversationCreated, EntryEvent, MessageReceived, Online, StateChanged, connect

pytestmark = pytest.mark.process

MESSAGES = 10
DEADLINE_S = 240


class Eager(random.Random):
    """Jitter that draws no delay: reconnects follow each other as fast as the node refuses them."""

    def random(self) -> float:
        return 0.0


class Talker:
    """One side of the chat: what it sends and is handed goes into the history."""

    def __init__(self, client: Client, user: str, recorder: Recorder) -> None:
        self.client, self.user, self.recorder = client, user, recorder
        self.heard: list[str] = []
        self.connects = 0
        self._news = trio.Event()

    async def listen(self) -> None:
        async for event in self.client.events():
            if isinstance(event, StateChanged) and isinstance(event.state, Online):
                self.connects += 1
            if isinstance(event, EntryEvent):
                fields = {"user": self.user, "conversation": event.conversation_id, "entry": seen(event)}
                self.recorder.record("ok", "deliver", self.user, **fields)
            if isinstance(event, MessageReceived):
                self.heard.append(event.body)
            self._news.set()
            self._news = trio.Event()

    async def say(self, conversation: str, body: str) -> int:
        call, name = self.recorder.next_call(), f"{self.user}: {body}"
        fields = {"user": self.user, "conversation": conversation, "client_msg_id": name, "payload": payload_of(body)}
        self.recorder.record("invoke", "send", self.user, call=call, **fields)
        sent = await self.client.send(conversation, body, client_msg_id=name)
        self.recorder.record("ok", "send", self.user, call=call, seq=sent.seq)
        return sent.seq

    async def until(self, count: int) -> None:
        while len(self.heard) < count:
            await self._news.wait()

    async def read_all(self, conversation: str) -> None:
        call = self.recorder.next_call()
        self.recorder.record("invoke", "read", self.user, call=call, conversation=conversation, final=True)
        page = await self.client.history(conversation, after_seq=0, limit=200)
        entries = tuple(seen(event) for event in page.entries)
        span = {"first_seq": 1, "last_seq": len(entries), "head_seq": len(entries)}
        self.recorder.record("ok", "read", self.user, call=call, entries=entries, **span)


async def test_a_node_killed_between_two_messages_is_a_pause_and_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    gc.collect()  # what tests before this one left is not to go in the midst of it
    descriptors = len(os.listdir("/proc/self/fd"))
    with NodeProcess(tmp_path / "data") as node, Recorder(path) as recorder, trio.fail_after(DEADLINE_S):
        url = f"ws://{node.host}:{node.port}"
        async with (
            connect(url, token=node.token("alice"), device="a", rng=Eager()) as one,
            connect(url, token=node.token("bob"), device="b", rng=Eager()) as other,
            trio.open_nursery() as nursery,
        ):
            alice, bob = Talker(one, "alice", recorder), Talker(other, "bob", recorder)
            nursery.start_soon(alice.listen)
            nursery.start_soon(bob.listen)
            await one.wait_online()
            await other.wait_online()
            conversation = (await one.create_direct("bob")).conversation_id
            await _chat(alice, bob, conversation, range(MESSAGES))
            recorder.record("info", "fault", "driver", fault="kill")
            await trio.to_thread.run_sync(node.kill)
            async with trio.open_nursery() as speaking:  # into the dead line
                speaking.start_soon(alice.say, conversation, "a still there?")
                speaking.start_soon(bob.say, conversation, "b still there?")
                await trio.to_thread.run_sync(node.start)
            await alice.until(MESSAGES + 1)
            await bob.until(MESSAGES + 1)
            await _chat(alice, bob, conversation, range(MESSAGES, 2 * MESSAGES))
            assert alice.connects == bob.connects == 2
            await alice.read_all(conversation)
            nursery.cancel_scope.cancel()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert bob.heard == [*(f"a{n}" for n in range(10)), "a still there?", *(f"a{n}" for n in range(10, 20))]
    assert alice.heard == [*(f"b{n}" for n in range(10)), "b still there?", *(f"b{n}" for n in range(10, 20))]
    _judge(path)


def seen(event: EntryEvent) -> SeenEntry:
    place = (event.seq, event.sender, event.client_msg_id)
    if isinstance(event, MessageReceived):
        return SeenEntry(*place, payload_of(event.body))
    assert isinstance(event, ConversationCreated)
    return SeenEntry(*place, kind="created", users=tuple(event.users))


async def _chat(alice: Talker, bob: Talker, conversation: str, numbers: range) -> None:
    """Turn by turn: each answers what it has heard."""
    for number in numbers:
        await alice.say(conversation, f"a{number}")
        await bob.until(len(alice.heard) + 1)
        await bob.say(conversation, f"b{number}")
        await alice.until(len(bob.heard))


def _judge(path: Path) -> None:
    lines = path.read_bytes().splitlines()
    head = (
        b'{"time":0,"type":"invoke","op":"create","process":"setup","call":0,"user":"alice","client_msg_id":"CREATED"}'
    )
    made = next(entry for record in parse(lines) for entry in record.entries or () if entry.kind == "created")
    lines.insert(0, head.replace(b"CREATED", made.client_msg_id.encode()))
    report = check(parse(lines))
    assert report.ok, report.as_text()
    assert report.judged["lost-write"] == 2 * (2 * MESSAGES + 1)
    assert report.judged["poll-skip"] >= 2 * (2 * MESSAGES + 1)
