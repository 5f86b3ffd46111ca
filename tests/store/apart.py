"""Tables that look empty although others have written into them: a Cassandra empties no table while a node is away."""

from collections.abc import Collection, Sequence
from typing import Any

from msgspec.structs import replace

from store.interface import StoreError
from store.segments import Segments
from store.tables import (
    ConversationRow,
    ConversationTables,
    Described,
    EntriesDone,
    EntryRow,
    EntryWrite,
    InvolvementRow,
    LastSeen,
    Members,
    RowWrite,
)


class Apart:
    """``ConversationTables`` in which every conversation and every user has a name of its own, marked in front."""

    def __init__(self, tables: ConversationTables, mark: str) -> None:
        """Use these tables, in which nobody else uses ``mark``."""
        self._tables = tables
        self._mark = mark

    def _marked(self, names: Collection[str]) -> list[str]:
        return [self._mark + name for name in names]

    def _bare(self, name: str) -> str:
        return name.removeprefix(self._mark)

    def _behind(self, place: tuple[str, int] | None) -> tuple[str, int] | None:
        return place and (self._mark + place[0], place[1])

    async def conversation(self, conversation_id: str, *, serial: bool) -> ConversationRow | None:
        row = await self._tables.conversation(self._mark + conversation_id, serial=serial)
        return row and replace(row, conversation_id=conversation_id)

    async def insert_conversation(self, row: ConversationRow) -> bool:
        return await self._tables.insert_conversation(replace(row, conversation_id=self._mark + row.conversation_id))

    async def change_segments(self, conversation_id: str, nonce: str, new_nonce: str, segments: Segments) -> bool:
        return await self._tables.change_segments(self._mark + conversation_id, nonce, new_nonce, segments)

    def write_entries(self, writes: Sequence[EntryWrite], done: EntriesDone) -> None:
        given = {}
        marked = []
        for write in writes:
            marked.append(replace(write, conversation_id=self._mark + write.conversation_id))
            given[id(marked[-1])] = marked[-1], write

        def tell(outcomes: Sequence[tuple[EntryWrite, StoreError | None]]) -> None:
            done([(given[id(each)][1], error) for each, error in outcomes])

        self._tables.write_entries(marked, tell)

    async def entries(self, conversation_id: str, bucket: int, **bounds: Any) -> list[EntryRow]:
        return await self._tables.entries(self._mark + conversation_id, bucket, **bounds)

    async def members(self, conversation_id: str, *, after: tuple[str, int] | None, limit: int) -> Members:
        found = await self._tables.members(self._mark + conversation_id, after=self._behind(after), limit=limit)
        return self._bare_members(found)

    async def stays(self, conversation_id: str, users: Collection[str]) -> Members:
        return self._bare_members(await self._tables.stays(self._mark + conversation_id, self._marked(users)))

    def _bare_members(self, found: Members) -> Members:
        return replace(found, rows=[replace(row, user=self._bare(row.user)) for row in found.rows])

    async def involvements(self, user: str, *, after: tuple[str, int] | None, limit: int) -> list[InvolvementRow]:
        rows = await self._tables.involvements(self._mark + user, after=self._behind(after), limit=limit)
        return [replace(row, conversation_id=self._bare(row.conversation_id)) for row in rows]

    async def last_seen(self, users: Collection[str]) -> dict[str, int]:
        found = await self._tables.last_seen(self._marked(users))
        return {self._bare(user): seen_ms for user, seen_ms in found.items()}

    async def write(self, rows: Sequence[RowWrite]) -> None:
        await self._tables.write([self._mark_row(row) for row in rows])

    def _mark_row(self, row: RowWrite) -> RowWrite:
        if isinstance(row, LastSeen):
            return replace(row, user=self._mark + row.user)
        if isinstance(row, Described):
            return replace(row, conversation_id=self._mark + row.conversation_id)
        return replace(row, conversation_id=self._mark + row.conversation_id, user=self._mark + row.user)
