"""The owner of conversations: takes commands by plain call and hands each to the part that knows what to do.

A command for a conversation that is loaded and open is handled at once. Otherwise it waits in the conversation, in
order of arrival, until that is loaded or what it waits for is settled.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from gateway.broker import Delivery, EdgePort, Head, Origin
from gateway.config import Settings
from gateway.owner import members
from gateway.owner.append import Appender
from gateway.owner.backlog import Backlog, size_of
from gateway.owner.census import Census
from gateway.owner.conversation import Conversation, MembersUnknown
from gateway.owner.counters import OwnerCounters
from gateway.owner.deduplication import Appending
from gateway.owner.loading import Loader
from gateway.owner.lookups import Lookups, give_up_lookups
from gateway.owner.memory import Memory
from gateway.owner.ports import Ownership
from gateway.owner.reads import Reader, describe
from gateway.owner.receipts import Receipts
from gateway.owner.typists import Typists
from gateway.refusals import NotOwner, Refused, client_msg_id_reused, overloaded, unavailable
from gateway.task_pool import TaskPool
from protocol.codec import decode_entry
from protocol.frames import (
    AddMembers,
    Command,
    ConversationReply,
    CreateConversation,
    GetConversation,
    History,
    ListMembers,
    MarkReceipt,
    RemoveMembers,
    Rename,
    Send,
    Typing,
)
from store.entries import StoredEntry, changes_of
from store.interface import Store

STORE_TASKS_MAX: Final = 64
"""Store calls of one sort (loading, looking up, reading) under way at once: enough to keep a store busy, few enough
that its queue stays short."""

STORE_TASKS_WAITING_MAX: Final = 8_192
"""Store calls of one sort that may wait for a turn: some seconds' worth."""

RELEASE_SAVES_MAX: Final = 5
"""Times that receipts are tried to be saved before conversations are handed over: one refusal is soon over, and what
lasts must not keep a node from leaving."""

DRAIN_CHECK_S: Final = 0.01
"""Seconds between two looks at whether all is answered while draining."""


