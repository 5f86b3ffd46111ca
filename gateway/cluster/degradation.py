"""Notices when this node has to go on without Redis although it is not alone, and when that is over; and says so.

Sends are acknowledged all the same. Presence and typing pause, other nodes are reached directly, and clients read the
store now and then: an operator has to know, because delivery is slower as long as it lasts. A node that is alone asks
Redis nothing, so it loses nothing by its absence; the next node that comes begins in degraded mode.
"""

from collections.abc import Callable
from typing import Final

import trio

from store.recurring import Recurring

LOOK_S: Final = 1.0
"""Seconds between two looks: an outage that is over by the next one is in the log of the connection alone."""

NO_REDIS_URL: Final = "there is no redis_url"
"""Why a node does without Redis that was given none: its operator knows."""


class Degradation:
    """Watches one condition.

    Attributes:
        begun: times that it began, ever.
    """

    def __init__(
        self, away: Callable[[], bool], alone: Callable[[], bool], reason: Callable[[], str], *, directly: bool
    ) -> None:
        """Describe what is watched.

        Args:
            away: whether Redis is away.
            alone: whether there is no other node.
            reason: why it is away.
            directly: whether other nodes can be reached without it.
        """
        self.begun = 0
        self._away = away
        self._alone = alone
        self._reason = reason
        self._directly = directly
        self._trouble = Recurring(
            "degraded mode begins: presence and typing pause, and clients read the store now and then",
            "degraded mode ends",
            "degraded mode goes on",
        )

    @property
    def now(self) -> bool:
        """Whether this node goes on without Redis just now."""
        return self._away() and not self._alone()

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            self.look()
            await trio.sleep(LOOK_S)

    def look(self) -> None:
        """Say what has begun or ended since the last look, and now and then what goes on."""
        if self.now:
            if not self._trouble.lasts:
                self.begun += 1
            self._trouble.came(
                reason=self._reason(),
                nodes_reached="directly" if self._directly else "not at all: there is no cluster_secret",
            )
        elif self._away():
            self._trouble.over(
                "degraded mode ends: no other node is left, and one alone needs no Redis; it is still away",
                reason=self._reason(),
            )
        else:
            self._trouble.over()
