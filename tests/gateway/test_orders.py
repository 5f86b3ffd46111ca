"""Who may drain and end a node, by signal or by the link to its supervisor."""

import os
import signal
import socket
from functools import partial

import pytest
import trio

from gateway.config import Settings
from gateway.orders import heed_signals, heed_supervisor
from gateway.process_link import DRAIN, END, HandOver, NodeEnd, SupervisorEnd, make_pair
from gateway.upgrade import control


class FakeNode:
    """Counts how often it was told to drain."""

    def __init__(self, *, started: bool = True) -> None:
        self.started = started
        self.drains = 0

    def drain(self) -> None:
        self.drains += 1


@pytest.fixture
async def heed(nursery):
    """Heed signals for a node; gives the scope that is cancelled at its end."""

    async def begin(node, *, supervised: bool) -> trio.CancelScope:
        scope = trio.CancelScope()
        await nursery.start(partial(heed_signals, node, scope, supervised=supervised))
        return scope

    return begin


async def raise_signal(number: signal.Signals) -> None:
    signal.raise_signal(number)
    await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_drains_and_the_second_ends(number, heed):
    node = FakeNode()
    scope = await heed(node, supervised=False)
    await raise_signal(number)
    assert (node.drains, scope.cancel_called) == (1, False)
    await raise_signal(signal.SIGTERM)
    assert scope.cancel_called


async def test_a_node_that_is_still_starting_ends_at_once(heed):
    node = FakeNode(started=False)
    scope = await heed(node, supervised=False)
    await raise_signal(signal.SIGTERM)
    assert (node.drains, scope.cancel_called) == (0, True)


async def test_no_number_of_signals_ends_a_supervised_node(heed):
    node = FakeNode()
    scope = await heed(node, supervised=True)
    for _ in range(3):
        await raise_signal(signal.SIGTERM)
    assert node.drains == 3
    assert not scope.cancel_called


async def keep_all(_order: HandOver) -> None:
    """Nothing is handed over here."""


@pytest.fixture
def link():
    ours, theirs = make_pair()
    supervisor, node = SupervisorEnd(ours), NodeEnd(theirs)
    supervisor.send_settings(Settings())
    node.receive_settings()
    yield supervisor, node
    ours.close()
    theirs.close()


async def test_orders_of_the_supervisor(link, nursery):
    supervisor, node_end = link
    node, scope = FakeNode(), trio.CancelScope()
    nursery.start_soon(heed_supervisor, node, node_end, scope, keep_all)
    supervisor.order(DRAIN)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert (node.drains, scope.cancel_called) == (1, False)
    supervisor.order(END)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert scope.cancel_called


async def test_without_its_supervisor_a_node_drains(link):
    supervisor, node_end = link
    node, scope = FakeNode(), trio.CancelScope()
    supervisor.close()
    with trio.fail_after(60):
        await heed_supervisor(node, node_end, scope, keep_all)
    assert (node.drains, scope.cancel_called) == (1, False)


async def test_an_order_to_hand_over_comes_with_its_descriptors_and_others_are_obeyed_meanwhile(link, nursery):
    supervisor, node_end = link
    node, scope = FakeNode(), trio.CancelScope()
    orders = []

    async def never_ending(order: HandOver) -> None:
        orders.append(order)
        await trio.sleep_forever()

    nursery.start_soon(heed_supervisor, node, node_end, scope, never_ending)
    channel, its_end = socket.socketpair()
    pidfd = os.pidfd_open(os.getpid())
    supervisor.hand_over(4711, channel, pidfd)
    channel.close()
    os.close(pidfd)
    supervisor.order(DRAIN)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert node.drains == 1
    (order,) = orders
    assert order.pid == 4711
    assert not os.get_inheritable(order.channel)
    with socket.socket(fileno=order.channel) as received, its_end:
        received.send(b"hello")
        assert its_end.recv(9) == b"hello"
    signal.pidfd_send_signal(order.pidfd, 0)  # it stands for a process
    os.close(order.pidfd)
    nursery.cancel_scope.cancel()


async def test_what_an_upgrade_comes_to_is_heard_by_the_supervisor_line_by_line(link, nursery):
    supervisor, node_end = link
    lines = [control.Progress("settling"), control.Refused("the node drains")]
    heard = []
    supervisor.on_line = heard.append
    nursery.start_soon(supervisor.listen)
    for line in lines:
        node_end.say_upgrade(control.encode_line(line))
    node_end.say_upgrade(b"{nonsense")
    node_end.say_ready("http://a:1")
    with trio.fail_after(60):
        await supervisor.ready.wait()
    assert heard == lines
    nursery.cancel_scope.cancel()
