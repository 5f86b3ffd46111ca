"""What a Sync has to know of a user's conversations: which there are, how far they are, how far the user is."""

from collections.abc import Collection, Mapping
from typing import Protocol

from gateway.broker import Head
from protocol.frames import Seq
from store.entries import Involvement, Membership
from store.interface import Store


class Heads(Protocol):
    """Knows heads without reading logs."""

    async def heads(self, user: str, conversation_ids: Collection[str]) -> Mapping[str, Head]:
        """Heads at least as high as everything that was acknowledged before; those that are not known are missing."""


async def standing(
    store: Store, heads: Heads | None, user: str, cursors: Mapping[str, Seq], only_named: bool
) -> list[Membership]:
    """The user's conversations; without ``heads`` from the store alone. Raises Unavailable.

    With ``heads``, what a Sync does not need is not filled in, the last entry above all, and what is not said of a
    conversation by its head is read in its log: where nobody knows one, or a cursor is beyond it. With ``only_named``
    those without a cursor may be missing. Cancelling is safe.
    """
    if heads is None:
        return await store.memberships(user)
    involved = {
        each.conversation_id: each
        for each in await store.involvements(user)
        if not only_named or each.conversation_id in cursors
    }
    known = await heads.heads(user, involved)
    found = {}
    unsure = False
    for conversation_id, involvement in involved.items():
        head = known.get(conversation_id)
        if head is None or cursors.get(conversation_id, 0) > head.seq:
            unsure = True
        else:
            found[conversation_id] = _membership(involvement, head)
    if unsure:
        for each in await store.memberships(user):
            if each.conversation_id in involved:
                found.setdefault(each.conversation_id, each)
    return list(found.values())


def _membership(involvement: Involvement, head: Head) -> Membership:
    return Membership(
        involvement.conversation_id,
        involvement.kind,
        "",
        head.seq,
        head.time_us,
        b"",
        involvement.delivered_seq,
        involvement.read_seq,
        0,
    )
