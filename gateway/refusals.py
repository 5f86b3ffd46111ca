"""Refusals of commands: each says what was wrong, what is allowed and what to do."""

from typing import Final

from protocol import limits
from protocol.errors import ErrorCode
from protocol.frames import ErrorReply

OVERLOADED_RETRY_MS: Final = 500
"""Milliseconds after which an overloaded command may come again: some fifty group commits."""

UNAVAILABLE_RETRY_MS: Final = 1_000
"""Milliseconds after which a command that found the store unavailable may come again."""

NOT_FOUND_TEXT: Final = (
    "there is no such conversation, or you are not in it; check conversation_id, or have a member add you"
)


class Refused(Exception):
    """A command that is not carried out; becomes an ErrorReply."""

    def __init__(self, code: ErrorCode, message: str, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms

    def reply(self, request_id: int) -> ErrorReply:
        """The answer to the command with this id."""
        return ErrorReply(request_id, int(self.code), self.message, self.retry_after_ms)


class NotOwner(Refused):
    """This node does not own the conversation (any more): the command is for another."""

    def __init__(self) -> None:
        refusal = unavailable("the conversation is moving to another node")
        super().__init__(refusal.code, refusal.message, refusal.retry_after_ms)


def not_found() -> Refused:
    """No such conversation, or the user is not in it: the same words for both, so that nobody can tell them apart."""
    return Refused(ErrorCode.NOT_FOUND, NOT_FOUND_TEXT)


def overloaded(waiting: int, what: str = "commands") -> Refused:
    """Too much waits for the store."""
    return Refused(
        ErrorCode.OVERLOADED,
        f"{waiting} {what} already wait for the store, which is all this node takes; "
        f"nothing was stored: repeat it in {OVERLOADED_RETRY_MS} ms",
        OVERLOADED_RETRY_MS,
    )


def fault() -> Refused:
    """A bug of ours: whether something was stored, a repeat finds out."""
    return Refused(ErrorCode.INTERNAL, "a fault of the node, which has logged it: repeat it with the same id")


def unavailable(what: str) -> Refused:
    """Nothing was stored, and the same command may be repeated."""
    return Refused(
        ErrorCode.UNAVAILABLE,
        f"{what}; nothing was stored: repeat it with the same ids in {UNAVAILABLE_RETRY_MS} ms",
        UNAVAILABLE_RETRY_MS,
    )


def outcome_unknown() -> Refused:
    """It may or may not be stored; the repeat finds out."""
    return Refused(
        ErrorCode.OUTCOME_UNKNOWN,
        "the store did not say in time whether this was stored; "
        f"repeat it with the same client_msg_id and a greater attempt in {UNAVAILABLE_RETRY_MS} ms",
        UNAVAILABLE_RETRY_MS,
    )


def beyond_head(name: str, seq: int, conversation_id: str, head_seq: int) -> Refused:
    """A seq that the conversation has not reached."""
    return Refused(
        ErrorCode.BEYOND_HEAD,
        f"{name} is {seq}, but the head of conversation {conversation_id} is {head_seq}; "
        f"give a seq of at most {head_seq}",
    )


def too_long(what: str, length: int, allowed: int, unit: str) -> Refused:
    """A text or list longer than allowed."""
    return Refused(
        ErrorCode.TOO_LONG, f"{what} has {length} {unit}, at most {allowed} are allowed; shorten it and send it again"
    )


def body_empty() -> Refused:
    """A message without a body."""
    return Refused(
        ErrorCode.BODY_EMPTY, f"the body is empty; a message has 1 to {limits.BODY_CHARS_MAX} characters: give it one"
    )


def client_msg_id_reused(client_msg_id: str, seq: int) -> Refused:
    """A client_msg_id that names another content already."""
    return Refused(
        ErrorCode.CLIENT_MSG_ID_REUSED,
        f"client_msg_id {client_msg_id!r} was used before for something else (the entry with seq {seq}); "
        "an id may be repeated only with the same content: choose a new one",
    )
