"""Who is in a channel: asked of the store where a command needs to know it, and remembered for a while.

A channel may have a hundred thousand members, of whom few do anything while the rest read. Its owner therefore does not
load them. ``Conversation.members`` holds those whom it has met, ``outsiders`` those of whom it knows that they are not
in; what a durable entry changes is noted in both, so that they are never older than the log. Whoever is in neither is
looked up, by one read of the store; meanwhile further commands of the same origin for that channel wait behind, and
everybody else's go on.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Final

import trio

from gateway.broker import EdgePort, Origin
from gateway.owner.backlog import Backlog, size_of
from gateway.owner.conversation import Conversation, MembersUnknown
from gateway.owner.counters import OwnerCounters
from gateway.owner.lookups import begin_waiting, end_waiting
from gateway.refusals import Refused, overloaded, unavailable
from gateway.task_pool import TaskPool
from protocol.frames import Command
from store.entries import MemberRecord
from store.interface import Store, Unavailable

CENSUS_TIMEOUT_S: Final = 5.0
"""Seconds that it may take to find out who is in: half of what a client waits for an answer."""

KNOWN_MEMBERS_MAX: Final = 16_384
"""Members, and as many outsiders, that are remembered of one channel: about 4 MB, for those who tell at the same time
that they have read an entry. Above it the half that was met first
is forgotten."""


class Census:
    """Finds out who of some users is in a channel, for a bounded number of commands at once."""

    def __init__(
        self,
        store: Store,
        edge: EdgePort,
        counters: OwnerCounters,
        backlog: Backlog,
        pool: TaskPool,
        met: Callable[[Conversation, MemberRecord], None],
        submit: Callable[[Origin, Command], None],
    ) -> None:
        """``met``: told of each member before it is remembered."""
        self._store = store
        self._edge = edge
        self._counters = counters
        self._backlog = backlog
        self._pool = pool
        self._met = met
        self._submit = submit

    def start(self, conversation: Conversation, origin: Origin, command: Command, unknown: MembersUnknown) -> None:
        """Look up those who are unknown, then submit the command again.

        Raises:
            Refused: too many wait already.
        """
        look_up = partial(self._look_up, conversation, origin, command, unknown.users)
        if self._backlog.full or not self._pool.start(look_up):
            self._counters.overloaded += 1
            raise self._backlog.refusal() if self._backlog.full else overloaded(self._pool.waiting)
        self._counters.member_lookups += 1
        self._backlog.add(size_of(command))
        begin_waiting(conversation, origin, command)

    async def _look_up(
        self, conversation: Conversation, origin: Origin, command: Command, users: Collection[str]
    ) -> None:
        """Ask the store; what was cancelled is not answered."""
        refusal: Refused | None = None
        with trio.move_on_after(CENSUS_TIMEOUT_S) as timeout:
            try:
                await self._ask(conversation, users)
            except Unavailable as error:
                refusal = unavailable(f"the store could not be asked who is in the channel ({error})")
        if timeout.cancelled_caught:
            refusal = unavailable(f"the store did not say within {CENSUS_TIMEOUT_S:g} s who is in the channel")
        waiting = end_waiting(conversation, origin)
        if waiting is None:
            return
        self._backlog.remove(size_of(command))
        if refusal is not None:
            self._edge.reply(origin, refusal.reply(command.id))
        else:
            self._submit(origin, command)
        self._backlog.remove_all(waiting)
        for next_origin, next_command in waiting:
            self._submit(next_origin, next_command)

    async def _ask(self, conversation: Conversation, users: Collection[str]) -> None:
        """Note who is in. What the store said while members changed may be older than the change: it is asked again.

        While a change is under way nothing is noted: the command is to wait for that, and to ask afterwards.
        """
        while True:
            changes = conversation.member_changes
            found = await self._store.find_members(conversation.conversation_id, users)
            if conversation.barrier:
                return
            if conversation.member_changes == changes:
                break
        forget_some(conversation)
        for user in users:
            member = found.get(user)
            if member is None:
                conversation.outsiders[user] = None
            elif user not in conversation.members:
                self._met(conversation, member)
                conversation.members[user] = member


def forget_some(conversation: Conversation) -> None:
    """Make room for others, but keep those who wait for an acknowledgement: their own entries move their pointers."""
    for known in (conversation.members, conversation.outsiders):
        if len(known) >= KNOWN_MEMBERS_MAX:
            senders = {send.stored.entry.sender for send in conversation.pending}
            for user in list(known)[: len(known) // 2]:
                if user not in senders:
                    del known[user]
