"""How conversations stand that a client asks for when it comes back: their heads, with as few reads as can be.

This node's own conversations are in its memory. Others' heads are read in Redis, in one round trip, and believed if the
slot table, looked at afterwards, names the owner that wrote them: ``heads.py`` says why that is enough. What nobody
has written is asked of its owner, which remembers it from then on.
"""

from collections.abc import Collection, Mapping
from typing import Final, Protocol

import trio
from msgspec import Raw

from gateway.broker import Head, OwnerPort
from gateway.cluster.own_heads import OwnHeads
from gateway.cluster.ports import Heads, SlotView
from gateway.cluster.slots import slot_of
from gateway.cluster.table_looks import TableLooks
from gateway.edge.hub import ask
from protocol.codec import decode_entry_head
from protocol.frames import ConversationReply, Entry, GetConversation
from store.coordination import SlotTable
from store.interface import Unavailable

ASKED_AT_ONCE: Final = 16
"""Owners' answers that one client's question waits for at a time."""

ASK_MAX_S: Final = 3.0
"""Seconds that an owner may take to say a head; then the client is to try again, which leaves its place to others."""


class Slots(Protocol):
    """Who owns what (``SlotOwnership``)."""

    @property
    def table(self) -> SlotTable: ...

    def epoch(self, conversation_id: str) -> int | None:
        """See Ownership.epoch."""

    def may_speak(self, conversation_id: str, epoch: int) -> bool:
        """See Ownership.may_speak."""

    def wake(self) -> None:
        """Look at the slot table soon."""


class Standing:
    """Implements ``gateway.edge.moved.Heads`` for a node of a cluster.

    Attributes:
        shared: the heads of other nodes' conversations; None without Redis.
        own_known, shared_known, asked: heads that memory had, that Redis had, and that owners were asked for, ever.
    """

    def __init__(self, own: OwnHeads, slots: Slots, table: TableLooks, owners: OwnerPort) -> None:
        self.shared: Heads | None = None
        self.own_known = 0
        self.shared_known = 0
        self.asked = 0
        self._own = own
        self._slots = slots
        self._table = table
        self._owners = owners

    async def heads(self, user: str, conversation_ids: Collection[str]) -> dict[str, Head]:
        """See Heads.heads. Cancelling is safe."""
        found: dict[str, Head] = {}
        views: dict[str, SlotView] = {}
        for conversation_id in conversation_ids:
            head = self._own_head(conversation_id)
            if head is not None:
                found[conversation_id] = head
            else:
                slot = slot_of(conversation_id)
                row = self._slots.table.slots[slot]
                views[conversation_id] = SlotView(slot, row.owner, row.epoch)
        self.own_known += len(found)
        if views:
            shared = await self._shared_heads(views)
            self.shared_known += len(shared)
            found.update(shared)
            missing = [conversation_id for conversation_id in views if conversation_id not in shared]
            found.update(await self.ask_owners(user, missing))
        return found

    def _own_head(self, conversation_id: str) -> Head | None:
        epoch = self._slots.epoch(conversation_id)
        if epoch is None or not self._slots.may_speak(conversation_id, epoch):
            return None
        return self._own.get(conversation_id, epoch)

    async def _shared_heads(self, views: Mapping[str, SlotView]) -> dict[str, Head]:
        """Heads that others wrote and still own."""
        found = await self.shared.heads(views) if self.shared is not None else {}
        if not found:
            return {}
        try:
            table = await self._table.look()
        except Unavailable:
            return {}
        if table.version != self._slots.table.version:
            self._slots.wake()
        return {each: head for each, head in found.items() if _owns(table, views[each])}

    # --- Asking owners ----------------------------------------------------------------------------------------------

    async def ask_owners(self, user: str, conversation_ids: Collection[str]) -> dict[str, Head]:
        """See Heads.ask_owners: who does not answer in time, or refuses, is left out. Cancelling is safe."""
        found: dict[str, Head] = {}
        limiter = trio.CapacityLimiter(ASKED_AT_ONCE)

        async def ask(conversation_id: str) -> None:
            async with limiter:
                head = await self._ask(user, conversation_id)
            if head is not None:
                found[conversation_id] = head

        self.asked += len(conversation_ids)
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + ASK_MAX_S
            for conversation_id in conversation_ids:
                nursery.start_soon(ask, conversation_id)
        return found

    async def _ask(self, user: str, conversation_id: str) -> Head | None:
        reply = await ask(self._owners.submit, user, GetConversation(1, conversation_id))
        if not isinstance(reply, ConversationReply):
            return None
        conversation = reply.conversation
        return Head(conversation.head_seq, _time_us(conversation.last_entry))


def _time_us(entry: Entry | Raw | None) -> int:
    """When an entry was appended; 0: it is not known."""
    if entry is None:
        return 0
    return entry.time_us if isinstance(entry, Entry) else decode_entry_head(bytes(entry)).time_us


def _owns(table: SlotTable, view: SlotView) -> bool:
    row = table.slots[view.slot]
    return (row.owner, row.epoch) == (view.owner, view.epoch)
