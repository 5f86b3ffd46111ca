"""Error codes (answers to a command) and close codes (ends of a connection): one enum each.

Every member carries what a client has to know: what it means and whether, and how, to try again. PROTOCOL.md prints
both tables; a test holds them to this file.
"""

from enum import IntEnum, unique


@unique
class ErrorCode(IntEnum):
    """Why a command was refused. ``retry`` says whether the same command may succeed later, unchanged."""

    meaning: str
    retry: bool

    def __new__(cls, value: int, meaning: str, retry: bool) -> "ErrorCode":
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        member.retry = retry
        return member

    BAD_REQUEST = 1, "a field is missing, of the wrong type or out of its range; the message names it", False
    UNKNOWN_COMMAND = 2, "this node does not know the command: it is newer than the node, or garbage", False
    NOT_AUTHENTICATED = 3, "the first frame must be authenticate", False
    TOKEN_REFUSED = 4, "the token is not acceptable; the message says why", False
    NOT_FOUND = 5, "there is no such conversation, or the user is not in it (the two are not told apart)", False
    FORBIDDEN = 6, "the user is in the conversation, but may not do this", False
    BODY_EMPTY = 7, "a message needs a body of at least one character", False
    TOO_LONG = 8, "a text or list is longer than allowed; the message tells both lengths", False
    BEYOND_HEAD = 9, "a seq beyond the head of the conversation; the message tells the head", False
    CLIENT_MSG_ID_REUSED = 10, "this client_msg_id was used before, for something else; choose a new one", False
    MEMBERS_LIMIT = 11, "the conversation would have more members than allowed", False
    RATE_LIMITED = 12, "too many commands; wait retry_after_ms, then repeat", True
    UNAVAILABLE = 13, "the node cannot store anything now and nothing was stored; repeat with the same id", True
    OUTCOME_UNKNOWN = 14, "it may or may not have been stored; repeat with the same client_msg_id", True
    INTERNAL = 15, "a fault of the node, which has logged it; repeating may help", True
    OVERLOADED = 16, "the node has too many commands waiting; nothing was stored; wait, then repeat", True


@unique
class CloseCode(IntEnum):
    """Why a connection ended (RFC 6455 section 7.4).

    ``reconnect`` says what a client does next: ``now`` (one attempt at once, then with backoff), ``backoff``,
    ``new_token`` (get a new token first, then with backoff) or ``never`` (a person has to change something).
    The ranges 4000-4099, 4100-4199 and 4200-4299 mean backoff, new_token and never for every code this version
    does not know; ``now`` is a refinement of the first.
    """

    meaning: str
    reconnect: str

    def __new__(cls, value: int, meaning: str, reconnect: str) -> "CloseCode":
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        member.reconnect = reconnect
        return member

    NORMAL = 1000, "the client asked for it", "never"
    GOING_AWAY = 1001, "the peer goes away", "backoff"
    PROTOCOL_ERROR = 1002, "a WebSocket frame broke RFC 6455", "backoff"
    UNSUPPORTED_DATA = 1003, "a text message under tidegate.v1, or a binary one under tidegate.v1.json", "never"
    INVALID_UTF8 = 1007, "a text message or a close reason was not UTF-8", "backoff"
    TOO_BIG = 1009, "a message was larger than 65,536 bytes or came in more than 128 fragments", "never"
    INTERNAL_ERROR = 1011, "a fault of the node, which has logged it", "backoff"
    SERVICE_RESTART = 1012, "the node drains or restarts; a goaway push told how long to wait", "backoff"

    SLOW_CONSUMER = 4000, "the client did not read fast enough; nothing is lost: reconnect and sync", "now"
    HEARTBEAT_TIMEOUT = 4001, "nothing was heard from the client for the idle timeout", "backoff"
    RESYNC = 4002, "the node lost track of what the client has; reconnect and sync", "now"

    TOKEN_EXPIRED = 4100, "the token ran out and was not refreshed in time", "new_token"
    TOKEN_REFUSED = 4101, "the token in the authenticate command is not acceptable", "new_token"
    AUTHENTICATE_TIMEOUT = 4102, "no authenticate command came in time", "new_token"

    REPLACED = 4200, "the same device connected again, or the user has too many: a newer connection took over", "never"
    BAD_FRAME = 4201, "a message was not a frame of this subprotocol: malformed msgpack or JSON", "never"


_BY_NUMBER = {int(code): code for code in CloseCode}


def reconnect_advice(code: int) -> str:
    """What a client does after a close with ``code``, known or not: now, backoff, new_token or never."""
    known = _BY_NUMBER.get(code)
    if known is not None:
        return known.reconnect
    if 4100 <= code < 4200:
        return "new_token"
    if 4200 <= code < 4300:
        return "never"
    return "backoff"
