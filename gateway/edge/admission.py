"""How much one connection may ask for, and one user over HTTP."""

from collections import OrderedDict
from typing import Final

import trio

from gateway.config import Settings
from gateway.edge.connection import Connection, ConnectionTable
from gateway.refusals import Refused
from protocol.errors import ErrorCode

USERS_MAX: Final = 65_536
"""Users whose requests over HTTP are counted at once, some 15 MB of them: more than a node answers in the seconds after
which one that has paused is forgotten. Above it, who has been silent for longest begins anew."""

FORGOTTEN_AT_ONCE: Final = 2
"""Users that have paused and are forgotten with each request: one more than a request can add."""


class Admission:
    """Rate limit by GCRA (ITU-T I.371, "virtual scheduling"): one number per connection, when its next one is due.

    Over HTTP connections come and go, so there it is one number per user: all of a user's requests together may be as
    many as the commands of one connection.

    Attributes:
        refused: commands, pings and requests refused, ever.
    """

    def __init__(self, settings: Settings, table: ConnectionTable) -> None:
        self._table = table
        self._interval_s = 1 / settings.commands_per_s_max if settings.commands_per_s_max else 0.0
        self._ahead_s = self._interval_s * (settings.commands_burst_max - 1)
        self._burst_max = settings.commands_burst_max
        self._due_s: OrderedDict[str, float] = OrderedDict()  # by user, who asked last at the end
        self._per_s_max = settings.commands_per_s_max
        self.refused = 0

    @property
    def users(self) -> int:
        """Users who are remembered because of requests."""
        return len(self._due_s)

    def wait_s(self, connection: Connection) -> float:
        """Seconds that this connection has to wait before one more; 0 admits it, and counts it."""
        if not self._interval_s:
            return 0.0
        now, cells, fd = self._table.now, self._table.allowance_s, connection.fd
        due = cells[fd]
        if due > now + self._ahead_s:
            self.refused += 1
            return due - now - self._ahead_s
        cells[fd] = (max(now, due)) + self._interval_s
        return 0.0

    def admit_user(self, user: str) -> None:
        """Count one more request of a user over HTTP. Raises Refused: too early."""
        if not self._interval_s:
            return
        now = trio.current_time()
        self._forget(now)
        due = self._due_s.pop(user, now)
        wait_s = due - now - self._ahead_s
        self._due_s[user] = due if wait_s > 0 else max(now, due) + self._interval_s
        if len(self._due_s) > USERS_MAX:
            self._due_s.popitem(last=False)
        if wait_s > 0:
            self.refused += 1
            raise self.refusal("requests a second of one user", wait_s)

    def refusal(self, what: str, wait_s: float) -> Refused:
        """What is answered to one more of ``what``, which has to wait."""
        wait_ms = int(wait_s * 1000) + 1
        return Refused(
            ErrorCode.RATE_LIMITED,
            f"more than {self._per_s_max:g} {what}, {self._burst_max} at once; "
            f"nothing was done: repeat it in {wait_ms} ms",
            wait_ms,
        )

    def _forget(self, now: float) -> None:
        """Forget who has paused for so long that nothing is left to be known of them."""
        for _ in range(min(FORGOTTEN_AT_ONCE, len(self._due_s))):
            user, due = next(iter(self._due_s.items()))
            if due > now:
                break
            del self._due_s[user]
