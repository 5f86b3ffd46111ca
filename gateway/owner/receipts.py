"""How far members are: pointers that only rise, gathered in memory and saved behind.

A pointer counts at once for everybody who asks this owner. It is pushed to the others when it was saved, so that it
never goes back for anybody, whatever happens to the node.
"""

from collections.abc import Callable
from typing import Final

import trio
from msgspec import Struct

from gateway.broker import EdgePort, Origin
from gateway.config import Settings
from gateway.owner.conversation import Conversation
from gateway.owner.counters import OwnerCounters
from gateway.refusals import beyond_head
from protocol.frames import MarkReceipt, Ok, ReceiptPush
from store.entries import MemberRecord, ReceiptRecord
from store.interface import Store, StoreError

SAVE_RECORDS_MAX: Final = 1_000
"""Pointers saved by one call of the store: a few milliseconds of its writer, so that appends do not wait behind."""

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
        self._refused = False
        self._wake = trio.Event()
        self._one_save = trio.Lock()

    def mark(self, conversation: Conversation, origin: Origin, command: MarkReceipt) -> None:
        """Raise the pointers of the origin's user; lower ones than known change nothing.

        Raises:
            Refused: not a member, or a seq beyond the head.
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
            self._counters.receipts += 1
            member.delivered_seq, member.read_seq = delivered_seq, read_seq
            self._note(conversation_id, member, origin)
        if command.id:
            self._edge.reply(origin, Ok(command.id))

    def wrote(self, conversation: Conversation, user: str, seq: int) -> None:
        """A durable entry of the user's own: whoever had read all before it has now read it too.

        Not pushed: everybody who gets the entry can tell.
        """
        member = conversation.members.get(user)
        if member is not None and member.read_seq == seq - 1:
            member.read_seq = seq
            member.delivered_seq = max(member.delivered_seq, seq)
            users = self._unsaved.get(conversation.conversation_id)
            if users is None or user not in users or users[user].member is not member:
                self._note(conversation.conversation_id, member, None)

    def _note(self, conversation_id: str, member: MemberRecord, origin: Origin | None) -> None:
        """Pointers have moved: save them soon."""
        users = self._unsaved.setdefault(conversation_id, {})
        if origin is None and member.user in users:
            origin = users[member.user].origin  # a push was owed already
        users[member.user] = Unsaved(member, origin)
        self._wake.set()

    @property
    def all_saved(self) -> bool:
        """Whether the store knows every pointer."""
        return not self._unsaved

    def keep(self, conversation_id: str) -> bool:
        """Whether a conversation has to stay in memory, for its pointers to be pushed when they are saved, and soon.

        While the store refuses them they need no more than to be saved in the end: memory would grow and grow.
        """
        return conversation_id in self._unsaved and not self._refused

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

        A cancellation leaves some saved and not pushed; they are saved again.
        """
        async with self._one_save:
            moved = [
                (each.record(conversation_id), each.origin)
                for conversation_id, users in self._unsaved.items()
                for each in users.values()
            ]
            for start in range(0, len(moved), SAVE_RECORDS_MAX):
                chunk = moved[start : start + SAVE_RECORDS_MAX]
                try:
                    await self._store.save_receipts([record for record, _ in chunk])
                except StoreError:
                    self._refused = True
                    self._counters.receipts_failed += len(chunk)
                    return
                self._refused = False
                self._counters.receipts_saved += len(chunk)
                for record, origin in chunk:
                    self._saved(record)
                    self._push(record, origin)

    def _saved(self, record: ReceiptRecord) -> None:
        users = self._unsaved[record.conversation_id]
        if users[record.user].record(record.conversation_id) == record:  # else: it has moved on
            del users[record.user]
            if not users:
                del self._unsaved[record.conversation_id]

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
