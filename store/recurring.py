"""Logging trouble that comes again and again, of one kind: when it begins, then now and then, and when it is over.

A store that is away is noticed several times a second by everybody who asks it. A line for each time would hide
whatever else the log has to say, and tells nothing that the first one did not.
"""

from typing import Final

import structlog
import trio

LOG_AGAIN_S: Final = 60.0
"""Seconds between two lines about trouble that lasts: whoever reads the end of a log sees it, and most other lines."""

log = structlog.get_logger(__name__)


class Recurring:
    """Trouble of one kind. Call ``came`` each time that it comes, and ``over`` each time that all is well."""

    def __init__(self, begins: str, ends: str, lasts: str = "") -> None:
        """Choose the words.

        Args:
            begins: what is logged when it comes for the first time.
            ends: what is logged when it is over.
            lasts: what is logged when it comes again; empty: the same as when it begins.
        """
        self._begins = begins
        self._ends = ends
        self._lasts = lasts or begins
        self._times = 0
        self._since_s = 0.0
        self._logged_s = 0.0

    @property
    def lasts(self) -> bool:
        """Whether it has come, and is not over."""
        return self._times > 0

    def came(self, **details: object) -> None:
        """It is there, perhaps again; ``details`` are logged with it, if it is logged."""
        now_s = trio.current_time()
        self._times += 1
        if self._times == 1:
            self._since_s = self._logged_s = now_s
            log.warning(self._begins, **details)
        elif now_s - self._logged_s >= LOG_AGAIN_S:
            self._logged_s = now_s
            log.warning(self._lasts, **details, times=self._times, lasted_s=self._lasted_s(now_s))

    def over(self, ends: str = "", **details: object) -> None:
        """All is well. Does nothing if it did not come before; ``ends``: words for this time."""
        if self._times:
            log.warning(ends or self._ends, **details, times=self._times, lasted_s=self._lasted_s(trio.current_time()))
            self._times = 0

    def _lasted_s(self, now_s: float) -> float:
        return round(now_s - self._since_s, 1)
