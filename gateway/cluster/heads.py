"""The heads of conversations in Redis, so that a client that comes back costs neither its owners nor the log a read.

A head that is too low would hide entries from a client that comes back. Why none is, of those that ``RedisHeads.heads``
gives and ``Standing`` has confirmed:

1. *One owner, one hash.* Each incarnation writes its heads into a hash of its own, and only those of conversations that
   it owns, with the epoch of the slot. An entry's head is written in front of the barrier whose reply its owner waits
   for before it acknowledges, on the same connection. So while the barrier is answered, the hash has every head that
   was acknowledged.
2. *When the barrier is not answered*, the owner acknowledges all the same: Redis is a hint. Before it does, it declares
   its hash void: hashes are numbered, and every parcel says from which number on those of its sender count. Others
   stop believing the hash with the next parcel, and have their connections resync, because some may have believed it
   in between. If that parcel gets lost, too, its number is missing in the link, which has the same consequence. A hash
   of a sender that was never heard of does not count; a node lets clients in only when all who live have welcomed it.
3. *Another owner.* The reader takes the owner and epoch of a slot from the table as it knows it, which may be old. So
   after the heads it reads the table itself, and what does not say the same owner and epoch there is not believed. An
   owner that took over appends only after its claim was in the table: at the time of that read it had not begun, and
   what its predecessor acknowledged was in the hash. So neither leases nor the time that anything takes matter here,
   and a slot that is handed over needs no word to Redis.
4. *What was lost.* A hash counts only with a field that says which generation of hints, and which number, it is: it is
   written last when a hash is begun. Heads written after a flush or an eviction therefore make a hash that does not
   count, until its owner, who looks every second, has begun the next one with the heads that it remembers. One that
   came back from a snapshot is of another generation.

What is missing is asked of the owner, which thereby remembers it. A hash expires HEADS_TTL_S after its owner's last
renewal, so that nothing is left of the dead.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import trio

from gateway.broker import Head
from gateway.cluster.own_heads import OwnHeads, read_head
from gateway.cluster.ports import Command, Generations, HeadsState, Identity, RedisPort, SlotView
from gateway.cluster.redis_keys import heads as heads_key

HEADS_TTL_S: Final = 5
"""Seconds after which the heads of an owner that Redis does not hear of are gone."""

RENEW_S: Final = 1.0
"""Seconds between two renewals."""

FIELDS_MAX: Final = 1_000_000
"""Heads in a hash after which a new one is begun: some 100 MB in Redis."""

SLICE_HEADS: Final = 500
"""Heads written with one command when a hash is begun."""

GENERATION_FIELD: Final = "generation"
"""Holds the generation that a hash belongs to, and its number. No conversation is called so: their names begin with d
or g and are of 25 characters."""


class RedisHeads:
    """Implements ``Heads``.

    Attributes:
        counts_from: number of the first hash of this node that others may believe; told in every parcel.
        on_void: called when that has risen.
        written: heads submitted, ever.
        asked, found: heads asked for in Redis, and those that counted, ever.
        hashes: the number of the hash begun last; they count up.
    """

    def __init__(
        self,
        port: RedisPort,
        generations: Generations,
        incarnation: str,
        own: OwnHeads,
        believed_from: Callable[[str], int | None],
        last_hash: int = 0,
    ) -> None:
        """Describe what is read and written.

        Args:
            port: the connection to Redis on which this node's parcels go, too.
            generations: knows which hints count.
            incarnation: this node's.
            own: the heads of this node's own conversations.
            believed_from: number of the first hash of another incarnation that counts; None: nothing is known of it.
            last_hash: a number higher than that of any hash that an earlier process of this incarnation has begun.
        """
        self.counts_from = last_hash + 1
        self.on_void: Callable[[], None] = lambda: None
        self.written = 0
        self.asked = 0
        self.found = 0
        self.hashes = last_hash
        self._port = port
        self._generations = generations
        self._own = own
        self._key = heads_key(incarnation)
        self._incarnation = incarnation
        self._believed_from = believed_from
        self._fields = 0
        port.listeners.append(self)
        generations.on_new.append(lambda _new: self._begin_hash())

    # --- The owner --------------------------------------------------------------------------------------------------

    @property
    def _writing(self) -> bool:
        return self._own.changed is not None

    def begin(self) -> None:
        """See Heads.begin."""
        if not self._writing:
            self._own.changed = {}
            self._begin_hash()

    def end(self) -> None:
        """See Heads.end."""
        if self._writing:
            self._own.changed = None
            # The command may get lost, and who comes later would find the hash: it is told that it does not count.
            self.counts_from = self.hashes + 1
            self._port.submit([("UNLINK", self._key)], lambda _replies: None)

    def state(self) -> HeadsState:
        """See Heads.state."""
        return HeadsState(self.hashes, self.counts_from, self._fields, self._writing)

    def restore(self, state: HeadsState) -> None:
        """See Heads.restore. What is remembered is less than before, and grows again."""
        self.hashes, self.counts_from, self._fields = state.hashes, state.counts_from, state.fields
        self._own.changed = {} if state.writing else None

    def flush(self) -> None:
        """See Heads.flush."""
        changed = self._own.changed
        if changed:
            self._own.changed = {}
            if self._generations.current:
                self._submit(changed)
            else:
                self._void()

    async def run(self) -> None:
        """Renew the hash until cancelled, which leaves it to expire."""
        while True:
            await trio.sleep(RENEW_S)
            if self._writing and self._generations.current:
                if self._fields > FIELDS_MAX or self.counts_from > self.hashes:
                    self._begin_hash()
                else:
                    # A hash that had expired may be there again, by a head written since: it does not count as it is.
                    renew = (("EXPIRE", self._key, HEADS_TTL_S), ("HSETNX", self._key, GENERATION_FIELD, ""))
                    self._port.submit(renew, self._renewed)

    def _renewed(self, replies: Sequence[object] | None) -> None:
        if replies is not None and replies[1] and self._writing:
            self._begin_hash()

    def _begin_hash(self) -> None:
        """Begin a hash with what is remembered, and make it count with the last of the commands."""
        if not self._writing or not self._generations.current:
            return  # ``run`` begins it as soon as it may, because it finds none
        self.hashes += 1
        self._fields = 0
        self._port.submit([("UNLINK", self._key)], self._taken)
        remembered = self._own.remembered()
        names = list(remembered)
        for start in range(0, len(names), SLICE_HEADS):
            self._submit({name: remembered[name] for name in names[start : start + SLICE_HEADS]})
        # Together, so that what counts surely expires.
        name = f"{self._generations.current}:{self.hashes}"
        begin = (
            ("MULTI",),
            ("HSET", self._key, GENERATION_FIELD, name),
            ("EXPIRE", self._key, HEADS_TTL_S),
            ("EXEC",),
        )
        self._port.submit(begin, self._taken)

    def _submit(self, values: Mapping[str, str]) -> None:
        self.written += len(values)

        def answer(replies: Sequence[object] | None) -> None:
            if replies is not None and isinstance(replies[0], int):
                self._fields += replies[0]
            self._taken(replies)

        parts = [part for pair in values.items() for part in pair]
        self._port.submit([("HSET", self._key, *parts)], answer)

    def _taken(self, replies: Sequence[object] | None) -> None:
        if replies is None:
            self._void()

    def _void(self) -> None:
        """What is acknowledged from now on may be missing in the hash: nobody may believe it any more."""
        if self._writing and self.counts_from <= self.hashes:
            self.counts_from = self.hashes + 1
            self.on_void()

    # --- Whoever asks -----------------------------------------------------------------------------------------------

    async def heads(self, views: Mapping[str, SlotView]) -> Mapping[str, Head]:
        """See Heads.heads. Cancelling changes nothing. Those of this node's own slots are not looked for."""
        generation = self._generations.current
        by_owner: dict[str, dict[str, SlotView]] = {}
        for conversation_id, view in views.items():
            if view.owner and view.owner != self._incarnation:
                by_owner.setdefault(view.owner, {})[conversation_id] = view
        if not generation or not by_owner:
            await trio.lowlevel.checkpoint()
            return {}
        answers: list[Sequence[object] | None] = []
        answered = trio.Event()

        def answer(replies: Sequence[object] | None) -> None:
            answers.append(replies)
            answered.set()

        commands: list[Command] = []
        for owner, wanted in by_owner.items():
            commands += (("CLIENT", "CACHING", "NO"), ("HMGET", heads_key(owner), GENERATION_FIELD, *wanted))
            self.asked += len(wanted)
        self._port.submit(commands, answer)
        await answered.wait()
        # A flush that was executed before the reply has been reported before it.
        if answers[0] is None or self._generations.current != generation:
            return {}
        found: dict[str, Head] = {}
        for (owner, wanted), reply in zip(by_owner.items(), answers[0][1::2], strict=True):
            first = self._believed_from(owner)
            if first is not None:
                _read_hash(generation, first, wanted, reply, found)
        self.found += len(found)
        return found

    # --- RedisListener ----------------------------------------------------------------------------------------------

    def back(self, identity: Identity) -> None:
        """See RedisListener.back. A hash is begun once the generation is known."""

    def lost(self) -> None:
        """See RedisListener.lost. What was not written is remembered."""
        self._void()

    def invalidated(self, keys: Collection[str] | None) -> None:
        """See RedisListener.invalidated. Heads are not cached."""


def _read_hash(
    generation: str, first: int, views: Mapping[str, SlotView], reply: object, found: dict[str, Head]
) -> None:
    """Take the heads that count from what an owner's hash says; ``first``: the first of its hashes that counts."""
    assert isinstance(reply, list), "HMGET gives an array"
    begun, _, number = (reply[0] or b"").decode().partition(":")
    if begun != generation or int(number) < first:
        return
    for (conversation_id, view), value in zip(views.items(), reply[1:], strict=True):
        if value is not None:
            epoch, head = read_head(value.decode())
            if epoch == view.epoch:
                found[conversation_id] = head
