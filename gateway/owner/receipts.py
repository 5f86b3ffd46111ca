"""How far members are: pointers that only rise, gathered in memory and saved behind.

A pointer counts at once for everybody who asks this owner. It is pushed to the others when it was saved, so that it
never goes back for anybody, whatever happens to the node.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

import trio
from msgspec import Struct

from gateway.broker import EdgePort, Origin
from gateway.config import Settings
from gateway.observe.seldom import Seldom
from gateway.owner.conversation import Conversation
from gateway.owner.counters import OwnerCounters
from gateway.refusals import beyond_head, overloaded
from protocol.frames import MarkReceipt, Ok, ReceiptPush
from store.entries import MemberRecord, ReceiptRecord
from store.interface import Store, StoreError

SAVE_RECORDS_MAX: Final = 1_000
"""Pointers saved by one call of the store: a few milliseconds of its writer, so that appends do not wait behind."""

LINE_RECORDS_MAX: Final = 10_000
"""Pointers put in line at once: some 20 ms, in which the loop stands still."""

SAVE_MAX_S: Final = 5.0
"""Seconds after which a save ends, and what the store has not answered counts as refused: as long as a load waits."""

SAVE_REFUSALS_MAX: Final = 16
"""Refusals in a row after which a save ends: a store that refuses everything is left alone, and one that refuses some
records has let others pass by then: a chunk of SAVE_RECORDS_MAX comes down to one record in ten halvings."""

UNSAVED_RECORDS_MAX: Final = 100_000
"""Members whose pointers may wait to be saved: some 50 MB. It takes a store that refuses for 5 s with 20,000 of them
moving a second; more often the same ones move again, which takes no room."""

SAVE_AT_END_S: Final = 2.0
"""Seconds that a stopping owner gives the store to save what is left: as long as receipts may be held back anyway."""

RECEIPT_PUSH_MEMBERS_MAX: Final = 64
"""Members above which a group has no receipt pushes: in a group of 64 one message already brings up to 64 receipts for
64 members, 4,096 pushes a second. Larger groups are asked by GetConversation."""


class Unsaved(Struct):
    """A member whose pointers the store does not know, and the origin that moved them; None: nobody has to be told."""

    member: MemberRecord
    origin: Origin | None

    def record(self, conversation_id: str) -> ReceiptRecord:
        """The pointers as they are now."""
        member = self.member
        return ReceiptRecord(conversation_id, member.user, member.delivered_seq, member.read_seq, member.joined_seq)


_Moved = tuple[ReceiptRecord, Origin | None]


class Receipts:
    """Keeps, saves and pushes pointers that have moved."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        edge: EdgePort,
        counters: OwnerCounters,
        find: Callable[[str], Conversation | None],
        may_speak: Callable[[Conversation], bool],
    ) -> None:
        self._receipt_delay_s = settings.receipt_delay_s
        self._store = store
        self._edge = edge
        self._counters = counters
        self._find = find
        self._may_speak = may_speak
        self._unsaved: dict[str, dict[str, Unsaved]] = {}
        self._unsaved_records = 0
        # Conversations with pointers that the store refused, the one refused last at the end, until all of theirs are
        # saved; and how many records it refused at once.
        self._refused: dict[str, int] = {}
        self._wake = trio.Event()
        self._one_save = trio.Lock()
        self._seldom = Seldom()

    def mark(self, conversation: Conversation, origin: Origin, command: MarkReceipt) -> None:
        """Raise the pointers of the origin's user; lower ones than known change nothing.

        Raises:
            Refused: not a member, a seq beyond the head, or too much waits to be saved.
            MembersUnknown: whether the user is one.
        """
        conversation.require_member(origin.user)
        member = conversation.members[origin.user]
        conversation_id = conversation.conversation_id
        for name, seq in (("delivered_seq", command.delivered_seq), ("read_seq", command.read_seq)):
            if seq > conversation.head_seq:
                raise beyond_head(name, seq, conversation_id, conversation.head_seq)
        read_seq = max(member.read_seq, command.read_seq)
        delivered_seq = max(member.delivered_seq, command.delivered_seq, read_seq)
        if (delivered_seq, read_seq) != (member.delivered_seq, member.read_seq):
            if not self._has_room(conversation_id, origin.user):
                self._counters.overloaded += 1
                raise overloaded(self._unsaved_records, "receipts")
            self._counters.receipts += 1
            member.delivered_seq, member.read_seq = delivered_seq, read_seq
            self._note(conversation_id, member, origin)
        if command.id:
            self._edge.reply(origin, Ok(command.id))

    def wrote(self, conversation: Conversation, user: str, seq: int) -> None:
        """A durable entry of the user's own: whoever had read all before it has now read it too.

        Not pushed: everybody who gets the entry can tell. Where too much waits to be saved, the user has to mark it.
        """
        member = conversation.members.get(user)
        if member is not None and member.read_seq == seq - 1 and self._has_room(conversation.conversation_id, user):
            member.read_seq = seq
            member.delivered_seq = max(member.delivered_seq, seq)
            users = self._unsaved.get(conversation.conversation_id)
            if users is None or user not in users or users[user].member is not member:
                self._note(conversation.conversation_id, member, None)

    def _note(self, conversation_id: str, member: MemberRecord, origin: Origin | None) -> None:
        """Pointers have moved: save them soon."""
        users = self._unsaved.setdefault(conversation_id, {})
        if member.user not in users:
            self._unsaved_records += 1
        elif origin is None:
            origin = users[member.user].origin  # a push was owed already
        users[member.user] = Unsaved(member, origin)
        self._wake.set()

    def _has_room(self, conversation_id: str, user: str) -> bool:
        """Whether a user's pointers may move: they wait already, or there is room for one more to wait."""
        return self._unsaved_records < UNSAVED_RECORDS_MAX or user in self._unsaved.get(conversation_id, ())

    @property
    def all_saved(self) -> bool:
        """Whether the store knows every pointer."""
        return not self._unsaved

    def keep(self, conversation_id: str) -> bool:
        """Whether a conversation has to stay in memory, for its pointers to be pushed when they are saved, and soon.

        While the store refuses them they need no more than to be saved in the end: memory would grow and grow.
        """
        return conversation_id in self._unsaved and conversation_id not in self._refused

    def any_unsaved(self, concerns: Callable[[str], bool]) -> bool:
        """Whether memory knows more than the store of any conversation that ``concerns`` says, loaded or not."""
        return any(concerns(conversation_id) for conversation_id in self._unsaved)

    def restore(self, conversation: Conversation) -> None:
        """Put what is not saved yet into a conversation that was loaded anew."""
        for user in self._unsaved.get(conversation.conversation_id, {}):
            member = conversation.members.get(user)
            if member is not None:
                self.restore_member(conversation, member)

    def restore_member(self, conversation: Conversation, member: MemberRecord) -> None:
        """Put what is not saved yet into a member that was read anew."""
        unsaved = self._unsaved.get(conversation.conversation_id, {}).get(member.user)
        if unsaved is not None and unsaved.member.joined_seq == member.joined_seq:
            member.delivered_seq = max(member.delivered_seq, unsaved.member.delivered_seq)
            member.read_seq = max(member.read_seq, unsaved.member.read_seq)

    def unsaved(self, conversation_id: str, user: str) -> tuple[int, int] | None:
        """delivered_seq and read_seq of a member if the store does not know them yet."""
        unsaved = self._unsaved.get(conversation_id, {}).get(user)
        return (unsaved.member.delivered_seq, unsaved.member.read_seq) if unsaved is not None else None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Save what has moved every ``receipt_delay_s``; a cancellation saves what is left first."""
        task_status.started()
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                await trio.sleep(self._receipt_delay_s)
                await self.save()
                if self._unsaved:  # refused by the store, or moved on while it wrote
                    self._wake.set()
        finally:
            with trio.move_on_after(SAVE_AT_END_S, shield=True):
                await self.save()

    async def save(self) -> None:
        """Save all that is unsaved now, then push it; what the store refuses stays for the next time.

        What it refuses holds up nothing else: that goes to the end of the line, and is tried again in ever smaller
        chunks, down to the record that is refused alone; in larger ones again while it is saved.

        A cancellation leaves some saved and not pushed; they are saved again.
        """
        async with self._one_save:
            until_s = trio.current_time() + SAVE_MAX_S
            go_on = True
            while go_on:
                line = deque(islice(self._in_order(), LINE_RECORDS_MAX))
                full = len(line) == LINE_RECORDS_MAX
                go_on = await self._save_line(line, until_s) and full

    def _in_order(self) -> Iterator[_Moved]:
        """All that is unsaved: first what was never refused, then what was refused with many others, then with few."""
        for conversation_id, users in self._unsaved.items():
            if conversation_id not in self._refused:
                for each in users.values():
                    yield each.record(conversation_id), each.origin
        for conversation_id in sorted(self._refused, key=self._refused.__getitem__, reverse=True):
            for each in self._unsaved[conversation_id].values():
                yield each.record(conversation_id), each.origin

    async def _save_line(self, line: deque[_Moved], until_s: float) -> bool:
        """Save a line, and what is refused of it in smaller chunks; False when that ended early."""
        refusals, grown = 0, 1
        while line:
            if refusals == SAVE_REFUSALS_MAX or trio.current_time() >= until_s:
                return False
            first = line[0][0].conversation_id
            refused_before = first in self._refused
            size = max(self._refused[first] // 2, grown) if refused_before else SAVE_RECORDS_MAX
            chunk = self._take(line, size, refused_before)
            if await self._save_chunk(chunk, until_s):
                refusals = 0
                if refused_before:
                    grown = min(2 * size, SAVE_RECORDS_MAX)
            else:
                refusals, grown = refusals + 1, 1
                if len(chunk) > 1:
                    line.extend(chunk)
        return True

    def _take(self, line: deque[_Moved], size: int, refused_before: bool) -> list[_Moved]:
        """The first of the line, but nothing that was refused before together with what was not."""
        chunk: list[_Moved] = []
        while line and len(chunk) < size and (line[0][0].conversation_id in self._refused) is refused_before:
            chunk.append(line.popleft())
        return chunk

    async def _save_chunk(self, chunk: list[_Moved], until_s: float) -> bool:
        """Save some, and push them; whether the store took them in time."""
        try:
            with trio.fail_at(until_s):
                await self._store.save_receipts([record for record, _ in chunk])
        except (StoreError, trio.TooSlowError) as error:
            if len(chunk) == 1:
                [(record, _)] = chunk
                reason = str(error) or f"not answered within {SAVE_MAX_S:g} s"
                self._seldom.warn(
                    "receipt not saved", conversation=record.conversation_id, user=record.user, reason=reason
                )
            self._counters.receipts_failed += len(chunk)
            for record, _ in chunk:
                self._put_behind(record, len(chunk))
            return False
        self._counters.receipts_saved += len(chunk)
        for record, origin in chunk:
            self._saved(record)
            self._push(record, origin)
        return True

    def _put_behind(self, record: ReceiptRecord, together: int) -> None:
        """A record was refused, ``together`` with others in one chunk: all others come first the next time."""
        conversation_id = record.conversation_id
        users = self._unsaved[conversation_id]
        users[record.user] = users.pop(record.user)
        self._refused.pop(conversation_id, None)
        self._refused[conversation_id] = together

    def _saved(self, record: ReceiptRecord) -> None:
        users = self._unsaved[record.conversation_id]
        if users[record.user].record(record.conversation_id) == record:  # else: it has moved on
            del users[record.user]
            self._unsaved_records -= 1
            if not users:
                del self._unsaved[record.conversation_id]
                self._refused.pop(record.conversation_id, None)

    def _push(self, record: ReceiptRecord, origin: Origin | None) -> None:
        if origin is not None:
            self._tell(record, origin)

    def tell_again(self, conversation_id: str, user: str) -> None:
        """Push a member's pointers, as they are saved, once more: somebody may have missed it."""
        conversation = self._find(conversation_id)
        member = conversation.members.get(user) if conversation is not None else None
        if member is not None and self.unsaved(conversation_id, user) is None:  # else they are pushed soon anyway
            self._tell(Unsaved(member, None).record(conversation_id), None)

    def _tell(self, record: ReceiptRecord, origin: Origin | None) -> None:
        conversation = self._find(record.conversation_id)
        if conversation is None:
            self._counters.receipts_unpushed += 1
            return
        member = conversation.members.get(record.user)
        if not conversation.is_channel and (member is None or member.joined_seq != record.joined_seq):
            return  # the user has left since, and may be in again
        many = conversation.is_channel or len(conversation.members) > RECEIPT_PUSH_MEMBERS_MAX
        if many or not self._may_speak(conversation):  # another owner may have removed some
            self._counters.receipts_unpushed += 1
            return
        push = ReceiptPush(record.conversation_id, record.user, record.delivered_seq, record.read_seq)
        self._edge.signal(conversation.recipients, push, record.conversation_id, skip=origin)
