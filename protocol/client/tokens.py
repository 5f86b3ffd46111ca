"""Where tokens come from: a string, or a function that is asked for a fresh one."""

from collections.abc import Awaitable, Callable

TokenProvider = str | Callable[[], Awaitable[str]]
"""A token, or an async function that returns one: called at each connect and when the node says that the token runs
out. An OSError from it counts as a network that is down for now; any other error ends the client."""


class Tokens:
    """The tokens of one client.

    Args:
        provider: where they come from.

    Attributes:
        in_use: the token last fetched.
        reason: why a token was last refused, with the close code or HTTP status in ``code``.
    """

    def __init__(self, provider: TokenProvider) -> None:
        self._provider = provider
        self._refused = ""
        self.in_use = ""
        self.reason = ""
        self.code = 0

    async def fetch(self) -> str:
        """Get a token. Cancelling leaves nothing behind here; the provider answers for itself."""
        self.in_use = self._provider if isinstance(self._provider, str) else await self._provider()
        return self.in_use

    def refuse(self, reason: str, code: int) -> None:
        """The node does not accept the token in use (any more)."""
        self._refused, self.reason, self.code = self.in_use, reason, code

    @property
    def exhausted(self) -> bool:
        """Is the token in use one that was refused before? Then asking the provider again will not help."""
        return bool(self._refused) and self.in_use == self._refused
