"""A node's parts that speak with Redis, put together for tests with a real one."""

import math
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from gateway.cluster.directory import SessionDirectory
from gateway.cluster.generation import Generation
from gateway.cluster.redis_client import RedisClient
from gateway.cluster.redis_transport import INBOX_PARCELS_MAX, RedisInbox, RedisTransport

PATIENCE_S = 30
"""How long a test waits for something that takes a fraction of a second on an idle machine."""


T = TypeVar("T")


class Users(set[str]):
    """Who is connected here."""

    def is_here(self, user: str) -> bool:
        return user in self

    def all_here(self) -> Iterable[str]:
        return list(self)


class Nodes:
    """Who is alive."""

    def __init__(self) -> None:
        self.live: set[str] = set()
        self.looked_s = -math.inf


class Changes:
    """Lets a test wait for what follows from something that happens now and then."""

    def __init__(self) -> None:
        self._changed = trio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds; it is looked at whenever something was noted."""
        with trio.fail_after(PATIENCE_S):
            while not holds():
                await self._changed.wait()

    def note(self) -> None:
        """Something has happened."""
        self._changed.set()
        self._changed = trio.Event()


class Parts(Changes):
    """One incarnation. Noted are parcels, generations and invalidations."""

    def __init__(self, url: str, incarnation: str, parcels_max: int = INBOX_PARCELS_MAX) -> None:
        super().__init__()
        self.incarnation = incarnation
        self.client = RedisClient(url, name=incarnation)
        self.generation = Generation(self.client)
        self.users = Users()
        self.nodes = Nodes()
        self.directory = SessionDirectory(
            self.client, self.generation, incarnation, self.users, self.nodes, trio.current_time
        )
        self.directory.on_invalidated = self._invalidated
        self.transport = RedisTransport(self.client, self.generation, incarnation, parcels_max=parcels_max)
        self.inbox = RedisInbox(url, incarnation, name=f"{incarnation}-inbox", parcels_max=parcels_max)
        self.generations: list[bool] = []
        self.invalidated: list[Collection[str] | None] = []
        self.parcels: list[bytes] = []
        self.generation.on_new.append(self._began)

    async def come(self, user: str) -> None:
        self.users.add(user)
        self.directory.arrive(user)
        with trio.fail_after(PATIENCE_S):
            await self.directory.registered(user)

    def go(self, user: str) -> None:
        self.users.discard(user)
        self.directory.leave(user)

    async def find(self, *users: str) -> Mapping[str, tuple[str, ...]] | None:
        return await self.find_group(users)

    async def find_group(self, users: tuple[str, ...]) -> Mapping[str, tuple[str, ...]] | None:
        return await self._answer(lambda done: self.directory.lookup(users, done))

    async def barrier(self) -> bool:
        return await self._answer(self.directory.barrier)

    async def send(self, incarnation: str, parcel: bytes) -> bool:
        return await self._answer(lambda done: self.transport.send(incarnation, parcel, done))

    async def _answer(self, ask: Callable[[Callable[[T], None]], None]) -> T:
        answers: list[T] = []
        answered = trio.Event()

        def done(answer: T) -> None:
            answers.append(answer)
            answered.set()

        ask(done)
        with trio.fail_after(PATIENCE_S):
            await answered.wait()
        (answer,) = answers
        return answer

    def take(self, parcel: bytes) -> None:
        self.parcels.append(parcel)
        self.note()

    def _began(self, new: bool) -> None:
        self.generations.append(new)
        self.note()

    def _invalidated(self, users: Collection[str] | None) -> None:
        self.invalidated.append(users)
        self.note()


@asynccontextmanager
async def node(
    url: str, incarnation: str, *, reads: bool = True, parcels_max: int = INBOX_PARCELS_MAX
) -> AsyncIterator[Parts]:
    """An incarnation whose connections are there; without ``reads`` its inbox is made but not read."""
    parts = Parts(url, incarnation, parcels_max)
    async with trio.open_nursery() as nursery:
        await nursery.start(parts.client.run)
        nursery.start_soon(parts.generation.run)
        nursery.start_soon(parts.directory.run)
        await parts.until(lambda: parts.generations == [True])
        await parts.barrier()  # behind it the inbox is made: nobody else can make it by sending there
        if reads:
            await nursery.start(parts.inbox.run, parts.take)
        yield parts
        nursery.cancel_scope.cancel()
