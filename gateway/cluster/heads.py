"""The heads of conversations in Redis: one hash for each owner, which dies with its owner's word for it.

A head that is too low would hide entries from a client that comes back. So a head counts only if all of this holds:

- its hash is there: the owner renews it every second, and only while its lease is valid; it expires after HEADS_TTL_S,
  which is less than any takeover takes. A renewal that comes late finds no hash, and makes none;
- the hash belongs to the generation that the reader knows: a restored snapshot does not count;
- the head has the epoch of its slot that the reader knows, and the hash does not say that the owner gave the slot up
  under that epoch: an owner that gave it up and got it back begins anew.

The owner writes heads in front of the commands whose replies it waits for before it acknowledges. If it loses Redis it
makes a new hash when that is back, with the heads it remembers; until then its old one expires. What is missing is
asked of the owner.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import trio

from gateway.cluster.ports import Command, Generations, Head, Identity, RedisPort, SlotView
from gateway.cluster.redis_keys import heads as heads_key

HEADS_TTL_S: Final = 5
"""Seconds after which the heads of an owner that Redis does not hear of are gone: half a lease."""

RENEW_S: Final = 1.0
"""Seconds between two renewals."""

REMEMBERED_MAX: Final = 100_000
"""Heads that an owner remembers, to write them again; in two halves of which the older is dropped. Some 15 MB."""

FIELDS_MAX: Final = 1_000_000
"""Heads in a hash after which a new one is begun: some 100 MB in Redis."""

SLICE_HEADS: Final = 500
"""Heads written with one command when a hash is begun."""

GENERATION_FIELD: Final = "generation"
"""Holds the generation that a hash belongs to. No conversation is called so: their names begin with d or g and are
of 25 characters."""


def _slot_field(slot: int) -> str:
    """Holds the last epoch under which the owner gave a slot up."""
    return f"-{slot}"


class RedisHeads:
    """Implements ``Heads``.

    Attributes:
        written: heads submitted, ever.
        asked, found: heads asked for in Redis, and those that counted, ever.
        hashes: begun, ever.
    """

    def __init__(
        self,
        port: RedisPort,
        generations: Generations,
        incarnation: str,
        view: Callable[[str], SlotView | None],
        may_renew: Callable[[], bool],
    ) -> None:
        """Describe what is read and written.

        Args:
            port: the connection to Redis on which this node's parcels go, too.
            generations: knows which hints count.
            incarnation: this node's.
            view: who owns the slot of a conversation as far as this node knows; None: nobody just now.
            may_renew: whether this node's lease is valid.
        """
        self.written = 0
        self.asked = 0
        self.found = 0
        self.hashes = 0
        self._port = port
        self._generations = generations
        self._incarnation = incarnation
        self._key = heads_key(incarnation)
        self._view = view
        self._may_renew = may_renew
        self._writing = False
        self._pending: dict[str, str] = {}
        self._recent: dict[str, str] = {}
        self._older: dict[str, str] = {}
        self._given_up: dict[int, int] = {}
        self._fields = 0
        self._renewed_s = -float(HEADS_TTL_S)
        port.listeners.append(self)
        generations.on_new.append(lambda _new: self._begin_hash())

    # --- The owner --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """See Heads.begin."""
        if not self._writing:
            self._writing = True
            self._begin_hash()

    def end(self) -> None:
        """See Heads.end."""
        self._writing = False
        self._pending, self._recent, self._older = {}, {}, {}
        self._port.submit([("UNLINK", self._key)], lambda _replies: None)

    def write(self, conversation_id: str, epoch: int, head: Head) -> None:
        """See Heads.write."""
        if not self._writing:
            return
        value = f"{epoch}:{head.seq}:{head.time_us}"
        if len(self._recent) >= REMEMBERED_MAX // 2:
            self._older, self._recent = self._recent, {}
        self._recent[conversation_id] = self._pending[conversation_id] = value

    def flush(self) -> None:
        """See Heads.flush."""
        if self._pending:
            pending, self._pending = self._pending, {}
            self._submit(pending)

    async def give_up(self, epochs: Mapping[int, int]) -> None:
        """See Heads.give_up."""
        self._given_up.update(epochs)
        written = trio.Event()
        known = False

        def answer(replies: Sequence[object] | None) -> None:
            nonlocal known
            known = replies is not None
            written.set()

        fields = [part for slot, epoch in epochs.items() for part in (_slot_field(slot), epoch)]
        self._port.submit([("HSET", self._key, *fields) if self._writing else ("UNLINK", self._key)], answer)
        await written.wait()
        if not known:
            await trio.sleep_until(self._renewed_s + HEADS_TTL_S)

    async def run(self) -> None:
        """Renew the hash until cancelled, which leaves it to expire."""
        while True:
            await trio.sleep(RENEW_S)
            if self._writing and self._generations.current and self._may_renew():
                if self._fields > FIELDS_MAX:
                    self._begin_hash()
                else:
                    self._renewed_s = trio.current_time()
                    # A hash that had expired may be there again, by a head written since: it does not count as it is.
                    renew = (("EXPIRE", self._key, HEADS_TTL_S), ("HSETNX", self._key, GENERATION_FIELD, ""))
                    self._port.submit(renew, self._renewed)

    def _renewed(self, replies: Sequence[object] | None) -> None:
        if replies is not None and replies[1] and self._writing:
            self._begin_hash()

    def _begin_hash(self) -> None:
        """Begin a hash with what is remembered, and make it count with the last of the commands."""
        if not self._writing or not self._generations.current or not self._may_renew():
            # ``run`` begins it as soon as it may, because it finds none.
            return
        self.hashes += 1
        self._fields = 0
        self._port.submit([("UNLINK", self._key)], lambda _replies: None)
        remembered = self._older | self._recent
        names = list(remembered)
        for start in range(0, len(names), SLICE_HEADS):
            self._submit({name: remembered[name] for name in names[start : start + SLICE_HEADS]})
        fields: list[str | int] = [GENERATION_FIELD, self._generations.current]
        for slot, epoch in self._given_up.items():
            fields += (_slot_field(slot), epoch)
        self._renewed_s = trio.current_time()
        # Together, so that what counts surely expires.
        begin = (("MULTI",), ("HSET", self._key, *fields), ("EXPIRE", self._key, HEADS_TTL_S), ("EXEC",))
        self._port.submit(begin, lambda _replies: None)

    def _submit(self, values: Mapping[str, str]) -> None:
        self.written += len(values)

        def answer(replies: Sequence[object] | None) -> None:
            if replies is not None and isinstance(replies[0], int):
                self._fields += replies[0]

        parts = [part for pair in values.items() for part in pair]
        self._port.submit([("HSET", self._key, *parts)], answer)

    # --- Whoever asks -----------------------------------------------------------------------------------------------

    async def heads(self, conversation_ids: Collection[str]) -> Mapping[str, Head]:
        """See Heads.heads. Cancelling changes nothing. Those of this node's own slots are not looked for."""
        generation = self._generations.current
        by_owner: dict[str, dict[str, SlotView]] = {}
        for conversation_id in conversation_ids:
            view = self._view(conversation_id)
            if view is not None and view.owner and view.owner != self._incarnation:
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
        for owner, views in by_owner.items():
            slots = {view.slot for view in views.values()}
            fields = (GENERATION_FIELD, *map(_slot_field, slots), *views)
            commands += (("CLIENT", "CACHING", "NO"), ("HMGET", heads_key(owner), *fields))
            self.asked += len(views)
        self._port.submit(commands, answer)
        await answered.wait()
        # A flush that was executed before the reply has been reported before it.
        if answers[0] is None or self._generations.current != generation:
            return {}
        found: dict[str, Head] = {}
        for views, reply in zip(by_owner.values(), answers[0][1::2], strict=True):
            _read_hash(generation, views, reply, found)
        self.found += len(found)
        return found

    # --- RedisListener ----------------------------------------------------------------------------------------------

    def back(self, identity: Identity) -> None:
        """See RedisListener.back. A hash is begun once the generation is known."""

    def lost(self) -> None:
        """See RedisListener.lost. What was not written is remembered."""

    def invalidated(self, keys: Collection[str] | None) -> None:
        """See RedisListener.invalidated. Heads are not cached."""


def _read_hash(generation: str, views: Mapping[str, SlotView], reply: object, found: dict[str, Head]) -> None:
    """Take the heads that count from what an owner's hash says."""
    assert isinstance(reply, list), "HMGET gives an array"
    slots = list({view.slot for view in views.values()})
    if reply[0] != generation.encode():
        return
    ended = {slot: int(epoch or -1) for slot, epoch in zip(slots, reply[1 : 1 + len(slots)], strict=True)}
    for (conversation_id, view), value in zip(views.items(), reply[1 + len(slots) :], strict=True):
        if value is None:
            continue
        epoch, seq, time_us = map(int, value.split(b":"))
        if ended[view.slot] < epoch == view.epoch:
            found[conversation_id] = Head(seq, time_us)
