"""Logging what strangers cause, so that they cannot fill the log."""

from typing import Final

import structlog
import trio

LOG_INTERVAL_S: Final = 10.0
"""Seconds between two log lines of one place about what strangers do; the second one says how many there were."""

log = structlog.get_logger(__name__)


class Seldom:
    """Warnings of one place in the code, of which a stranger may cause any number."""

    def __init__(self) -> None:
        self._again_s = -float("inf")
        self._unlogged = 0

    def warn(self, event: str, **details: object) -> None:
        """Log this, or only count it: the next line tells."""
        now = trio.current_time()
        if now < self._again_s:
            self._unlogged += 1
            return
        log.warning(event, **details, others_since_last_line=self._unlogged)
        self._again_s, self._unlogged = now + LOG_INTERVAL_S, 0
