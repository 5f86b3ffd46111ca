"""From a command to a durable entry, its deliveries and its acknowledgement: the hot path of the node.

What one slice of the loop brings is appended by one call of the store; nothing here waits, and nothing costs a task.
An entry that changes members or title is a barrier: commands behind it wait until it is durable, so that every rule is
judged by what the log says and never by what it may come to say.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final

import trio

from gateway.broker import Delivery, EdgePort, Origin
from gateway.config import Settings
from gateway.owner.backlog import Backlog
from gateway.owner.checks import check_message
from gateway.owner.conversation import Conversation, Pending
from gateway.owner.counters import OwnerCounters
from gateway.owner.deduplication import Appending, Key, Repeats, key_of, same_content
from gateway.owner.members import Draft, draft
from gateway.owner.pace import Pace
from gateway.owner.ports import Ownership
from gateway.owner.trouble import Troubles
from gateway.refusals import NotOwner, client_msg_id_reused, not_found
from protocol.codec import decode_entry, encode_entry
from protocol.frames import Entry, EntryKind, Ok, Send, SendAck
from store.entries import Append, StoredEntry
from store.interface import Outcome, OutcomeUnknown, StaleEpoch, Store, StoreError

MESSAGE: Final = int(EntryKind.MESSAGE)


class Appender:
    """Gives sends their place in the log and answers them when they are durable."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        edge: EdgePort,
        ownership: Ownership,
        clock_us: Callable[[], int],
        counters: OwnerCounters,
        backlog: Backlog,
        find: Callable[[str], Conversation | None],
        may_speak: Callable[[Conversation], bool],
        resume: Callable[[Conversation], None],
        look_up: Callable[[Conversation, Origin, Appending], None],
        drop: Callable[[Conversation], None],
        wrote: Callable[[Conversation, str, int], None],
    ) -> None:
        self._settings = settings
        self._admit = Pace(settings, counters).admit
        self._store = store
        self._edge = edge
        self._ownership = ownership
        self._clock_us = clock_us
        self._counters = counters
        self._backlog = backlog
        self._find = find
        self._may_speak = may_speak
        self._resume = resume
        self._look_up = look_up
        self._wrote = wrote
        self._repeats = Repeats()
        self._dirty: list[Conversation] = []
        self._arrived_s = 0.0
        self._wake = trio.Event()
        self._gone = False
        self._troubles = Troubles(edge, counters, backlog, self._settle, self._recovered, drop, self._append_again)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Flush and repeat until cancelled. What is pending then stays unanswered; it may or may not become durable."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._flush_forever)
            nursery.start_soon(self._troubles.repeat_forever)
            nursery.start_soon(self._troubles.answer_overdue_forever)
            task_status.started()

    def submit(self, conversation: Conversation, origin: Origin, command: Appending, looked_up: bool = False) -> None:
        """Append what the command says, or answer that it was appended before.

        Raises:
            Refused: the command breaks a rule, the conversation gets too many, or too many wait.
            NotOwner: see ``require_voice``.
            MembersUnknown: whether users that it is from or about are in the channel.
        """
        self._counters.sends += 1
        user = origin.user
        key = key_of(user, command.client_msg_id)
        if conversation.is_channel:
            conversation.require_known((user, *getattr(command, "users", ())))
        seq = conversation.recent.get(key)
        if seq is not None:
            self._repeated(conversation, origin, command, seq)
            return
        seen = self._repeats.seen
        if not looked_up and (command.attempt > 1 or (seen and (conversation.conversation_id, key) in seen)):
            self._repeats.note(conversation.conversation_id, key)
            self._look_up(conversation, origin, command)
            return
        if user not in conversation.members:
            self.require_voice(conversation)
            raise not_found()
        if self._backlog.full:
            self._counters.overloaded += 1
            raise self._backlog.refusal()
        if type(command) is Send:
            check_message(command)
            self._assign(conversation, origin, command, key, MESSAGE, command.body, command.metadata, None)
            return
        self.require_voice(conversation)
        change = draft(conversation, user, command, self._settings)  # type: ignore[arg-type]
        if change is not None:
            self._change(conversation, origin, command, key, change)
        elif command.id:
            self._edge.reply(origin, Ok(command.id), conversation.conversation_id)

    def require_voice(self, conversation: Conversation) -> None:
        """Raises NotOwner: this node is not sure to own the conversation, and may not know who is in it any more."""
        if not self._may_speak(conversation):
            raise NotOwner

    def _change(self, conversation: Conversation, origin: Origin, command: Appending, key: Key, change: Draft) -> None:
        self._assign(conversation, origin, command, key, change.kind, change.body, None, change.users)
        conversation.barrier = True
        conversation.close()

    def _assign(
        self,
        conversation: Conversation,
        origin: Origin,
        command: Appending,
        key: Key,
        kind: int,
        body: str,
        metadata: dict[str, str] | None,
        users: list[str] | None,
    ) -> None:
        """Give an entry its seq and time, and let the flusher take it along. Raises Refused: it comes too soon."""
        self._admit(conversation, self._arrived_s if self._dirty else trio.current_time())
        time_us = self._clock_us()
        if time_us <= conversation.last_time_us:
            time_us = conversation.last_time_us + 1
        seq = conversation.last_seq + 1
        entry = Entry(seq, kind, time_us, origin.user, command.client_msg_id, body, metadata or None, users)
        stored = StoredEntry(entry, encode_entry(entry))
        conversation.last_seq = seq
        conversation.last_time_us = time_us
        conversation.recent[key] = seq
        if not conversation.unflushed:
            self._mark_dirty(conversation)
        conversation.unflushed.append(stored)
        conversation.pending.append(Pending(origin, command.id, stored, key, self._arrived_s))
        self._backlog.add(len(stored.encoded))

    def _mark_dirty(self, conversation: Conversation) -> None:
        if not self._dirty:
            self._arrived_s = trio.current_time()
            self._wake.set()
        self._dirty.append(conversation)
        self._troubles.unsettled.add(conversation)

    async def _flush_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            self._flush()

    def _flush(self) -> None:
        """Give the store what all conversations have gathered since the last time, in one call."""
        dirty, self._dirty = self._dirty, []
        batch = []
        for conversation in dirty:
            if conversation.outcomes is not None or not conversation.unflushed:
                continue  # in trouble: marked again when it is over; or dropped meanwhile
            entries, conversation.unflushed = conversation.unflushed, []
            if conversation.barrier and len(entries) > 1:
                # A barrier goes alone, so that each append has one set of recipients.
                before, entries = entries[:-1], entries[-1:]
                batch.append(_fly(conversation, before))
            batch.append(_fly(conversation, entries))
        if batch:
            self._counters.batches += 1
            self._store.append(batch, self._done)

    def give_up(self, conversation: Conversation) -> None:
        """Tell who waits for appends of a conversation that their outcome is unknown: it is another's now."""
        self._gone = True
        conversation.doubt_flights()
        self._troubles.give_up(conversation)

    def _append_again(self, batch: Sequence[Append]) -> None:
        self._counters.batches += 1
        self._store.append(batch, self._done)

    def _done(self, outcomes: Sequence[Outcome]) -> None:
        """Take the store's answers: deliver and acknowledge what is durable, in seq order."""
        with self._edge.together():
            for append, error in outcomes:
                self._take(append, error)

    def _take(self, append: Append, error: StoreError | None) -> None:
        conversation = self._find(append.conversation_id)
        if conversation is None and self._gone:
            return
        assert conversation is not None, "a conversation with an append under way is never forgotten"
        if error is None and not self._ownership.may_speak(append.conversation_id, append.epoch):
            error = self._why_silent(append)
            if isinstance(error, StaleEpoch):
                conversation.doubt_flights()  # they may count or not: who comes next finds out
        if error is None and conversation.outcomes is None:
            self._settle(conversation)
        else:
            self._troubles.note(conversation, error)

    def _why_silent(self, append: Append) -> StoreError:
        """Why nothing may be said of what is durable."""
        epoch = self._ownership.epoch(append.conversation_id)
        if epoch is not None and epoch != append.epoch:
            return StaleEpoch(f"durable, but of epoch {append.epoch}, and this node owns it under {epoch} by now")
        return OutcomeUnknown("durable, but this node is not sure to be the owner any more")

    def _settle(self, conversation: Conversation) -> None:
        """Deliver and acknowledge the oldest append of a conversation: it is durable."""
        count = len(conversation.flights.pop(0).entries)
        sends = conversation.pending[:count]
        del conversation.pending[:count]
        conversation.remember(sends, self._settings.tail_entries_max)
        self._counters.appended += count
        self._backlog.remove(sum([len(send.stored.encoded) for send in sends]), count)
        recipients: Collection[str] = conversation.recipients
        last = sends[-1].stored.entry
        if last.kind != MESSAGE:
            recipients = conversation.apply(last)
        conversation_id = conversation.conversation_id
        self._edge.deliver(
            Delivery(
                conversation_id,
                recipients,
                [send.stored.encoded for send in sends],
                [send.origin for send in sends],
                sends[0].arrived_s,
            )
        )
        for send in sends:
            entry = send.stored.entry
            self._wrote(conversation, entry.sender, entry.seq)
            if send.origin is not None and send.request_id:
                self._edge.reply(send.origin, SendAck(send.request_id, entry.seq, entry.time_us), conversation_id)
            if send.repeats is not None:
                self._acknowledge_repeats(conversation_id, send)
        if last.kind != MESSAGE:
            conversation.barrier = False
            self._resume(conversation)

    def _acknowledge_repeats(self, conversation_id: str, send: Pending) -> None:
        entry = send.stored.entry
        for origin, request_id in send.repeats or ():
            if request_id:
                self._edge.reply(origin, SendAck(request_id, entry.seq, entry.time_us, duplicate=True), conversation_id)

    def _recovered(self, conversation: Conversation) -> None:
        """All that was in doubt is durable and delivered: go on where it stopped."""
        if conversation.unflushed:
            self._mark_dirty(conversation)
        self._resume(conversation)

    def _repeated(self, conversation: Conversation, origin: Origin, command: Appending, seq: int) -> None:
        """Answer a repeat that memory knows: from the tail at once, from what is pending when that is durable."""
        if seq <= conversation.head_seq:
            encoded = conversation.tail[seq - conversation.first_tail_seq]
            self.answer_from_log(conversation, origin, command, StoredEntry(decode_entry(encoded), encoded))
            return
        send = conversation.pending[seq - conversation.head_seq - 1]
        if not same_content(send.stored.entry, command):
            raise client_msg_id_reused(command.client_msg_id, seq)
        self._counters.duplicates += 1
        if send.repeats is None:
            send.repeats = []
        send.repeats.append((origin, command.id))

    def answer_from_log(
        self, conversation: Conversation, origin: Origin, command: Appending, stored: StoredEntry
    ) -> None:
        """Answer a repeat of a durable entry, and deliver it again: its sender may not have been answered because
        an owner died before it had handed on the deliveries. Receivers drop it by seq; who joined later is none.

        Raises:
            Refused: the client_msg_id was used for something else.
            NotOwner: see ``require_voice``.
        """
        self.require_voice(conversation)
        entry = stored.entry
        if not same_content(entry, command):
            raise client_msg_id_reused(command.client_msg_id, entry.seq)
        self._counters.duplicates += 1
        self._counters.redelivered += 1
        conversation_id = conversation.conversation_id
        recipients = conversation.recipients_again(entry)
        self._edge.deliver(Delivery(conversation_id, recipients, [stored.encoded], [origin]))
        if command.id:
            ack = SendAck(command.id, entry.seq, entry.time_us, duplicate=True)
            self._edge.reply(origin, ack, conversation_id)


def _fly(conversation: Conversation, entries: list[StoredEntry]) -> Append:
    """An append of a conversation that is about to be given to the store."""
    append = Append(conversation.conversation_id, conversation.epoch, entries)
    conversation.flights.append(append)
    return append
