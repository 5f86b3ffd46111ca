"""Notices when this node has to go on without Redis although it is not alone, and when that is over; and says so.

Sends are acknowledged all the same. Presence and typing pause, other nodes are reached directly, and clients read the
store now and then: an operator has to know, because delivery is slower as long as it lasts.
"""

from collections.abc import Callable
from typing import Final

import structlog
import trio

LOOK_S: Final = 1.0
"""Seconds between two looks: an outage that is over by the next one is in the log of the connection alone."""

log = structlog.get_logger(__name__)


class Degradation:
    """Watches one condition.

    Attributes:
        begun: times that it began, ever.
    """

    def __init__(self, degraded: Callable[[], bool], reason: Callable[[], str], *, directly: bool) -> None:
        """Describe what is watched.

        Args:
            degraded: whether Redis is away and there are other nodes.
            reason: why it is away.
            directly: whether other nodes can be reached without it.
        """
        self.begun = 0
        self._degraded = degraded
        self._reason = reason
        self._directly = directly
        self._since_s: float | None = None

    @property
    def now(self) -> bool:
        """Whether this node goes on without Redis just now."""
        return self._degraded()

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            self.look()
            await trio.sleep(LOOK_S)

    def look(self) -> None:
        """Say what has begun or ended since the last look."""
        if self._degraded():
            if self._since_s is None:
                self._since_s = trio.current_time()
                self.begun += 1
                log.warning(
                    "degraded mode begins: presence and typing pause, and clients read the store now and then",
                    reason=self._reason(),
                    nodes_reached="directly" if self._directly else "not at all: there is no cluster_secret",
                )
        elif self._since_s is not None:
            log.warning("degraded mode ends", lasted_s=round(trio.current_time() - self._since_s, 1))
            self._since_s = None
