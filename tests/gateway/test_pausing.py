"""A loop that can be paused."""

import trio

from gateway.pausing import PausableLoop


class Counting:
    """Serves whatever ``give`` says, one at a time."""

    def __init__(self) -> None:
        self.served = 0
        self.begun = 0
        self.loop = PausableLoop(self._serve)
        self._send, self._receive = trio.open_memory_channel[None](100)

    def give(self) -> None:
        self._send.send_nowait(None)

    async def _serve(self) -> None:
        self.begun += 1
        while True:
            await self._receive.receive()
            self.served += 1


async def test_nothing_is_served_in_a_pause_and_everything_afterwards(nursery):
    counting = Counting()
    nursery.start_soon(counting.loop.run)
    counting.give()
    await trio.testing.wait_all_tasks_blocked()
    assert counting.served == 1
    counting.give()
    await counting.loop.pause()
    paused_at = counting.served
    counting.give()
    await trio.testing.wait_all_tasks_blocked()
    assert counting.served == paused_at
    counting.loop.resume()
    await trio.testing.wait_all_tasks_blocked()
    assert counting.served == 3


async def test_a_pause_right_behind_another_one_holds(nursery):
    counting = Counting()
    nursery.start_soon(counting.loop.run)
    await trio.testing.wait_all_tasks_blocked()
    await counting.loop.pause()
    counting.loop.resume()
    await counting.loop.pause()
    counting.give()
    await trio.testing.wait_all_tasks_blocked()
    assert counting.served == 0
    counting.loop.resume()
    counting.loop.resume()
    await trio.testing.wait_all_tasks_blocked()
    assert counting.served == 1


async def test_it_ends_when_it_is_cancelled_paused_or_not(nursery):
    for paused in (False, True):
        counting = Counting()
        with trio.fail_after(10):
            async with trio.open_nursery() as running:
                running.start_soon(counting.loop.run)
                await trio.testing.wait_all_tasks_blocked()
                if paused:
                    await counting.loop.pause()
                running.cancel_scope.cancel()
