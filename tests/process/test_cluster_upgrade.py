"""Live upgrades of real nodes of a cluster, on a real Cassandra and Redis, while sends go on across them."""

import itertools
import os
import random
import time
from pathlib import Path

import pytest
import trio

from gateway.check.recorder import Recorder
from protocol.frames import ErrorReply, Resync, SendAck
from tests.process.cluster_nodes import DEADLINE_S, PATIENT, ClusterNode, ClusterNodes
from tests.process.device import Device, Outgoing
from tests.process.test_crash import Rounds, checked
from tests.process.wire import Wire, connected

pytestmark = pytest.mark.process

UPGRADES = 2


class Watched(Device):
    """A device that notes how long its sends wait for an acknowledgement, and whether it was told to resync."""

    longest_wait_s = 0.0
    resyncs = 0

    def __init__(self, device: Device, node: ClusterNode, recorder: Recorder, rng: random.Random) -> None:
        super().__init__(node, device.user, device.name.removeprefix(f"{device.user}-"), recorder, rng)
        self._sent_s: dict[str, float] = {}

    async def _send(self, wire: Wire, outgoing: Outgoing) -> None:
        self._sent_s.setdefault(outgoing.name, time.monotonic())
        await super()._send(wire, outgoing)

    def _answered(self, reply: SendAck | ErrorReply) -> None:
        waited_s = time.monotonic() - self._sent_s.pop(self._by_id[reply.id].name)
        super()._answered(reply)
        self.longest_wait_s = max(self.longest_wait_s, waited_s)

    def heard(self, frame: object) -> None:
        self.resyncs += isinstance(frame, Resync)


async def upgraded(nodes: ClusterNodes, pid: int) -> int:
    """Upgrade a node, which has to succeed; the new process's id."""
    done = await trio.to_thread.run_sync(nodes.tidegate, "upgrade", "--pid", str(pid))
    assert done.returncode == 0, done.stderr
    assert "has taken over" in done.stdout
    return int(done.stdout.split()[1])


async def test_upgrades_of_both_nodes_under_load_lose_nothing_and_nobody(nodes: ClusterNodes, tmp_path: Path) -> None:
    seed = int(os.environ.get("UPGRADE_SEED", random.randrange(2**32)))
    print(f"UPGRADE_SEED={seed}")
    first, second = nodes.start("first", *PATIENT), nodes.start("second", *PATIENT)
    history = tmp_path / "history.jsonl"
    with Recorder(history) as recorder, trio.fail_after(DEADLINE_S):
        rng = random.Random(seed)
        rounds = Rounds(first, recorder, rng, cuts=False)
        places = itertools.cycle((first, second))
        watched = [Watched(each, next(places), recorder, random.Random(rng.random())) for each in rounds.devices]
        rounds.devices[:] = watched
        await rounds.create_conversations()
        rounds.up.set()
        async with trio.open_nursery() as nursery:
            for device in rounds.devices:
                nursery.start_soon(device.run, lambda: rounds.up, lambda: rounds.sending)
            await rounds.load(50)
            pids = [first.pid, second.pid]
            for number in range(UPGRADES):
                pids[number % 2] = await upgraded(nodes, pids[number % 2])
                await rounds.load(50)
            await rounds.settle()
            nursery.cancel_scope.cancel()
        for device in rounds.devices:
            await device.read_everything()
    print(f"longest wait for an acknowledgement: {max(each.longest_wait_s for each in watched):.3f} s")
    logs = first.stderr_path.read_text() + second.stderr_path.read_text()
    connects = [line for line in history.read_text().splitlines() if '"op":"connect"' in line.replace(" ", "")]
    assert len(connects) == len(rounds.devices), "somebody had to connect again"
    assert sum(each.resyncs for each in watched) == 0, "somebody was told to resync"
    assert "node marked dead" not in logs
    assert logs.count("slots handed over") == 1, "once, when the second node came; later the slots stay"
    report = checked(history, ("concurrent-sends",))
    judged = {invariant["breach"]: invariant["judged"] for invariant in report["invariants"]}
    for breach in ("lost-write", "duplicate", "nonmonotonic-send", "poll-skip", "late-arrival"):
        assert judged[breach] > 0


async def test_a_new_program_that_must_not_go_on_leaves_the_old_one_as_it_was(
    nodes: ClusterNodes, tmp_path: Path
) -> None:
    config = tmp_path / "node.toml"
    config.write_text("lease_s = 10\n")
    node = nodes.start("first", "--config", str(config))
    with trio.fail_after(DEADLINE_S):
        async with connected(node, "alice", device="a") as alice:
            config.write_text("lease_s = 12\n")
            done = await trio.to_thread.run_sync(nodes.tidegate, "upgrade", "--pid", str(node.pid))
            assert done.returncode == 1
            assert "lease_s is 10 there and 12 here" in done.stderr
            assert node.running
            config.write_text("lease_s = 10\n")
            await upgraded(nodes, node.pid)
            assert await trio.to_thread.run_sync(node.wait_for_exit) == 0
            assert alice.pushes == []
