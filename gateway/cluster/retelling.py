"""Telling receipts once more that other nodes may have missed, because Redis was away or about to be lost.

Nothing else would make up for them: who syncs reads entries and no receipts of others. So it is remembered whose
pointers were told lately, and all whose were while Redis was away; and when it is back, or another node says that
parcels got lost, their pointers as they are then are told to all nodes. Pointers only rise, so a repeat does no harm.

Where Redis never was, nothing can be made up for when it is back: only what was told lately is remembered, for parcels
that get lost on the direct way.

Best effort, as all receipts are: what this node does not own any more by then, another may tell with the next one.
"""

from collections.abc import Callable
from typing import Final

import structlog
import trio

LATELY_S: Final = 15.0
"""Seconds for which a receipt counts as told lately: by then it is noticed that Redis, or a parcel, was lost."""

KEPT_MAX: Final = 50_000
"""Members whose receipts are remembered at once, some 10 MB; of more, those that were told last."""

RETELL_AFTER_S: Final = 3.0
"""Seconds between the return of Redis and telling: the other nodes come back to it, and read what is sent by it."""

SLICE: Final = 200
"""Receipts told at once: some milliseconds."""

PAUSE_S: Final = 0.05
"""Seconds between two slices: 4,000 receipts a second."""

log = structlog.get_logger(__name__)


class Retelling:
    """Remembers whose receipts were told, and tells them again.

    Attributes:
        told: receipts told again, ever.
    """

    def __init__(self, tell: Callable[[str, str], None], away: Callable[[], bool]) -> None:
        """Describe how.

        Args:
            tell: tells everybody the pointers of a member (conversation, user) if this node knows them.
            away: whether Redis is.
        """
        self.told = 0
        self._tell = tell
        self._away = away
        self._noted_s: dict[tuple[str, str], float] = {}  # when told last; in this order
        self._forgotten = 0
        self._met = False  # whether Redis was ever there
        self._pending = False
        self._telling = False
        self._wake = trio.Event()

    @property
    def everywhere(self) -> bool:
        """Whether receipts have to go to all nodes, because the directory may not know who is where."""
        return self._is_away() or self._pending

    @property
    def _awaits_redis(self) -> bool:
        """Whether Redis is away and was there: its return is what tells again."""
        return self._is_away() and self._met

    def _is_away(self) -> bool:
        away = self._away()
        self._met = self._met or not away
        return away

    def note(self, conversation_id: str, user: str) -> None:
        """A receipt is being told."""
        if self._telling:
            return  # again: it counts from the first time
        member = conversation_id, user
        self._noted_s.pop(member, None)
        self._noted_s[member] = trio.current_time()
        if len(self._noted_s) > KEPT_MAX:
            del self._noted_s[next(iter(self._noted_s))]
            self._forgotten += self._awaits_redis or self._pending
        if not (self._awaits_redis or self._pending):
            self._forget_old()

    def soon(self) -> None:
        """Redis is back, or parcels got lost: tell again what may not have been heard."""
        self._is_away()
        self._pending = True
        self._wake.set()

    async def run(self) -> None:
        """Tell again whenever it is time, until cancelled; what was not told again then is not."""
        while True:
            await self._wake.wait()
            await trio.sleep(RETELL_AFTER_S)
            self._wake = trio.Event()
            if not self._awaits_redis:
                await self._tell_all()
            # Else its next return tells; until then nothing is forgotten.
            self._pending = self._wake.is_set()

    async def _tell_all(self) -> None:
        members = list(self._noted_s)
        for start in range(0, len(members), SLICE):
            self._telling = True
            for conversation_id, user in members[start : start + SLICE]:
                self._tell(conversation_id, user)
            self._telling = False
            self.told += len(members[start : start + SLICE])
            await trio.sleep(PAUSE_S)
        if members:
            log.info("receipts told again", members=len(members), forgotten=self._forgotten)
        if not self._awaits_redis:
            self._forgotten = 0
            self._forget_old()

    def _forget_old(self) -> None:
        old_s = trio.current_time() - LATELY_S
        while self._noted_s:
            member = next(iter(self._noted_s))
            if self._noted_s[member] >= old_s:
                return
            del self._noted_s[member]
