"""What tells a node to drain or to end: signals, and its supervisor if it has one."""

import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

import structlog
import trio

from gateway.process_link import END, HandOver, NodeEnd

log = structlog.get_logger(__name__)


Heed = Callable[[int, FrameType | None], object]
"""What Python calls when a signal has come."""


@contextmanager
def heeding(calls: Mapping[signal.Signals, Heed]) -> Iterator[None]:
    """Have these calls heed signals for a while, and then whoever did before; if others have begun to, they go on."""
    before = {number: signal.signal(number, call) for number, call in calls.items()}
    try:
        yield
    finally:
        for number, call in calls.items():
            if signal.getsignal(number) is call:
                signal.signal(number, before[number])


class Drainable(Protocol):
    """A node, as far as orders go."""

    @property
    def started(self) -> bool:
        """Whether it has connections to look after, so that there may be something to finish."""

    def drain(self) -> None:
        """Let it finish and return."""


async def heed_signals(
    node: Drainable,
    scope: trio.CancelScope,
    *,
    supervised: bool,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Obey signals until cancelled: the first drains the node, the second ends it at once by cancelling ``scope``.

    A supervised node is ended by its supervisor only, which shares a terminal and a control group with it: SIGINT is
    none of its business, and a second SIGTERM may be the same one, sent to all.
    """
    numbers = (signal.SIGTERM,) if supervised else (signal.SIGTERM, signal.SIGINT)
    with trio.open_signal_receiver(*numbers) as signals:
        task_status.started()
        count = 0
        async for number in signals:
            count += 1
            log.info("signal", signal=signal.Signals(number).name)
            if count > 1 and not supervised:
                scope.cancel()
            _drain(node, scope)


async def heed_supervisor(
    node: Drainable, link: NodeEnd, scope: trio.CancelScope, hand_over: Callable[[HandOver], Awaitable[None]]
) -> None:
    """Obey the supervisor until cancelled; when it is gone, drain: nobody would start this node again.

    ``hand_over`` carries out the order to go on in another process; other orders are obeyed meanwhile.
    """
    async with trio.open_nursery() as nursery:
        while order := await link.receive_order():
            if isinstance(order, HandOver):
                log.info("order", order="upgrade", successor=order.pid)
                nursery.start_soon(hand_over, order)
                continue
            log.info("order", order=order.decode())
            if order == END:
                scope.cancel()
            _drain(node, scope)
        log.error("the supervisor is gone: this node drains")
        _drain(node, scope)


def _drain(node: Drainable, scope: trio.CancelScope) -> None:
    """Drain a node; one that has not begun to serve has nothing to finish, and may be waiting for something."""
    if node.started:
        node.drain()
    else:
        scope.cancel()
