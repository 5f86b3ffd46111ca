"""Who may drain and end a node, by signal or by the link to its supervisor."""

import signal
from functools import partial

import pytest
import trio

from gateway.config import Settings
from gateway.orders import heed_signals, heed_supervisor
from gateway.process_link import DRAIN, END, NodeEnd, SupervisorEnd, make_pair


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
    nursery.start_soon(heed_supervisor, node, node_end, scope)
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
    with trio.fail_after(5):
        await heed_supervisor(node, node_end, scope)
    assert (node.drains, scope.cancel_called) == (1, False)
