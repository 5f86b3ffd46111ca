"""What can go wrong for a user of the client, and the one error that stays inside it."""

from protocol.errors import ErrorCode

_KNOWN = {int(code): code for code in ErrorCode}


class ClientError(Exception):
    """Base of everything that the client raises on purpose."""


class ClientClosed(ClientError):
    """The client will not connect again: it was closed, or only a person can put right what stopped it.

    Attributes:
        code: the WebSocket close code or HTTP status behind it, 0 when there is none.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class TokenRefused(ClientClosed):
    """The node does not accept the token, and the provider has no other one."""


class Replaced(ClientClosed):
    """The same device of the same user connected elsewhere. Two clients need two device names."""


class NotReachable(ClientError):
    """No connection came about within the time given; the message tells why the last attempt failed."""


class RequestTimeout(ClientError):
    """No answer within the time given. The command may or may not have been carried out."""


class Refused(ClientError):
    """The node refused a command.

    Attributes:
        code: an ErrorCode where this version knows it, else the bare number.
        message: the node's explanation.
    """

    def __init__(self, code: int, message: str) -> None:
        self.code: int = _KNOWN.get(code, code)
        self.message = message
        name = self.code.name if isinstance(self.code, ErrorCode) else f"error {code}"
        super().__init__(f"{name}: {message}")

    @property
    def retry(self) -> bool:
        """May the same command succeed later? Codes of a newer version count as final."""
        return isinstance(self.code, ErrorCode) and self.code.retry


class SendRefused(Refused):
    """A message was refused for good: it is not in the conversation and never will be."""


class SendExpired(ClientError):
    """A message could not be sent for so long that repeating it might double it; its outcome is unknown."""


class SendQueueFull(ClientError):
    """Too many messages wait to be sent; the message tells how many are allowed."""


class StateFileError(ClientClosed):
    """The state file cannot be used: locked by another process, of another user, or no state file at all."""


class ConnectionLost(ClientError):
    """The connection ended before the answer came. Stays inside the client, which connects and asks again."""
