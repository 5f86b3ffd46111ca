"""Asking the store whether a repeat was appended before, when memory does not know (after a restart, say).

Meanwhile other sends of the conversation go on; further commands of the same origin for it wait behind the lookup.

A busy conversation has more entries of the last 24 h than can be looked at in the time that a client waits. So it is
walked in steps, and how far a lookup came is remembered: the next repeat of the same command goes on from there.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import trio
from msgspec import Struct

from gateway.broker import EdgePort, Origin
from gateway.owner.backlog import Backlog, size_of
from gateway.owner.conversation import Conversation
from gateway.owner.counters import OwnerCounters
from gateway.owner.deduplication import Appending, Key, key_of
from gateway.refusals import Refused, overloaded, unavailable
from gateway.task_pool import TaskPool
from protocol import limits
from protocol.frames import Command
from store.entries import StoredEntry
from store.interface import Store, Unavailable

LOOKUP_TIMEOUT_S: Final = 5.0
"""Seconds that a lookup may take: half of what a client waits for its acknowledgement."""

STEP_ENTRIES: Final = 8_192
"""Entries that one call of the store looks at: some 10 ms of the embedded store, some 200 ms of a cluster's."""

WALKS_MAX: Final = 4_096
"""Repeats of which it is remembered what was looked at for them, the last ones: some 300 B each."""

Found = Callable[[Conversation, Origin, Appending, StoredEntry | None], None]
"""Told what a lookup found; None: the command was never appended."""


class Walk(Struct):
    """What was looked at for a command, in vain: the entries with low < seq <= high, which never change.

    ``ended``: what comes before them is too old.
    """

    low: int
    high: int
    ended: bool = False


class Lookups:
    """Runs lookups, a bounded number at once."""

    def __init__(
        self,
        store: Store,
        edge: EdgePort,
        clock_us: Callable[[], int],
        counters: OwnerCounters,
        backlog: Backlog,
        pool: TaskPool,
        find: Callable[[str], Conversation | None],
        found: Found,
        submit: Callable[[Origin, Command], None],
    ) -> None:
        self._store = store
        self._edge = edge
        self._clock_us = clock_us
        self._counters = counters
        self._backlog = backlog
        self._pool = pool
        self._find = find
        self._found = found
        self._submit = submit
        self._walks: dict[tuple[str, Key], Walk] = {}

    def start(self, conversation: Conversation, origin: Origin, command: Appending) -> None:
        """Look the command up; ``found`` is called when that is done.

        Raises:
            Refused: too many wait already.
        """
        job = partial(self._look_up, conversation, origin, command)
        if self._backlog.full or not self._pool.start(job):
            self._counters.overloaded += 1
            raise self._backlog.refusal() if self._backlog.full else overloaded(self._pool.waiting)
        self._counters.lookups += 1
        self._backlog.add(size_of(command))
        begin_waiting(conversation, origin, command)

    async def _look_up(self, conversation: Conversation, origin: Origin, command: Appending) -> None:
        """Ask the store; what was cancelled is not answered."""
        refusal: Refused | None = None
        stored: StoredEntry | None = None
        with trio.move_on_after(LOOKUP_TIMEOUT_S) as timeout:
            try:
                stored = await self._ask(conversation, origin.user, command.client_msg_id)
            except Unavailable as error:
                refusal = unavailable(f"the store could not be asked whether this was sent before ({error})")
        if timeout.cancelled_caught:
            refusal = unavailable(f"the store did not say within {LOOKUP_TIMEOUT_S:g} s whether this was sent before")
        waiting = end_waiting(conversation, origin)
        if waiting is None:
            return
        self._backlog.remove(size_of(command))
        if refusal is not None:
            self._edge.reply(origin, refusal.reply(command.id))
        elif self._find(conversation.conversation_id) is conversation and conversation.waiting is None:
            self._found(conversation, origin, command, stored)
        else:
            self._submit(origin, command)  # it was dropped or waits for something: the order of arrival holds there
        self._backlog.remove_all(waiting)
        for next_origin, next_command in waiting:
            self._submit(next_origin, next_command)

    async def _ask(self, conversation: Conversation, user: str, client_msg_id: str) -> StoredEntry | None:
        """The entry, from the store or, appended while it was asked, not at all: memory then knows it.

        What was appended after the store looked is in memory unless so much came that the tail has moved on: then the
        store is asked about that, too.
        """
        since_us = self._clock_us() - limits.DEDUPLICATION_WINDOW_S * 1_000_000
        find = partial(self._store.find, conversation.conversation_id, user, client_msg_id, since_us)
        walk = self._walk(conversation, key_of(user, client_msg_id))
        while True:
            if walk.high + 1 < conversation.first_tail_seq:
                high = min(walk.high + STEP_ENTRIES, conversation.head_seq)
                entry = (await find(after_seq=walk.high, before_seq=high + 1)).entry
                if entry is None:
                    walk.high = max(walk.high, high)  # another lookup for the same command may have come further
            elif not walk.ended:
                low = max(0, walk.low - STEP_ENTRIES)
                search = await find(after_seq=low, before_seq=walk.low + 1)
                entry = search.entry
                if entry is None:
                    walk.low = min(walk.low, low)
                    walk.ended = walk.ended or search.ended or low == 0
            else:
                return None
            if entry is not None:
                return entry

    def _walk(self, conversation: Conversation, key: Key) -> Walk:
        """Where a lookup goes on, as the last one of those remembered."""
        repeat = conversation.conversation_id, key
        walk = self._walks.pop(repeat, None) or Walk(conversation.head_seq, conversation.head_seq)
        self._walks[repeat] = walk
        if len(self._walks) > WALKS_MAX:
            del self._walks[next(iter(self._walks))]
        return walk


def begin_waiting(conversation: Conversation, origin: Origin, command: Command) -> None:
    """Let what else comes from an origin wait behind a command of its that the store is asked about."""
    if conversation.lookups is None:
        conversation.lookups = {}
    conversation.lookups[id(origin)] = deque([(origin, command)])
    conversation.update_open()


def end_waiting(conversation: Conversation, origin: Origin) -> deque[tuple[Origin, Command]] | None:
    """The store has answered: take out the commands that waited behind. None: ``give_up_lookups`` has taken them."""
    if conversation.lookups is None:
        return None
    waiting = conversation.lookups.pop(id(origin))
    waiting.popleft()
    if not conversation.lookups:
        conversation.lookups = None
    conversation.update_open()
    return waiting


def give_up_lookups(conversation: Conversation) -> list[deque[tuple[Origin, Command]]]:
    """A conversation is forgotten: for each origin the command that the store is asked about, and those behind it.

    What the store answers is not waited for any more, so that what comes after them cannot overtake them.
    """
    lookups, conversation.lookups = conversation.lookups or {}, None
    return list(lookups.values())