class Owner:
    """Implements ``gateway.broker.OwnerPort``: orders, stores and delivers what happens in conversations.

    Attributes:
        counters: what happened since the start.
        backlog: how much waits now.
        on_loaded: called with a conversation's id when it was loaded.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        edge: EdgePort,
        ownership: Ownership,
        clock_us: Callable[[], int],
    ) -> None:
        self.counters = OwnerCounters()
        self.backlog = Backlog(settings.pending_sends_max)
        self.on_loaded: Callable[[str], None] = lambda _conversation_id: None
        self._edge = edge
        self._ownership = ownership
        self._running = False
        self._pools = [TaskPool(STORE_TASKS_MAX, STORE_TASKS_WAITING_MAX) for _ in range(4)]
        loads, lookups, reads, censuses = self._pools
        self._memory = Memory(settings.loaded_conversations_max, self._keep, self.counters)
        self._find = self._memory.find
        self._use = self._memory.use
        self._receipts = Receipts(settings, store, edge, self.counters, self._find, self._may_speak)
        self._typists = Typists(edge, self.counters, self._find, self._may_speak)
        self._reader = Reader(store, edge, self.counters, reads, self._find)
        self._loader = Loader(
            settings, store, edge, ownership, clock_us, self.counters, self.backlog, loads,
            self._filled, self._failed, self._receipts.wrote,
        )  # fmt: skip
        self._lookups = Lookups(
            store, edge, clock_us, self.counters, self.backlog, lookups, self._find, self._looked_up, self.submit
        )
        self._census = Census(
            store, edge, self.counters, self.backlog, censuses, self._receipts.restore_member, self.submit
        )
        self._appender = Appender(
            settings, store, edge, ownership, clock_us, self.counters, self.backlog,
            self._find, self._may_speak, self._resume, self._lookups.start, self._drop, self._receipts.wrote,
        )  # fmt: skip

    @property
    def conversations_loaded(self) -> int:
        """Conversations held in memory now."""
        return len(self._memory)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be the nursery of all that the owner does, until cancelled.

        A cancellation saves receipts (for at most SAVE_AT_END_S) and leaves everything else that is pending
        unanswered: call ``drained`` first. Nothing was acknowledged that is not durable.
        """
        async with trio.open_nursery() as nursery:
            for pool in self._pools:
                await nursery.start(pool.run)
            await nursery.start(self._appender.run)
            await nursery.start(self._receipts.run)
            await nursery.start(self._typists.run)
            self._running = True
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._running = False

    def submit(self, origin: Origin, command: Command) -> None:
        """Handle a command, as ``gateway.broker.OwnerPort`` says."""
        try:
            if type(command) is Send:
                conversation = self._find(command.conversation_id)
                if conversation is not None and conversation.is_open:
                    self._use(command.conversation_id)
                    try:
                        self._appender.submit(conversation, origin, command)
                    except MembersUnknown as unknown:
                        self._census.start(conversation, origin, command, unknown)
                    return
            self._route(origin, command)
        except NotOwner:
            self._edge.not_owner(origin, command)
        except Refused as refusal:
            self._edge.reply(origin, refusal.reply(command.id))

    def _route(self, origin: Origin, command: Command) -> None:
        """Handle a command now, or let it wait for its conversation."""
        if isinstance(command, CreateConversation):
            conversation_id = members.id_of(origin.user, command)
        else:
            conversation_id = command.conversation_id  # type: ignore[union-attr]
        conversation = self._find(conversation_id)
        if conversation is None:
            conversation = self._load(conversation_id)
        # Behind a lookup even while everybody waits, or is given back: what it is for was not carried out yet.
        behind = conversation.lookups.get(id(origin)) if conversation.lookups is not None else None
        if behind is None:
            if conversation.leaving:
                raise NotOwner
            behind = conversation.waiting
        self._use(conversation_id)
        if behind is None:
            self._carry_out(conversation, origin, command)
        elif self.backlog.full:
            self.counters.overloaded += 1
            raise self.backlog.refusal()
        else:
            self.backlog.add(size_of(command))
            behind.append((origin, command))

    async def drained(self) -> None:
        """Wait until nothing waits for the store any more. Give it a deadline; cancelling is safe."""
        while self.backlog.waiting:  # noqa: ASYNC110 - looked at while draining only; an event would cost every send
            await trio.sleep(DRAIN_CHECK_S)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or unsaved: who reads the store then knows all that this process does."""
        busy = self.backlog.waiting or any(pool.running or pool.waiting for pool in self._pools)
        return not busy and self._receipts.all_saved

    async def save_receipts(self) -> None:
        """Save and push the receipts that are held back, without waiting for their time. Cancelling is safe."""
        await self._receipts.save()

    def tell_receipt_again(self, conversation_id: str, user: str) -> None:
        """Push a member's pointers once more if the conversation is in memory."""
        self._receipts.tell_again(conversation_id, user)

    async def release(self, concerns: Callable[[str], bool]) -> None:
        """Get ready to hand over the conversations that ``concerns`` says: settle, save receipts, and forget them.

        Returns when nothing of them is pending; from now on their commands go back by ``EdgePort.not_owner``. Make
        sure before that ``Ownership.epoch`` answers None for them. A cancellation leaves them here and in use again.
        """
        leaving: list[Conversation] = []
        released = False
        try:
            while True:
                for conversation in self._memory.all():
                    if not conversation.leaving and concerns(conversation.conversation_id):
                        leaving.append(conversation)
                        self._stop_accepting(conversation)
                # Without those that could not be loaded, or were given up: nothing of them is pending.
                leaving = [each for each in leaving if self._find(each.conversation_id) is each]
                if all(conversation.settled for conversation in leaving):
                    break
                await trio.sleep(DRAIN_CHECK_S)
            await self._save_receipts_of(concerns)
            released = True
        finally:
            for conversation in leaving:
                if released:
                    self._memory.drop(conversation)
                else:
                    conversation.leaving = False
                    self._resume(conversation)

    async def _save_receipts_of(self, concerns: Callable[[str], bool]) -> None:
        """Let the next owner load pointers as they are: what the store refuses again and again comes after it."""
        for _ in range(RELEASE_SAVES_MAX):
            if not self._receipts.any_unsaved(concerns):
                return
            await self._receipts.save()
            await trio.sleep(DRAIN_CHECK_S)

    def _stop_accepting(self, conversation: Conversation) -> None:
        conversation.leaving = True
        conversation.close()
        if not conversation.loaded:
            return  # what waits for the loading is given back when that is done
        waiting, conversation.waiting = conversation.waiting or deque(), deque()
        self.backlog.remove_all(waiting)
        for origin, command in waiting:
            self._edge.not_owner(origin, command)

    def drop_all(self) -> None:
        """Forget everything: this node was found dead. Who waits learns that outcomes are unknown, or to try again."""
        self._running = False
        for conversation in self._memory.all():
            self._appender.give_up(conversation)

    def pointers(self, conversation_id: str, user: str) -> tuple[int, int] | None:
        """delivered_seq and read_seq as memory has them, newer than the store's; None if it has none."""
        conversation = self._find(conversation_id)
        member = conversation.members.get(user) if conversation is not None else None
        if member is None:
            return self._receipts.unsaved(conversation_id, user)
        return member.delivered_seq, member.read_seq

    def head(self, conversation_id: str) -> tuple[int, Head] | None:
        """The epoch under which a conversation was loaded, and its head; None if it is not in memory.

        The head's time is that of the last entry that was given a seq, which may be a later one.
        """
        conversation = self._find(conversation_id)
        if conversation is None or not conversation.loaded:
            return None
        return conversation.epoch, Head(conversation.head_seq, conversation.last_time_us)

    def excludes(self, conversation_id: str, user: str) -> bool:
        """True if memory is sure that the user is not in the conversation, whatever was read from the store."""
        conversation = self._find(conversation_id)
        return conversation is not None and conversation.excludes(user)

    def recent(self, conversation_id: str, after_seq: int, head_seq: int) -> list[bytes] | None:
        """Encoded durable entries with after_seq < seq <= head_seq, if the tail reaches that far; else None.

        The head may be one that the store knew a moment before its outcome came here: then the tail ends too early.
        """
        conversation = self._find(conversation_id)
        if conversation is None or not conversation.loaded or conversation.first_tail_seq > after_seq + 1:
            return None
        first = conversation.first_tail_seq
        if head_seq >= first + len(conversation.tail):
            return None
        return conversation.tail[after_seq + 1 - first : head_seq + 1 - first]

    def _load(self, conversation_id: str) -> Conversation:
        if not self._running:
            raise unavailable("this node is not running, or stops")
        if self._ownership.epoch(conversation_id) is None:
            raise NotOwner
        if self.backlog.full:
            self.counters.overloaded += 1
            raise self.backlog.refusal()
        conversation = self._memory.add(conversation_id)
        if not self._loader.start(conversation):
            self._memory.drop(conversation)
            self.counters.overloaded += 1
            raise overloaded(STORE_TASKS_WAITING_MAX)
        return conversation

    def _carry_out(self, conversation: Conversation, origin: Origin, command: Command) -> None:
        """Handle a command for a conversation that is loaded, if need be after asking who is in. Raises Refused."""
        try:
            self._handle(conversation, origin, command)
        except MembersUnknown as unknown:
            self._census.start(conversation, origin, command, unknown)

    def _handle(self, conversation: Conversation, origin: Origin, command: Command) -> None:
        """Carry out a command for a conversation that is loaded. Raises Refused, NotOwner, MembersUnknown."""
        if isinstance(command, Send | AddMembers | RemoveMembers | Rename):
            self._appender.submit(conversation, origin, command)
            return
        self._appender.require_voice(conversation)  # nothing that comes to be durable would show if memory is old
        match command:
            case MarkReceipt():
                self._receipts.mark(conversation, origin, command)
            case Typing():
                self._typists.submit(conversation, origin, command)
            case History():
                self._reader.history(conversation, origin, command)
            case GetConversation():
                self._reader.get(conversation, origin, command.id)
            case ListMembers():
                self._reader.list_members(conversation, origin, command)
            case CreateConversation():
                self._exists(conversation, origin, command)
            case _:
                raise AssertionError(f"{type(command).__name__} is not for an owner")

    def _may_speak(self, conversation: Conversation) -> bool:
        return self._ownership.may_speak(conversation.conversation_id, conversation.epoch)

    def _exists(self, conversation: Conversation, origin: Origin, command: CreateConversation) -> None:
        """Answer a creation that finds its conversation there: a repeat, or a direct one that the other began.

        While nothing followed the first entry it is delivered again, because who created it may have had no answer.
        What a repeat asks for is compared with that entry as long as the tail reaches back to it.
        """
        conversation.require_member(origin.user)
        first = conversation.entry_in_tail(1)
        if first is not None and not members.same_creation(first, command):
            raise client_msg_id_reused(command.client_msg_id, 1)
        conversation_id = conversation.conversation_id
        if first is not None and conversation.head_seq == 1:
            self.counters.redelivered += 1
            recipients = conversation.recipients
            if conversation.is_channel:  # nobody follows it whom this did not tell
                recipients = (*recipients, *(first.users or ()))
            self._edge.deliver(Delivery(conversation_id, recipients, conversation.tail[:1], [origin]))
        if command.id:
            reply = ConversationReply(command.id, describe(conversation, origin.user))
            self._edge.reply(origin, reply, conversation_id)

    def _filled(self, conversation: Conversation) -> None:
        self.on_loaded(conversation.conversation_id)
        self._receipts.restore(conversation)
        if conversation.is_channel and conversation.epoch > 1:
            self._tell_members_again(conversation)
        self._resume(conversation)

    def _tell_members_again(self, conversation: Conversation) -> None:
        """Deliver the tail's changes of a channel's members again, to those who joined or left by them.

        The owner of the epoch before may have died between storing a change and handing it on. Nodes would then go on
        to push to somebody who has left, or not begin to push to somebody who has joined, and no later entry would
        tell them. In the order of the log this leaves every node where the last change left it.
        """
        for encoded in conversation.tail:
            entry = decode_entry(encoded)
            changes = changes_of(entry)
            users = (*changes.added, *changes.removed)
            if users:
                self._edge.deliver(Delivery(conversation.conversation_id, users, [encoded], [None]))

    def _failed(self, conversation: Conversation, refusal: Refused) -> None:
        """Refuse all that waits for a conversation that could not be loaded."""
        self._memory.drop(conversation)
        waiting, conversation.waiting = conversation.waiting or deque(), deque()
        self.backlog.remove_all(waiting)
        for origin, command in waiting:
            if isinstance(refusal, NotOwner):
                self._edge.not_owner(origin, command)
            else:
                self._edge.reply(origin, refusal.reply(command.id))

    def _resume(self, conversation: Conversation) -> None:
        """Handle what waited, in order, up to the next command that makes the rest wait again."""
        if conversation.leaving:
            self._stop_accepting(conversation)
            return
        if conversation.waiting is None or not conversation.loaded:
            return
        if conversation.barrier or conversation.outcomes is not None:
            return
        waiting, conversation.waiting = conversation.waiting, None
        conversation.update_open()
        while waiting and conversation.waiting is None:
            origin, command = waiting.popleft()
            self.backlog.remove(size_of(command))
            self.submit(origin, command)
        if waiting:
            conversation.wait_again(waiting)

    def _drop(self, conversation: Conversation) -> None:
        """Forget a conversation whose appends failed; what waited goes on when it was loaded anew."""
        self._memory.drop(conversation)
        waiting, conversation.waiting = conversation.waiting or deque(), deque()
        for behind in give_up_lookups(conversation):
            waiting.extend(behind)
        self.backlog.remove_all(waiting)
        for origin, command in waiting:
            self.submit(origin, command)

    def _looked_up(
        self, conversation: Conversation, origin: Origin, command: Appending, stored: StoredEntry | None
    ) -> None:
        try:
            if stored is None:
                self._appender.submit(conversation, origin, command, looked_up=True)
            else:
                self._appender.answer_from_log(conversation, origin, command, stored)
        except MembersUnknown:
            self.submit(origin, command)  # forgotten meanwhile
        except NotOwner:
            self._edge.not_owner(origin, command)
        except Refused as refusal:
            self._edge.reply(origin, refusal.reply(command.id))

    def _keep(self, conversation_id: str) -> bool:
        return self._receipts.keep(conversation_id)
