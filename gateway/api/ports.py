"""What the HTTP API asks of its node, and nothing more of the node is known here."""

from typing import Protocol

from msgspec import Struct

from gateway.auth import Identity
from protocol.frames import Command, Reply


class Check(Struct, frozen=True):
    """One condition of readiness: what is checked, whether it holds, and, when it does not, why."""

    name: str
    ok: bool
    detail: str = ""


class NodePort(Protocol):
    """The node behind the API."""

    @property
    def address(self) -> str:
        """Where the node listens, ``http://HOST:PORT``: shown on the API page and in its commands."""

    @property
    def started(self) -> bool:
        """Whether it takes work yet."""

    async def call(self, user: str, command: Command) -> Reply:
        """Handle a command on behalf of ``user`` and return its reply, an ErrorReply included.

        After a cancellation the outcome of an appending command is unknown; it may be repeated with the same
        ``client_msg_id``.
        """

    async def verify(self, token: str) -> Identity:
        """Whose token it is. Raises gateway.auth.TokenRefused. Cancelling is safe."""

    def admit(self, user: str) -> None:
        """Count one more request of a user. Raises gateway.refusals.Refused: too many; it says when to come back."""

    def readiness(self) -> list[Check]:
        """Whether new work is welcome: store writable, accepting connections, not draining."""

    def render_metrics(self) -> bytes:
        """All metrics in the Prometheus text format."""
