"""How long to wait before the next attempt: full jitter, doubling, bounded.

The delay is uniform between 0 and a bound that starts at ``base_s`` and doubles with each failure up to ``max_s``
(limits.RECONNECT_BASE_S and RECONNECT_MAX_S for connections). So clients that lost the same node come back spread
over time, and the first of them at once.
"""

import random
from typing import Final

from protocol import limits

STABLE_S: Final = 10.0
"""Seconds online after which a connection counts as a success. Less would let a node that accepts and hangs up
be asked again at once, for ever."""


class Backoff:
    """Delays between attempts of one kind.

    Args:
        base_s: bound of the first delay, seconds.
        max_s: bound of any delay, seconds.
        rng: source of the jitter; a seeded one makes a test repeatable.
    """

    def __init__(
        self,
        base_s: float = limits.RECONNECT_BASE_S,
        max_s: float = limits.RECONNECT_MAX_S,
        rng: random.Random | None = None,
    ) -> None:
        self._base_s = base_s
        self._max_s = max_s
        self._rng = rng if rng is not None else random.Random()
        self.failures = 0

    def bound(self) -> float:
        """Upper bound of the delay after the failures so far, seconds; 0 before the first."""
        if self.failures == 0:
            return 0.0
        # 2.0**1024 overflows a float; 30 doublings are beyond any bound already.
        return min(self._max_s, self._base_s * 2.0 ** min(self.failures - 1, 30))

    def fail(self, *, at_once: bool = False) -> float:
        """Count a failure and draw the delay before the next attempt, seconds.

        ``at_once`` asks for no delay; it is granted to the first failure in a row only.
        """
        self.failures += 1
        if at_once and self.failures == 1:
            return 0.0
        return self._rng.uniform(0.0, self.bound())

    def succeed(self) -> None:
        """Begin anew: the next failure is the first."""
        self.failures = 0
