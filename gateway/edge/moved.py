"""What a Sync has to know of a user's conversations: which there are, how far they are, how far the user is."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from msgspec.structs import replace

from gateway.broker import Head
from protocol.frames import Seq
from store.entries import Involvement, Membership
from store.interface import Store, Unavailable


class Heads(Protocol):
    """Knows heads without reading logs."""

    async def heads(self, user: str, conversation_ids: Collection[str]) -> Mapping[str, Head]:
        """Heads at least as high as everything that was acknowledged before, and no higher than what is durable for
        good; those that are not known are missing.
        """

    async def ask_owners(self, user: str, conversation_ids: Collection[str]) -> Mapping[str, Head]:
        """The same, said by the owners now; those that do not answer are missing."""


async def standing(
    store: Store, heads: Heads | None, user: str, cursors: Mapping[str, Seq], only_named: bool
) -> list[Membership]:
    """The user's conversations; without ``heads`` from the store alone.

    With ``heads``, what a Sync does not need is not filled in, the last entry above all. With ``only_named`` those
    without a cursor may be missing. Cancelling is safe.

    Raises:
        Unavailable: the store could not be read, or nobody can say how far a conversation is. Its log alone cannot:
            what an owner has under way looks like the rest, and may come to nothing.
    """
    if heads is None:
        return await store.memberships(user)
    involved = {
        each.conversation_id: each
        for each in await store.involvements(user)
        if not only_named or each.conversation_id in cursors
    }
    known = dict(await heads.heads(user, involved))
    behind = [each for each, head in known.items() if cursors.get(each, 0) > head.seq]
    if behind:
        for each in behind:
            del known[each]
        known.update(await heads.ask_owners(user, behind))
    _require(known, involved)
    return [_membership(involvement, known[each]) for each, involvement in involved.items()]


async def described(store: Store, heads: Heads | None, user: str, page: Sequence[Membership]) -> list[Membership]:
    """Some of the conversations that ``standing`` found, with all that a list shows of them, in no particular order.

    With ``heads`` only these are read, and what an owner has under way is not shown; one that the user is not in any
    more may be missing. Raises Unavailable. Cancelling is safe.
    """
    if heads is None:
        return list(page)
    # Read after the heads were known: which rows count up to them is settled by then.
    found = await store.memberships(user, page)
    known = {each.conversation_id: Head(each.head_seq, each.head_time_us) for each in page}
    return [await _up_to(store, each, known[each.conversation_id]) for each in found]


async def _up_to(store: Store, membership: Membership, head: Head) -> Membership:
    """What is said of a conversation by its log, no further than its head."""
    if membership.head_seq <= head.seq:
        return membership
    (last,) = await store.read(
        membership.conversation_id, after_seq=head.seq - 1, before_seq=head.seq + 1, limit=1, newest=True
    )
    return replace(membership, head_seq=head.seq, head_time_us=head.time_us, last_encoded=last)


def _require(known: Mapping[str, Head], conversation_ids: Collection[str]) -> None:
    missing = sum(each not in known for each in conversation_ids)
    if missing:
        raise Unavailable(f"the owners of {missing} of {len(conversation_ids)} conversations do not answer just now")


def _membership(involvement: Involvement, head: Head) -> Membership:
    return Membership(
        involvement.conversation_id,
        involvement.kind,
        "",
        involvement.joined_seq,
        head.seq,
        head.time_us,
        b"",
        involvement.delivered_seq,
        involvement.read_seq,
        0,
        involvement.peer,
    )
