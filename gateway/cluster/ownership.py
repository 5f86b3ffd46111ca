"""Which slots this node owns: claimed from the dead, handed over between the living.

A slot changes hands in one of two ways, each one lightweight transaction on the table's version:

- *claim*: its owner is dead (its lease row says so, which is for ever); who claims has read what that one delivered to
  it, or counts it as lost; the epoch rises by one;
- *handover*: its owner writes down the next owner, stops accepting for the slot, waits until nothing of it is pending
  and the next owner has read what was delivered to it, and only then writes the next owner as owner, with the epoch
  one higher.

Either way the old owner can acknowledge nothing under the new epoch's nose. ``tests/model`` checks it.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final, Protocol

import structlog
import trio

from gateway.cluster.joining import asks_elsewhere
from gateway.cluster.lease import Lease
from gateway.cluster.slots import rightful_owners, slot_of
from gateway.cluster.versions import understood
from gateway.cluster.watch import Watch
from store.coordination import SLOTS, Coordination, LeaseRecord, Slot, SlotTable
from store.interface import Unavailable
from store.recurring import Recurring

TABLE_POLL_S: Final = 1.0
"""Seconds between two looks at the slot table when nothing says that it changed: a hint may be lost."""

SLOT_RELEASE_MAX_S: Final = 3.0
"""Seconds that a slot's pending appends may take before the handover is called off and the slot accepted again. With
the time in which the next owner has to read what was delivered to it (``links.REACH_MAX_S``) these are the five that a
client may have to wait for an acknowledgement when nodes are replaced."""

HANDOVER_RETRY_S: Final = 15.0
"""Seconds until a slot whose handover was called off is handed over again."""

log = structlog.get_logger(__name__)


class SlotHolder(Protocol):
    """What ownership asks of the node's owner."""

    async def release(self, slots: Collection[int]) -> None:
        """Wait until nothing of these slots is pending, save what is unsaved, and forget their conversations.

        New commands for them are refused meanwhile, because ``Ownership.epoch`` says so. Cancelling is safe.
        """

    async def reach(self, heirs: Collection[str]) -> Collection[str]:
        """Wait a while until these nodes have read what this one told them; answers who has. Cancelling is safe."""

    async def read_up(self) -> None:
        """Read what nodes that ended told this one before; what is not read within a while counts as lost.

        Cancelling is safe.
        """

    def drop_all(self) -> None:
        """Forget everything at once, answering that outcomes are unknown: this node owns nothing any more."""


