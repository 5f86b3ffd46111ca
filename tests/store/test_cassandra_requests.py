"""Requests on their way to Cassandra; the driver is a stand-in that answers when it is told to."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from store.cassandra_requests import WAITING_PER_PLACE, Request, Requests
from store.interface import NotWritten, Unavailable


class Driver:
    """A session that gathers what it was asked. ``answers`` and ``failures`` are the driver's callbacks, in order."""

    def __init__(self) -> None:
        self.statements: list[Any] = []
        self.answers: list[Callable[[], None]] = []
        self.failures: list[Callable[[], None]] = []

    def execute_async(self, statement: Any, execution_profile: object) -> Any:
        self.statements.append(statement)
        return SimpleNamespace(add_callbacks=self._add, attempted_hosts=["h"])

    def _add(self, callback: Any, errback: Any, callback_args: tuple, errback_args: tuple) -> None:
        name = self.statements[-1]
        self.answers.append(lambda: callback([(name,)], *callback_args))
        self.failures.append(lambda: errback(TimeoutError("too late"), *errback_args))


@pytest.fixture
def driver():
    return Driver()


async def ask(requests: Requests, statement: str, told: list[object]) -> None:
    try:
        told.append(await requests.run(statement, 0))
    except Unavailable as error:
        told.append(error)


async def test_an_answer_comes_to_who_asked(driver):
    requests, told = Requests(driver, 4), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, requests, "one", told)
        await trio.testing.wait_all_tasks_blocked()
        driver.answers[0]()
    assert told == [[("one",)]]
    assert (requests.sent, requests.statements) == (1, 1)


@pytest.mark.parametrize("second", ["answers", "failures"])
async def test_a_read_that_two_replicas_answered_counts_once(driver, second):
    """The driver sends a slow read to another replica, too, and calls back for each of the two."""
    requests, told = Requests(driver, 1), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, requests, "one", told)
        nursery.start_soon(ask, requests, "two", told)
        await trio.testing.wait_all_tasks_blocked()
        driver.answers[0]()
        getattr(driver, second)[0]()
        await trio.testing.wait_all_tasks_blocked()
        assert len(driver.statements) == 2, "its one place was free again"
        driver.answers[0]()
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, requests, "three", told)
        await trio.testing.wait_all_tasks_blocked()
        assert len(driver.statements) == 2, "there is one place only"
        driver.answers[1]()
        await trio.testing.wait_all_tasks_blocked()
        driver.answers[2]()
        with trio.fail_after(5):
            await requests.finished()
    assert told[0] in ([("one",)], [("two",)])
    assert [each[0][0] for each in told[-1:]] == ["three"]


async def test_a_second_answer_does_not_turn_the_first_into_a_failure(driver):
    requests, told = Requests(driver, 1), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, requests, "one", told)
        await trio.testing.wait_all_tasks_blocked()
        driver.answers[0]()
        driver.failures[0]()
    assert told == [[("one",)]]


async def test_what_cannot_even_wait_is_refused(driver):
    requests, outcomes = Requests(driver, 1), []
    for _ in range(1 + WAITING_PER_PLACE):
        requests.submit(Request("write", 1, lambda _rows, error: outcomes.append(error)))
    requests.submit(Request("write", 1, lambda _rows, error: outcomes.append(error)))
    await trio.testing.wait_all_tasks_blocked()
    assert [type(each) for each in outcomes] == [NotWritten]
