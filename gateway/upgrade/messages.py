"""What predecessor and successor tell each other, in this order: Offer, Ready, Begin, Chunk and Ack in turn, Taken.

Instead of any of its messages the successor may send Failed. Times are seconds of the predecessor's trio clock; the
clock behind both processes' is the machine's, so that the successor can translate them (``Begin``).
"""

from typing import Final

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from protocol.websocket import ReaderState

FORMAT: Final = 2
"""Raised when messages change so that an older or newer program would not understand them."""

CONNECTIONS_PER_CHUNK: Final = 250
"""Sockets that one message takes along; the kernel allows 253 descriptors."""

CHUNKS_UNACKNOWLEDGED_MAX: Final = 4
"""Chunks on their way: a thousand sockets, few against what a process may have in flight (its file limit)."""


class Offer(Struct, array_like=True, tag=1):
    """The predecessor says who it is.

    Attributes:
        format: FORMAT there.
        version: of its program.
        pid: of its process.
        store: its kind of store.
        data_dir: its data directory, absolute.
        same: settings which its successor has to have, too, as text by name.
        estate: what a successor has to know of the estate before it is ready; descriptors of it come along.
    """

    format: int
    version: str
    pid: int
    store: str
    data_dir: str
    same: dict[str, str] = {}
    estate: bytes = b""


class Ready(Struct, array_like=True, tag=2):
    """The successor could go on at once, as far as it can know without having anything yet."""

    format: int
    version: str


class Failed(Struct, array_like=True, tag=3):
    """The successor cannot take over, and ends."""

    reason: str


class Begin(Struct, array_like=True, tag=4):
    """The predecessor stands still. Takes the descriptors of the listening sockets along, and then the estate's.

    Attributes:
        listeners: how many listening sockets.
        connections: how many connections will come.
        now_s: the predecessor's trio clock at this moment.
        monotonic_s: the machine's monotonic clock at the same moment.
        left_ago_s: watched users within the grace period of presence, and seconds since they left.
        estate: state of what the node owns besides (see ``ports.Estate``).
        followed: channels that somebody follows, who, and the seqs of the entries by which they are in.
    """

    listeners: int
    connections: int
    now_s: float
    monotonic_s: float
    left_ago_s: dict[str, float]
    estate: bytes
    followed: dict[str, dict[str, int]] = {}


class Extra(Struct, array_like=True):
    """What few connections have.

    Attributes:
        reader: the partial frame or message.
        queue: chunks of the send queue.
        begun: whether the first of them was sent in part.
        since_s: when the queue last got smaller.
        closing_s: when a closing connection is cut off; 0: it is open.
        noticed: it was told that its token runs out.
        watches: users whose presence it watches.
    """

    reader: ReaderState | None
    queue: list[bytes]
    begun: bool
    since_s: float
    closing_s: float
    noticed: bool
    watches: tuple[str, ...]


class Chunk(Struct, array_like=True, tag=5):
    """Some connections, in the order of the descriptors that come along. Arrays are as ``array.tobytes`` gives them.

    Attributes:
        users: user ids.
        families: address family of each socket, unsigned bytes.
        json: 1 for a connection that speaks JSON, bytes.
        heard_s, ends_s, device_key, allowance_s: cells of the table.
        extras: by place in the chunk.
    """

    users: list[str]
    families: bytes
    json: bytes
    heard_s: bytes
    ends_s: bytes
    device_key: bytes
    allowance_s: bytes
    extras: dict[int, Extra]


class Ack(Struct, array_like=True, tag=6):
    """The successor has one more chunk."""


class Taken(Struct, array_like=True, tag=7):
    """The successor has everything and begins to serve: the point of no return."""


Message = Offer | Ready | Failed | Begin | Chunk | Ack | Taken

encode: Final = Encoder().encode
decoder: Final[Decoder[Message]] = Decoder(Message)
