"""Where tokens come from: a string, or a function that is asked for a fresh one."""

from collections.abc import Awaitable, Callable

from protocol.client.errors import ClientClosed

TokenProvider = str | Callable[[], Awaitable[str]]
"""A token, or an async function that returns one: called at each connect and when the node says that the token runs
out. An OSError from it counts as a network that is down for now; any other error ends the client. White space around a
token, as a file has it at its end, is not part of it."""


class Tokens:
    """The tokens of one client.

    Args:
        provider: where they come from.

    Attributes:
        in_use: the token of the present connection, or of the attempt at one.
        reason: why a token was last refused, with the close code or HTTP status in ``code``.
    """

    def __init__(self, provider: TokenProvider) -> None:
        self._provider = provider
        self._refused = ""
        self.in_use = ""
        self.reason = ""
        self.code = 0

    async def fetch(self) -> str:
        """Get a token, and put it to use. Raises, and may be cancelled, as ``ask``."""
        self.in_use = await self.ask()
        return self.in_use

    async def ask(self) -> str:
        """Get a token. Cancelling leaves nothing behind here; the provider answers for itself.

        Raises:
            OSError: the provider found the network down.
            ClientClosed: it failed in another way.
        """
        if isinstance(self._provider, str):
            return self._provider.strip()
        try:
            return (await self._provider()).strip()  # one that was read from a file ends with its line
        except OSError:
            raise
        except Exception as error:
            raise ClientClosed(f"the token provider failed: {error!r}") from error

    def refuse(self, reason: str, code: int) -> None:
        """The node does not accept the token in use (any more)."""
        self._refused, self.reason, self.code = self.in_use, reason, code

    @property
    def exhausted(self) -> bool:
        """Is the token in use one that was refused before? Then asking the provider again will not help."""
        return bool(self._refused) and self.in_use == self._refused
