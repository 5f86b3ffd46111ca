"""A real node that stands still for longer than its lease: others take over, and it takes nothing on that is theirs."""

import signal
from functools import partial

import pytest
import trio

from bench.node import read_metrics
from bench.send_cross import wait_shared
from protocol.client import MessageReceived, connect
from protocol.errors import CloseCode
from protocol.frames import Send, SendAck
from tests.process.cluster_nodes import DEADLINE_S, ClusterNode, ClusterNodes
from tests.process.test_two_clients import Eager
from tests.process.wire import Closed, Wire, connected

pytestmark = pytest.mark.process

LEASE = ("--lease-s", "6", "--lease-renew-s", "0.5")
LEASE_LOST = 75
GROUPS = 8


async def until_alone(node: ClusterNode) -> None:
    """Wait until a node owns everything."""
    while (await trio.to_thread.run_sync(read_metrics, node))["tidegate_slots_owned"] < 1024:
        pass


async def acknowledged(wire: Wire) -> tuple[dict[int, int], Closed]:
    """The seqs that are acknowledged before the end, by the command's id, and that end."""
    seqs: dict[int, int] = {}
    while True:
        try:
            frame = await wire.receive()
        except Closed as closed:
            return seqs, closed
        if isinstance(frame, SendAck):
            seqs[frame.id] = frame.seq


async def test_what_waited_in_a_node_that_stood_still_is_not_acknowledged_by_it(nodes: ClusterNodes) -> None:
    start = partial(trio.to_thread.run_sync, nodes.start)
    first, second = await start("first", *LEASE), await start("second", *LEASE)
    await trio.to_thread.run_sync(wait_shared, first, second)
    with trio.fail_after(DEADLINE_S):
        async with (
            connect(first.ws_url, token=first.token("alice"), device="a", rng=Eager()) as alice,
            connected(second, "bob") as bob,
        ):
            groups = [
                (await alice.create_group(f"group {number}", ["bob"])).conversation_id for number in range(GROUPS)
            ]
            for group in groups:
                await bob.ask(Send(0, group, "before", "before"), SendAck)
            second.signal(signal.SIGSTOP)
            waiting = {group: bob.next_id() for group in groups}
            for group, request_id in waiting.items():
                await bob.send(Send(request_id, group, "waits", "waits"))
            await until_alone(first)
            for group in groups:
                assert (await alice.send(group, "of the next owner")).seq == 3
            second.signal(signal.SIGCONT)
            seqs, closed = await acknowledged(bob)
            assert closed.code == CloseCode.SERVICE_RESTART
            assert await trio.to_thread.run_sync(second.wait) == LEASE_LOST, second.stderr_tail()
            for group, request_id in waiting.items():
                page = await alice.history(group)
                log = [(entry.seq, entry.body) for entry in page.entries if isinstance(entry, MessageReceived)]
                assert log[:2] == [(2, "before"), (3, "of the next owner")]
                # The next owner may have been asked for it: then it comes behind what that one had taken.
                assert log[2:] in ([], [(4, "waits")])
                if request_id in seqs:
                    assert log[2:] == [(seqs[request_id], "waits")]
    assert "lease lost: another node marked this incarnation dead" in second.stderr_path.read_text()
    assert "Traceback" not in second.stderr_path.read_text()
