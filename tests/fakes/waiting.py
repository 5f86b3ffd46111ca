"""Waiting for an event of a certain kind."""

from collections.abc import AsyncIterator
from typing import TypeVar

from protocol.client import Event, MessageReceived

E = TypeVar("E", bound=Event)


async def next_of(events: AsyncIterator[Event], *kinds: type[E]) -> E:
    """The next event of one of the kinds; those before it are passed over."""
    async for event in events:
        if isinstance(event, kinds):
            return event
    raise AssertionError("the events ended")


async def bodies(events: AsyncIterator[Event], count: int) -> list[str]:
    """The bodies of the next so many messages."""
    return [(await next_of(events, MessageReceived)).body for _ in range(count)]
