"""What nodes send each other: parcels of items, as msgpack.

A parcel is everything that one pass of the sender's loop has for one receiver. Its number counts up by one from the
first parcel of that sender for that receiver, so that the receiver notices what got lost on the way.
"""

from typing import Final

import msgspec
from msgspec import Struct

from protocol.frames import (
    AddMembers,
    CreateConversation,
    GetConversation,
    History,
    ListMembers,
    MarkReceipt,
    ReceiptPush,
    RemoveMembers,
    Rename,
    Reply,
    Send,
    Typing,
    TypingPush,
)

NODE_PROTOCOL: Final = 1
"""Version of what nodes send each other, as this program speaks it to all who know it."""

NODE_PROTOCOL_OLDEST: Final = 1
"""The oldest version that this program still speaks with nodes that know no newer one: see ``versions``."""


class Forwarded(Struct, tag=1, array_like=True, gc=False):
    """A command for an owner.

    Attributes:
        session: number that the sender gave to whoever the command is from; stable while it waits for a reply.
        user: its user.
        slot: the slot of its conversation.
        round: how often the sender has begun anew to send what this slot's owner is to get.
        command: the encoded command; its id is the sender's, and comes back in the reply.
    """

    session: int
    user: str
    slot: int
    round: int
    command: bytes


class Answered(Struct, tag=2, array_like=True, gc=False):
    """An owner's encoded reply; not to be written before the deliveries of ``conversation_id`` that came before it."""

    reply: bytes
    conversation_id: str


class GivenBack(Struct, tag=3, array_like=True, gc=False):
    """A command that was not carried out, because the slot has another owner."""

    request: int


class Delivered(Struct, tag=4, array_like=True, gc=False):
    """Entries for the receiver's users; ``sessions`` says who sent each and is not to get it back, 0: nobody there."""

    conversation_id: str
    recipients: list[str]
    entries: list[bytes]
    sessions: list[int]


class Signalled(Struct, tag=5, array_like=True, gc=False):
    """An encoded push that may be shed, for the receiver's users but the session ``skip``."""

    conversation_id: str
    recipients: list[str]
    push: bytes
    skip: int


class LinkBroken(Struct, tag=6, array_like=True, gc=False):
    """The sender of this missed parcels of the receiver: commands that are not answered are to be sent again."""


class TableChanged(Struct, tag=7, array_like=True, gc=False):
    """The slot table has at least this version."""

    version: int


class Hello(Struct, tag=8, array_like=True, gc=False):
    """The sender wants to know that the receiver has read all up to here: before it lets clients in, or hands over.

    Attributes:
        number: of the hello among all of its sender's.
    """

    number: int = 0


class Welcome(Struct, tag=9, array_like=True, gc=False):
    """The answer to Hello, at once: from now on this node counts with the receiver.

    Attributes:
        number: that of the hello.
    """

    number: int = 0


Item = Forwarded | Answered | GivenBack | Delivered | Signalled | LinkBroken | TableChanged | Hello | Welcome


class Parcel(Struct, array_like=True, gc=False):
    """Items in the order in which they happened.

    Attributes:
        sender: its incarnation.
        number: counts from 1 per sender and receiver.
        items: what happened.
        heads_from: number of the first hash of the sender's heads that counts: see ``heads.py``.
    """

    sender: str
    number: int
    items: list[Item]
    heads_from: int = 0


encode_parcel: Final = msgspec.msgpack.Encoder().encode
decode_parcel: Final = msgspec.msgpack.Decoder(Parcel).decode

OwnersCommand = (
    Send | CreateConversation | AddMembers | RemoveMembers | Rename | MarkReceipt | Typing
    | History | GetConversation | ListMembers
)  # fmt: skip
"""What a session of another node may ask of an owner."""

# A frame of another kind than belongs there is not understood either.
decode_command: Final = msgspec.msgpack.Decoder(OwnersCommand).decode
decode_reply: Final = msgspec.msgpack.Decoder(Reply).decode
decode_push: Final = msgspec.msgpack.Decoder(ReceiptPush | TypingPush).decode

NOT_UNDERSTOOD: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
"""What decoding a parcel, or a frame or entry in it, raises if it is not one of this program's."""
