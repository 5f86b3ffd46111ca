"""Parts of the protocol, each left out in turn: a simulation that does not notice proves nothing.

These switches are here and nowhere else: the product has none.
"""

import enum
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import trio
from msgspec.structs import replace

from gateway.cluster.handing_on import HandingOn, _Moves
from gateway.cluster.links import Links
from gateway.cluster.ownership import SlotOwnership
from gateway.cluster.parcels import decode_parcel
from gateway.cluster.slots import slot_of
from gateway.edge import catchup
from gateway.edge.moved import Heads
from gateway.owner.conversation import Conversation
from gateway.owner.lookups import Lookups
from protocol.frames import Seq
from store.cassandra_coordination import CassandraCoordination
from store.coordination import LeaseRecord
from store.entries import Loaded, Membership
from store.interface import Store
from store.segments import Segments, covering
from store.tables import ConversationRow, EntryRow
from tests.simulation.cassandra import NodeTables


class Mutation(enum.Enum):
    """What is left out."""

    LEASE_CHECK = "an owner acknowledges without looking at its lease"
    DEAD_MARK = "who is silent for a lease is believed dead, and its row goes on saying that it lives"
    SEGMENTS = "of several rows of one seq the one of the highest epoch counts, whatever the segments say"
    CONVERSATION_LWT = "a conversation's row is written whatever it says"
    DEDUPLICATION = (
        "an owner that takes a conversation over knows nothing of what was sent before, and looks nothing up"
    )
    LINK_NUMBERS = "nobody counts parcels"
    MOVES = "what Redis reports of users while they are looked up is forgotten"
    HEIRS = "a slot is handed over although its next owner has not read what was delivered to it"
    HEADS = "who comes back is told what the end of a log shows, whatever becomes of it"


@contextmanager
def without(mutation: Mutation) -> Iterator[None]:
    """Leave it out for a while."""
    with ExitStack() as stack:
        for owner, method, instead in _INSTEAD[mutation]:
            stack.enter_context(patch.object(owner, method, instead))
        yield


def _may_speak(self: SlotOwnership, conversation_id: str, epoch: int) -> bool:
    return self._epochs[slot_of(conversation_id)] == epoch


_read_leases = CassandraCoordination.leases


async def _believe_dead(self: CassandraCoordination, incarnation: str, _nonce: int) -> bool:
    self.__dict__.setdefault("believed_dead", set()).add(incarnation)
    return True


async def _leases(self: CassandraCoordination) -> list[LeaseRecord]:
    dead = self.__dict__.get("believed_dead", ())
    return [replace(row, alive=row.alive and row.incarnation not in dead) for row in await _read_leases(self)]


async def _entries(self: NodeTables, conversation_id: str, bucket: int, **options: Any) -> list[EntryRow]:
    limit, newest = options.pop("limit"), options["newest"]
    highest: dict[int, EntryRow] = {}
    for row in await _read_entries(self, conversation_id, bucket, limit=2**31, **options):
        if row.seq not in highest or row.epoch > highest[row.seq].epoch:
            highest[row.seq] = row
    segments = self.conversations[conversation_id].segments
    rows = []
    for seq in sorted(highest, reverse=newest)[:limit]:
        segment = covering(segments, seq)
        rows.append(EntryRow(seq, segment.epoch if segment else 0, highest[seq].encoded))
    return rows


_read_entries = NodeTables.entries


async def _change_segments(
    self: NodeTables, conversation_id: str, _nonce: str, new_nonce: str, segments: Segments
) -> bool:
    def apply() -> bool:
        row = self.conversations[conversation_id]
        self.conversations[conversation_id] = ConversationRow(
            conversation_id, row.kind, row.creator, row.created_us, row.first, segments, new_nonce
        )
        return True

    return await self._change("change_segments", apply)


async def _find_nothing(_self: Lookups, *_asked: Any) -> None:
    return None


_fill = Conversation.fill


def _fill_without_keys(self: Conversation, loaded: Loaded, epoch: int) -> None:
    _fill(self, loaded, epoch)
    self.recent.clear()


_receive = Links._receive


def _receive_uncounted(self: Links, encoded: bytes) -> None:
    parcel = decode_parcel(encoded)
    self._expected[parcel.sender] = parcel.number
    _receive(self, encoded)


_leave = HandingOn._leave


def _leave_with_news_only(self: HandingOn, handing: Any) -> None:
    handing.moves = _Moves()
    self._all_moves.add(handing.moves)
    _leave(self, handing)


async def _reach_nobody(_self: Links, incarnations: Collection[str]) -> Collection[str]:
    await trio.lowlevel.checkpoint()
    return incarnations


async def _stand_as_logs_end(
    store: Store, _heads: Heads | None, user: str, _cursors: Mapping[str, Seq], _only_named: bool
) -> list[Membership]:
    return await store.memberships(user)


_INSTEAD: dict[Mutation, Sequence[tuple[Any, str, Any]]] = {
    Mutation.LEASE_CHECK: [(SlotOwnership, "may_speak", _may_speak)],
    Mutation.DEAD_MARK: [
        (CassandraCoordination, "mark_dead", _believe_dead),
        (CassandraCoordination, "leases", _leases),
    ],
    Mutation.SEGMENTS: [(NodeTables, "entries", _entries)],
    Mutation.CONVERSATION_LWT: [(NodeTables, "change_segments", _change_segments)],
    Mutation.DEDUPLICATION: [(Lookups, "_ask", _find_nothing), (Conversation, "fill", _fill_without_keys)],
    Mutation.LINK_NUMBERS: [(Links, "_receive", _receive_uncounted)],
    Mutation.MOVES: [(HandingOn, "_leave", _leave_with_news_only)],
    Mutation.HEIRS: [(Links, "reach", _reach_nobody)],
    Mutation.HEADS: [(catchup, "standing", _stand_as_logs_end)],
}
