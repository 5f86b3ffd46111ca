"""Clients that come and go all the time."""

import time

from msgspec import Struct

from bench.load.accounts import CLOSE_FRAME, Door, user_names
from bench.load.connect import close_politely, open_connections

USERS = 1_000
"""Different users that take turns."""

FIRST_ADDRESS = 100
"""Where their 127.x addresses begin, away from those of the parked crowd."""


class Churn(Struct):
    """Connects in groups and leaves at once, at a steady rate."""

    door: Door
    group: int
    _requests: list[bytes] = []

    def __post_init__(self) -> None:
        """Make the tokens."""
        self._requests = self.door.requests(user_names(USERS, "churn"))

    def run(self, per_s: float, seconds: float) -> int:
        """Come and go at ``per_s`` connections a second (fewer if the node is slower); returns how many."""
        began, made = time.monotonic(), 0
        while (elapsed_s := time.monotonic() - began) < seconds:
            if made > per_s * elapsed_s:
                time.sleep(min(made / per_s - elapsed_s, seconds - elapsed_s))
                continue
            at = made % (USERS - self.group)
            connections = open_connections(
                self.door.host,
                self.door.port,
                self._requests[at : at + self.group],
                frames=self.door.welcome_frames,
                first_address=FIRST_ADDRESS + made // 1_000 % 100,
            )
            close_politely(connections, CLOSE_FRAME)
            made += self.group
        return made
