"""Taking conversations over from the store, and creating those that a waiting command asks for."""

from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from gateway.broker import Delivery, EdgePort, Origin
from gateway.config import Settings
from gateway.owner import members
from gateway.owner.backlog import Backlog, size_of
from gateway.owner.conversation import Conversation
from gateway.owner.counters import OwnerCounters
from gateway.owner.ports import Ownership
from gateway.owner.reads import describe
from gateway.refusals import NotOwner, Refused, not_found, outcome_unknown, unavailable
from gateway.task_pool import TaskPool
from protocol.codec import encode_entry
from protocol.frames import ConversationReply, CreateConversation
from store.entries import Loaded, MemberRecord, StoredEntry
from store.interface import OutcomeUnknown, StaleEpoch, Store, StoreError

LOAD_TIMEOUT_S: Final = 5.0
"""Seconds that loading or creating a conversation may take: half of what a client waits for its acknowledgement."""


class Loader:
    """Fills conversations, a bounded number at once, and lets what waits for them go on."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        edge: EdgePort,
        ownership: Ownership,
        clock_us: Callable[[], int],
        counters: OwnerCounters,
        backlog: Backlog,
        pool: TaskPool,
        filled: Callable[[Conversation], None],
        failed: Callable[[Conversation, Refused], None],
        wrote: Callable[[Conversation, str, int], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._edge = edge
        self._ownership = ownership
        self._clock_us = clock_us
        self._counters = counters
        self._backlog = backlog
        self._pool = pool
        self._filled = filled
        self._failed = failed
        self._wrote = wrote

    def start(self, conversation: Conversation) -> bool:
        """Load a conversation, then call ``filled`` or ``failed``; False when too many wait for that."""
        return self._pool.start(partial(self._load, conversation))

    async def _load(self, conversation: Conversation) -> None:
        """Load, or create; a cancellation leaves what waits unanswered."""
        with trio.move_on_after(LOAD_TIMEOUT_S) as timeout:
            try:
                refusal = await self._fill(conversation)
            except OutcomeUnknown:
                refusal = outcome_unknown()
            except StaleEpoch:
                refusal = NotOwner()
            except StoreError as error:
                refusal = unavailable(f"the store could not give the conversation ({error})")
        if timeout.cancelled_caught:
            refusal = outcome_unknown()
        if refusal is None:
            self._counters.loads += 1
            self._filled(conversation)
        else:
            self._failed(conversation, refusal)

    async def _fill(self, conversation: Conversation) -> Refused | None:
        """Take the conversation over, if need be after creating it; a refusal is for all who wait."""
        conversation_id = conversation.conversation_id
        epoch = self._ownership.epoch(conversation_id)
        if epoch is None:
            return NotOwner()
        tail_entries_max = self._settings.tail_entries_max
        loaded = await self._store.take_over(conversation_id, epoch, tail_entries_max)
        if loaded is not None:
            conversation.fill(loaded, epoch)
            return None
        asked = self._next_creation(conversation)
        if asked is None:
            return not_found()
        origin, command = asked
        try:
            created = await self._create(origin, command, epoch)
            loaded = await self._store.take_over(conversation_id, epoch, tail_entries_max)
        except StoreError as error:
            unknown = isinstance(error, OutcomeUnknown)
            return outcome_unknown() if unknown else unavailable(f"the store could not create it ({error})")
        if loaded is None or not self._ownership.may_speak(conversation_id, epoch):
            return outcome_unknown()
        conversation.fill(loaded, epoch)
        if created:
            self._announce(conversation, loaded, origin, command)
        return None

    def _next_creation(self, conversation: Conversation) -> tuple[Origin, CreateConversation] | None:
        """The first waiting command that creates the conversation, left where it is; those before it are refused."""
        waiting = conversation.waiting
        assert waiting is not None
        while waiting:
            origin, command = waiting[0]
            try:
                if not isinstance(command, CreateConversation):
                    raise not_found()
                members.creation(origin.user, command, 0, self._settings)
            except Refused as refusal:
                self._edge.reply(origin, refusal.reply(command.id))
                self._backlog.remove(size_of(command))
                waiting.popleft()
            else:
                return origin, command
        return None

    async def _create(self, origin: Origin, command: CreateConversation, epoch: int) -> bool:
        record, first = members.creation(origin.user, command, self._clock_us(), self._settings)
        return await self._store.create(record, StoredEntry(first, encode_entry(first)), epoch)

    def _announce(
        self, conversation: Conversation, loaded: Loaded, origin: Origin, command: CreateConversation
    ) -> None:
        """Deliver the first entry and answer the command that waited for it."""
        assert conversation.waiting is not None
        assert conversation.waiting[0] == (origin, command), "only the loader takes from what waits for it"
        conversation.waiting.popleft()
        self._backlog.remove(size_of(command))
        self._counters.created += 1
        first, recipients = loaded.tail[0], conversation.recipients
        users = first.entry.users or ()
        if conversation.is_channel:
            conversation.members.update((user, MemberRecord(user, joined_seq=1)) for user in users)
            recipients = (*recipients, *users)
        self._edge.deliver(Delivery(conversation.conversation_id, recipients, [first.encoded], [origin]))
        self._wrote(conversation, origin.user, 1)
        if command.id:
            reply = ConversationReply(command.id, describe(conversation, origin.user), created=True)
            self._edge.reply(origin, reply, conversation.conversation_id)
