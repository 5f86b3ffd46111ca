"""How much one connection may ask for."""

from gateway.config import Settings
from gateway.edge.connection import Connection, ConnectionTable


class Admission:
    """Rate limit by GCRA (ITU-T I.371, "virtual scheduling"): one number per connection, when its next one is due.

    Attributes:
        refused: commands and pings refused, ever.
    """

    def __init__(self, settings: Settings, table: ConnectionTable) -> None:
        self._table = table
        self._interval_s = 1 / settings.commands_per_s_max if settings.commands_per_s_max else 0.0
        self._ahead_s = self._interval_s * (settings.commands_burst_max - 1)
        self.per_s_max = settings.commands_per_s_max
        self.refused = 0

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
