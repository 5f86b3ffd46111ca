"""A bounded number of jobs at once, a bounded number waiting."""

from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.task_pool import TaskPool


@pytest.fixture
def gate():
    return trio.Event()


async def test_jobs_beyond_the_limit_wait_and_beyond_that_are_refused(nursery, gate):
    pool = TaskPool(running_max=2, waiting_max=3)
    await nursery.start(pool.run)
    began = []

    async def job(n):
        began.append(n)
        await gate.wait()

    assert [pool.start(partial(job, n)) for n in range(7)] == [True] * 5 + [False] * 2
    await wait_all_tasks_blocked()
    assert sorted(began) == [0, 1]
    assert (pool.running, pool.waiting, pool.refused) == (2, 3, 2)
    gate.set()
    await wait_all_tasks_blocked()
    assert began[2:] == [2, 3, 4]
    assert (pool.running, pool.waiting) == (0, 0)


async def test_nothing_starts_before_and_after(nursery, gate):
    pool = TaskPool(running_max=2, waiting_max=3)

    async def last_wish():
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                assert not pool.start(gate.wait)

    assert not pool.start(gate.wait)
    async with trio.open_nursery() as inner:
        await inner.start(pool.run)
        assert pool.start(last_wish)
        await wait_all_tasks_blocked()
        inner.cancel_scope.cancel()
    assert not pool.start(gate.wait)


async def test_a_job_that_fails_is_not_lost():
    pool = TaskPool(running_max=2, waiting_max=3)

    async def job():
        raise ValueError("a bug")

    with pytest.RaisesGroup(pytest.RaisesGroup(ValueError)):
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            pool.start(job)
