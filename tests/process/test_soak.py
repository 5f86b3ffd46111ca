"""Minutes of churn, after which tasks, descriptors and memory of the node are back where they were."""

import os
import random
from contextlib import AsyncExitStack, suppress
from math import inf
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from bench.processes import NodeProcess
from gateway.check.checker import check
from gateway.check.history import parse
from gateway.check.recorder import Recorder
from protocol.frames import (
    Ping,
    Pong,
    Send,
    SendAck,
    Sync,
    SyncPage,
)
from tests.process.wire import ask, connect_tcp, connected, upgrade_request

pytestmark = [pytest.mark.process, pytest.mark.slow]

SOAK_S = float(os.environ.get("SOAK_S", "180"))
WARM_UP_S = SOAK_S / 7
USERS = 40
WORKERS = 12
BACK_WITHIN_S = 240
"""Seconds that the node has to let go of everything: presence and deadlines are set to seconds below."""

KINDS = {"chat": 8, "drop": 4, "stall": 1, "knock": 3, "resume": 4}
"""Kinds of visits, and how often each is paid."""

SYNCS_UNREAD = 20
STALL_S = 3.0
"""Seconds that a slow reader reads nothing: three times the age at which the node closes it."""

MEMORY_ROOM_BYTES = 24 * 1024 * 1024
"""What memory may have grown: the allocator's holes, and the recent entries that a node holds on purpose."""

OPTIONS = (
    "--presence-grace-s", "1", "--handshake-timeout-s", "2", "--send-queue-age-max-s", "1",
    "--send-queue-bytes-max", "65536", "--loaded-conversations-max", "64", "--tail-entries-max", "64",
)  # fmt: skip


async def _metrics(node: NodeProcess) -> dict[str, float]:
    answer = await ask(node, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.status == 200
    found = {}
    for line in answer.rest.decode().splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("tidegate_") and "{" not in name:
            found[name.removeprefix("tidegate_")] = float(value)
    return found


async def _resources(node: NodeProcess) -> dict[str, float]:
    metrics = await _metrics(node)
    held = ("connections", "users", "handshakes", "send_queue_bytes", "tasks", "users_leaving", "commands_waiting")
    return {
        **{name: metrics[name] for name in held},
        "descriptors": node.fd_count(),
        "memory_bytes": node.rss_bytes(),
    }


class Churn:
    """Users that come, talk, drop, stall, and knock without coming in."""

    def __init__(self, node: NodeProcess, rng: random.Random) -> None:
        self.node, self.rng = node, rng
        self.done = dict.fromkeys(("chat", "drop", "stall", "knock", "resume"), 0)

    async def work(self, kinds: dict[str, int]) -> None:
        """One worker: a random kind of visit after the other, by their weights, until cancelled."""
        visits = {"chat": self.chat, "drop": self.drop, "stall": self.stall, "knock": self.knock, "resume": self.resume}
        while True:
            (kind,) = self.rng.choices(list(kinds), weights=list(kinds.values()))
            await visits[kind]()
            self.done[kind] += 1

    def user(self) -> str:
        return f"user{self.rng.randrange(USERS)}"

    async def chat(self) -> None:
        """Come, talk to somebody, leave politely."""
        async with connected(self.node, self.user()) as wire:
            where = await wire.create_direct(self.user())
            for _ in range(self.rng.randint(1, 30)):
                await wire.ask(Send(0, where, uuid4().hex, "x" * self.rng.choice((10, 200, 3000))), SendAck)
            await wire.send_frame(b"\x03\xe8", 8)
            await wire.closed()

    async def drop(self) -> None:
        """Leave without a word, with answers under way, or in the middle of a frame."""
        async with connected(self.node, self.user()) as wire:
            where = await wire.create_direct(self.user())
            for _ in range(self.rng.randint(0, 20)):
                await wire.send(Send(wire.next_id(), where, uuid4().hex, "dropped"))
            if self.rng.random() < 0.5:
                await wire.send_bytes(b"\x82\xfe\x10\x00\x00\x00\x00\x00abc")

    async def stall(self) -> None:
        """A slow reader: ask for more than a socket holds and read nothing, longer than the node puts up with it."""
        async with connected(self.node, self.user()) as reader:
            with suppress(trio.BrokenResourceError), trio.move_on_after(STALL_S):
                for _ in range(SYNCS_UNREAD):
                    await reader.send(Sync(reader.next_id()))
                await trio.sleep_forever()

    async def knock(self) -> None:
        """Handshakes that come to nothing."""
        async with AsyncExitStack() as stack:
            for _ in range(self.rng.randint(1, 10)):
                stream = await stack.enter_async_context(await connect_tcp(self.node))
                await stream.send_all(upgrade_request()[: self.rng.randint(1, 120)])
            await ask(self.node, upgrade_request({"Sec-WebSocket-Version": "7"}))

    async def resume(self) -> None:
        """Come back and sync everything."""
        async with connected(self.node, self.user()) as wire:
            request_id = wire.next_id()
            await wire.send(Sync(request_id))
            while not (await wire.reply(request_id, SyncPage)).done:
                pass
            await wire.ask(Ping(), Pong)


async def _churn(node: NodeProcess, seed: int, duration_s: float, kinds: dict[str, int]) -> dict[str, int]:
    churn = Churn(node, random.Random(seed))
    with trio.move_on_after(duration_s):
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(churn.work, kinds)
    return churn.done


async def _back(node: NodeProcess, allowed: dict[str, float]) -> dict[str, float]:
    """Resources once they are no more than allowed, or after BACK_WITHIN_S as they are then."""
    with trio.move_on_after(BACK_WITHIN_S):
        while True:
            found = await _resources(node)
            if all(found[name] <= allowed[name] for name in allowed):
                return found
            await trio.lowlevel.checkpoint()
    return await _resources(node)


@pytest.mark.timeout(SOAK_S + 2 * BACK_WITHIN_S + 240)
async def test_after_minutes_of_churn_everything_is_given_back(tmp_path: Path) -> None:
    seed = int(os.environ.get("SOAK_SEED", random.randrange(2**32)))
    print(f"SOAK_SEED={seed}")
    history = tmp_path / "history.jsonl"
    with NodeProcess(tmp_path / "data", *OPTIONS) as node:
        fresh = await _resources(node)
        # Memory that is taken once and kept is taken here: talk fills the writer's cache, visits the readers' caches.
        await _churn(node, seed, WARM_UP_S, {"chat": 1})
        await _churn(node, seed + 1, WARM_UP_S, KINDS)
        at_rest = await _back(node, {**fresh, "memory_bytes": inf})
        allowed = {**fresh, "memory_bytes": at_rest["memory_bytes"] + MEMORY_ROOM_BYTES}
        done = await _churn(node, seed + 2, SOAK_S, KINDS)
        after = await _back(node, allowed)
        metrics = await _metrics(node)
        log = node.stderr_path.read_text()
        assert node.terminate() == 0
    with Recorder(history) as recorder:
        recorder.record("info", "resources", "node", phase="before", resources=allowed)
        recorder.record("info", "resources", "node", phase="after", resources=after)
    report = check(parse(history.read_bytes().splitlines()))
    assert report.ok, f"{report.as_text()}\n{done}"
    assert all(done.values()), done
    assert metrics["slow_consumers_total"] > 0
    assert "Traceback" not in log
    print(f"{done} fresh {fresh} at rest {at_rest} after {after}")
