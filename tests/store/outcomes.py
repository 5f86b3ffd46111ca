"""A ``done`` callback that tests can wait on."""

from collections.abc import Sequence

import trio

from store.entries import Append
from store.interface import Outcome, Store, StoreError


class Outcomes:
    """Gathers what ``done`` is told, call by call."""

    def __init__(self) -> None:
        self.calls: list[list[Outcome]] = []
        self._changed = trio.Event()

    def __call__(self, outcomes: Sequence[Outcome]) -> None:
        self.calls.append(list(outcomes))
        self._changed.set()

    @property
    def all(self) -> list[Outcome]:
        return [outcome for call in self.calls for outcome in call]

    @property
    def errors(self) -> list[StoreError | None]:
        return [error for _append, error in self.all]

    async def wait(self, count: int) -> list[Outcome]:
        """All outcomes, once there are ``count`` of them."""
        with trio.fail_after(60):
            while len(self.all) < count:
                self._changed = trio.Event()
                await self._changed.wait()
        return self.all


async def append_all(store: Store, *batch: Append) -> list[StoreError | None]:
    """Append one batch and wait for its outcomes, in the order of the batch."""
    outcomes = Outcomes()
    store.append(batch, outcomes)
    told = list(await outcomes.wait(len(batch)))
    errors = []
    for append in batch:
        outcome = next(each for each in told if each[0] is append)
        told.remove(outcome)
        errors.append(outcome[1])
    return errors
