"""Between edge and owner: the only thing that the two know of each other.

The edge hands commands to whoever owns the conversation; the owner hands back replies, deliveries and signals. In one
process these are plain calls (LocalBroker); between nodes they travel.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

from msgspec import Struct

from protocol.frames import Command, Push, Reply


class Origin(Protocol):
    """Where a command came from and its reply goes: a connection, or a caller inside this process."""

    @property
    def user(self) -> str: ...


class Delivery(Struct, gc=False):
    """Durable entries of one conversation, for its members, in seq order.

    Attributes:
        conversation_id: the conversation.
        recipients: user ids; a snapshot that nobody changes afterwards.
        entries: encoded entries (msgpack of protocol.frames.Entry), oldest first.
        origins: per entry, the origin that sent it and is not to get it back, or None.
        arrived_s: when the oldest of the sends arrived, seconds of trio's clock; 0 when unknown.
    """

    conversation_id: str
    recipients: Collection[str]
    entries: Sequence[bytes]
    origins: Sequence[Origin | None]
    arrived_s: float = 0.0


class Head(Struct, frozen=True, gc=False):
    """The last entry of a conversation.

    Attributes:
        seq: its place in the log.
        time_us: its time, microseconds since 1970.
    """

    seq: int
    time_us: int


CHANNEL_ID_CHARS: Final = 25
_FOLLOWERS: Final = "channel:"


def channel_id_of(digest: str) -> str:
    """The id of a channel, made of 24 characters; what is a channel is told by it everywhere."""
    return "c" + digest


def is_channel(conversation_id: str) -> bool:
    """Whether a conversation is a channel."""
    return len(conversation_id) == CHANNEL_ID_CHARS and conversation_id[0] == "c"


def followers_of(channel_id: str) -> str:
    """The recipient that stands for all who follow a channel, wherever they are connected.

    A channel's members are too many to be named, or even looked up, for every entry. So its deliveries are for this one
    recipient. Each node knows which of the users connected to it follow the channel (``gateway.edge.followers``), and
    the session directory knows by this name, as if it were a user's, at which nodes anybody does. Users whom an entry
    adds or removes are recipients besides, so that their nodes and those where the channel is followed learn of it;
    where they alone are, it is told again.
    """
    return _FOLLOWERS + channel_id


def channel_followed_by(recipient: str) -> str:
    """The channel whose followers a recipient stands for; empty: it is a user."""
    return recipient.removeprefix(_FOLLOWERS) if recipient.startswith(_FOLLOWERS) else ""


class OwnerPort(Protocol):
    """What the edge may ask of an owner."""

    def submit(self, origin: Origin, command: Command) -> None:
        """Handle a command for a conversation. Commands of one origin for one conversation keep their order.

        The reply goes to ``EdgePort.reply``, possibly before this returns.
        """


class EdgePort(Protocol):
    """What an owner may ask of the edge. Plain calls: nothing here waits."""

    def reply(self, origin: Origin, reply: Reply, conversation_id: str = "") -> None:
        """Answer a command. With ``conversation_id``, not before the deliveries of that conversation made so far."""

    def not_owner(self, origin: Origin, command: Command) -> None:
        """Give back a command that this node did not carry out, because another owns its conversation by now.

        Commands of one origin for one conversation come back in the order they went in.
        """

    def is_gone(self, origin: Origin) -> bool:
        """Whether nobody waits for a reply any more, so that work for it can be saved."""

    def when_room(self, origin: Origin, then: Callable[[], None]) -> None:
        """Call ``then`` once the origin has taken what it was sent; never if it goes away before.

        Between two large replies: who answers more than a send queue holds has to wait for its reader.
        """

    def deliver(self, delivery: Delivery) -> None:
        """Write entries to all connections of the recipients. Deliveries of one conversation keep their order."""

    def together(self) -> AbstractContextManager[object]:
        """Let what is written until the end of the ``with`` leave then, with one write for each connection."""

    def signal(self, recipients: Collection[str], push: Push, conversation_id: str, skip: Origin | None = None) -> None:
        """Send a push that may be shed (receipt, typing) to the recipients, except the connection ``skip``."""