class SlotOwnership:
    """Implements ``gateway.owner.ports.Ownership`` for one node of a cluster.

    Attributes:
        table: the slot table as last read or written.
        claims, handovers: slots claimed from the dead, and handed to others, ever.
        on_change: called after the table changed.
        on_removed: called with a dead incarnation whose lease this node has removed.
        wrote_version: the last version of the table that this node wrote.
    """

    def __init__(
        self,
        coordination: Coordination,
        lease: Lease,
        watch: Watch,
        holder: SlotHolder,
    ) -> None:
        self.table = SlotTable(0, (Slot(),) * SLOTS)
        self.claims = 0
        self.handovers = 0
        self.on_change: list[Callable[[], None]] = []
        self.on_removed: list[Callable[[str], None]] = []
        self.wrote_version = 0
        self._coordination = coordination
        self._lease = lease
        self._watch = watch
        self._holder = holder
        self._epochs = [0] * SLOTS  # of the slots that are this node's; 0: not its own
        self._accepted = [0] * SLOTS  # the same without those that are being handed over
        self._adopted_s = watch.now_s()
        self._not_leaving: dict[int, float] = {}
        self._silent_since_s: dict[str, float] = {}
        self._wake = trio.Event()
        self._go_on = trio.Event()
        self._go_on.set()
        self._looking = False
        watch.on_change.append(self.wake)
        watch.on_look.append(self._looked)
        self._waits_for_look = False
        self._trouble = Recurring("slot table not read or changed", "slot table read again")

    # --- gateway.owner.ports.Ownership ------------------------------------------------------------------------------

    def epoch(self, conversation_id: str) -> int | None:
        """See Ownership.epoch. None also while the slot is being handed over."""
        return self._accepted[slot_of(conversation_id)] or None

    def may_speak(self, conversation_id: str, epoch: int) -> bool:
        """See Ownership.may_speak."""
        return self._epochs[slot_of(conversation_id)] == epoch and self._lease.valid()

    # --- For routing and status -------------------------------------------------------------------------------------

    def owner_of(self, slot: int) -> str:
        """The incarnation that accepts commands for a slot, as far as this node knows; empty: nobody just now."""
        row = self.table.slots[slot]
        if row.next_owner or self._watch.is_dead(row.owner):
            return ""
        if row.owner == self._lease.incarnation and not (self._accepted[slot] and self._lease.valid()):
            return ""  # without a sure lease this node may say nothing, and another may own the slot already
        return row.owner

    @property
    def owned(self) -> int:
        """Slots that this node owns."""
        return SLOTS - self._epochs.count(0)

    @property
    def named(self) -> bool:
        """Whether the table, as last known, names this node as an owner; longer than it counts as one in a handover."""
        own = self._lease.incarnation
        return any(slot.owner == own for slot in self.table.slots)

    def wake(self) -> None:
        """Look at the table soon."""
        self._wake.set()

    @property
    def resting(self) -> bool:
        """Whether nothing of the table is read or written: it stays so during a pause."""
        return not self._looking

    def pause(self) -> None:
        """Begin no other look at the table until ``resume``."""
        if self._go_on.is_set():
            self._go_on = trio.Event()

    def resume(self) -> None:
        """Look again. Does nothing where there is no pause."""
        self._go_on.set()

    # --- Life -------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Claim, hand over and follow the table until cancelled; started once the table was read.

        A cancellation leaves the slots this node's own, in the table too; a transaction under way may or may not
        have happened.
        """
        started = False
        while True:
            await self._go_on.wait()
            self._looking = True
            try:
                await self.look()
            except Unavailable as error:
                self._trouble.came(error=str(error))
            else:
                self._trouble.over()
                if not started:
                    task_status.started()
                    started = True
            finally:
                self._looking = False
            with trio.move_on_after(TABLE_POLL_S):
                await self._wake.wait()
            self._wake = trio.Event()

    def fence(self) -> None:
        """This incarnation is dead: own nothing, accept nothing, and forget everything."""
        self._epochs = [0] * SLOTS
        self._accepted = [0] * SLOTS
        self._holder.drop_all()

    async def look(self) -> None:
        """Read the table, and do what follows from it. Raises Unavailable."""
        self._adopt(await self._coordination.slot_table())
        if self._lease.fenced or not self._watch.live:
            return
        rightful = self._rightful()
        claimed = self._claimable(rightful)
        if claimed and not await self._claim(claimed):
            self.wake()
            return
        self.claims += len(claimed)
        if self._watch.looked_s > self._adopted_s:
            await self._hand_over(rightful)
        else:
            # Who has just given this node slots may be leaving, which the last look at the leases did not see yet:
            # they would go back, and again, until it has left with them.
            self._waits_for_look = True
            self._watch.wake()
        await self._remove_dead_leases()

    def _looked(self) -> None:
        if self._waits_for_look:
            self._waits_for_look = False
            self.wake()

    def may_own(self, row: LeaseRecord) -> bool:
        """Whether a living node can be given slots."""
        return (
            row.owns
            and not row.draining
            and understood(row.protocol)
            and not asks_elsewhere(self._lease.record.datacenter, row.datacenter)
        )

    def _rightful(self) -> list[str]:
        """For each slot the incarnation that should own it; empty where nobody can."""
        candidates: dict[str, str] = {}
        for row in self._watch.live.values():
            if self.may_own(row):
                candidates[row.node] = max(row.incarnation, candidates.get(row.node, ""))
        return [candidates.get(node, "") for node in rightful_owners(candidates)]

    def _claimable(self, rightful: list[str]) -> dict[int, Slot]:
        """Slots of the dead that should be this node's.

        Dead is whose row says so. Who has no row at all is dead only if the look at the leases began after the table
        was read that names it: an owner may have begun to live between an older look and that table.
        """
        own = self._lease.incarnation
        if not self._lease.valid() or self._watch.contested:
            return {}
        dead = {"", *self._watch.dead}
        if self._watch.looked_s > self._adopted_s:
            dead.update({slot.owner for slot in self.table.slots}.difference(self._watch.live))
        return {
            number: Slot(own, slot.epoch + 1)
            for number, slot in enumerate(self.table.slots)
            if rightful[number] == own and slot.owner in dead
        }

    async def _claim(self, claimed: Mapping[int, Slot]) -> bool:
        """Take slots of the dead; False if somebody else wrote meanwhile. Raises Unavailable.

        What they delivered to this node's connections last may not have been read yet: it would come behind what this
        node is going to deliver.
        """
        if any(self.table.slots[number].owner for number in claimed):
            await self._holder.read_up()
        return await self._change(claimed)

    # --- Handing over -----------------------------------------------------------------------------------------------

    async def _hand_over(self, rightful: list[str]) -> None:
        """Give away what should be another's, through the three steps that the module says."""
        own = self._lease.incarnation
        now_s = trio.current_time()
        leaving = {
            number: slot
            for number, slot in enumerate(self.table.slots)
            if slot.owner == own and rightful[number] not in ("", own) and self._not_leaving.get(number, 0.0) <= now_s
        }
        if not leaving:
            await self._take_back(rightful)
            return
        announced = {number: Slot(own, slot.epoch, rightful[number]) for number, slot in leaving.items()}
        if announced != leaving and not await self._change(announced):
            self.wake()
            return
        with trio.move_on_after(SLOT_RELEASE_MAX_S) as patience:
            await self._holder.release(announced)
        if patience.cancelled_caught:
            log.warning("slots not handed over: their appends are not settled in time", slots=len(announced))
            await self._call_off(announced)
            return
        ready = await self._ready_heirs({slot.next_owner for slot in announced.values()})
        handed = {
            number: Slot(slot.next_owner, slot.epoch + 1)
            for number, slot in announced.items()
            if slot.next_owner in ready
        }
        if handed and await self._change(handed):
            self.handovers += len(handed)
            log.info("slots handed over", slots=len(handed))
        await self._call_off({number: slot for number, slot in announced.items() if number not in handed})
        self.wake()

    async def _ready_heirs(self, heirs: set[str]) -> set[str]:
        """Which of these nodes may become owners.

        Who does not read its inbox would push new entries ahead of what waits there, and answer nobody either. But this
        node may be leaving: then who was silent for a whole lease, and is not dead, gets what there is at last.
        """
        ready = set(await self._holder.reach(heirs))
        now_s = trio.current_time()
        self._silent_since_s = {heir: self._silent_since_s.get(heir, now_s) for heir in heirs - ready}
        if self._lease.draining:
            ready |= {heir for heir, since_s in self._silent_since_s.items() if now_s - since_s >= self._lease.lease_s}
        return ready

    async def _call_off(self, announced: Mapping[int, Slot]) -> None:
        """Accept slots again that cannot be handed over now, and leave them alone for a while unless there is none."""
        again = {number: Slot(slot.owner, slot.epoch) for number, slot in announced.items()}
        if again and await self._change(again) and not self._lease.draining:
            self._not_leaving.update(dict.fromkeys(again, trio.current_time() + HANDOVER_RETRY_S))

    async def _take_back(self, rightful: list[str]) -> None:
        """Accept again what was to go to somebody who is no more."""
        own = self._lease.incarnation
        orphans = {
            number: Slot(own, slot.epoch)
            for number, slot in enumerate(self.table.slots)
            if slot.owner == own and slot.next_owner and rightful[number] in ("", own)
        }
        if orphans:
            await self._change(orphans)

    async def _remove_dead_leases(self) -> None:
        """Delete the rows of the dead to whom no slot refers: the first of the living does it."""
        if min(self._watch.live) != self._lease.incarnation:
            return
        owners = {slot.owner for slot in self.table.slots}
        for incarnation in self._watch.dead:
            if incarnation not in owners and await self._coordination.remove_lease(incarnation):
                for notify in self.on_removed:
                    notify(incarnation)

    # --- The table --------------------------------------------------------------------------------------------------

    async def _change(self, changed: Mapping[int, Slot]) -> bool:
        """Write some slots; False if somebody else wrote meanwhile. Raises Unavailable: then nothing is known."""
        slots = tuple(changed.get(number, slot) for number, slot in enumerate(self.table.slots))
        version = self.table.version
        # What is given away is closed before it is written, because the answer may be lost.
        for number, slot in changed.items():
            if slot.owner != self._lease.incarnation or slot.next_owner:
                self._accepted[number] = 0
            if slot.owner != self._lease.incarnation:
                self._epochs[number] = 0
        if not await self._coordination.change_slots(version, slots):
            return False
        self.wrote_version = version + 1
        self._adopt(SlotTable(version + 1, slots))
        return True

    def _adopt(self, table: SlotTable) -> None:
        """Take a table for true. Slots that came or went change what this node accepts."""
        if self._lease.fenced:
            return
        changed = table.version != self.table.version
        own = self._lease.incarnation
        self.table = table
        for number, slot in enumerate(table.slots):
            mine = slot.epoch if slot.owner == own else 0
            self._epochs[number] = mine
            self._accepted[number] = 0 if slot.next_owner else mine
        if changed:
            self._adopted_s = self._watch.now_s()
            if any(self._watch.is_dead(slot.owner) for slot in table.slots):
                self._watch.wake()
            for notify in self.on_change:
                notify()
