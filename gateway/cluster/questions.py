"""What an operator may ask a node of a cluster, over a direct connection and with the cluster's secret.

Leases and slots are in Cassandra for everybody to read. What only the node knows it tells here, and it may be told to
drain. Whoever asks proves to know ``cluster_secret``, as another node does; no client can.
"""

import os
from types import TracebackType
from typing import Final, Self

import msgspec
import trio
from msgspec import Struct

from gateway.cluster.peer_handshake import Incoming, PeerRefused, dial
from gateway.cluster.peers import HANDSHAKE_S, LOSSES, QUESTION, split_address

OPERATOR: Final = "operator"
"""Who asks, in the handshake and in the node's log. Names of incarnations have a colon."""

ANSWER_S: Final = 5.0
"""Seconds for an answer: a node answers between two passes of its loop."""

ANSWER_BYTES_MAX: Final = 64 * 1024
"""Size of an answer: some hundred times what one takes."""


class AskStatus(Struct, tag=1, array_like=True):
    """How is the node?"""


class AskDrain(Struct, tag=2, array_like=True):
    """The node is to drain."""


Question = AskStatus | AskDrain


class NodeStatus(Struct, tag=1):
    """How the node is.

    Attributes:
        version: of its program.
        address: where clients reach it.
        connections, users: that it holds.
        conversations: that its owner holds in memory.
        slots: that it owns, as it knows.
        lease_s: seconds for which its lease is valid without a renewal; 0: it may acknowledge nothing.
        draining: whether it leaves.
        redis: why it does without Redis; empty: it has it.
        waiting: commands that wait for the store, or for another node.
        unrenewed_s: for each other incarnation that lives, seconds since this node saw its lease renewed.
    """

    version: str
    address: str
    connections: int
    users: int
    conversations: int
    slots: int
    lease_s: float
    draining: bool
    redis: str
    waiting: int
    unrenewed_s: dict[str, float] = {}


class Drains(Struct, tag=2):
    """The node drains from now on.

    Attributes:
        within_s: when it has ended at the latest, seconds from now.
    """

    within_s: float


class Declined(Struct, tag=3):
    """The node does not do it. ``reason``: why not, and what to do, for an operator."""

    reason: str


Answer = NodeStatus | Drains | Declined

encode: Final = msgspec.msgpack.Encoder().encode
decode_question: Final = msgspec.msgpack.Decoder(Question).decode
_decode_answer: Final = msgspec.msgpack.Decoder(Answer).decode


class NotAnswered(Exception):
    """A node could not be asked; the message says why.

    Attributes:
        refused: whether something answers there, and refuses.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class Asking:
    """A direct connection to a node for questions; an async context manager."""

    def __init__(self, address: str, key: bytes, incarnation: str) -> None:
        """Describe it.

        Args:
            address: where other nodes reach the node, ``HOST:PORT``.
            key: of proofs, see ``peer_handshake.key_of``.
            incarnation: which life of the node is asked.
        """
        self._address = address
        self._key = key
        self._incarnation = incarnation
        self._stream: trio.SocketStream
        self._incoming: Incoming

    async def __aenter__(self) -> Self:
        """Connect. Raises NotAnswered."""
        try:
            with trio.fail_after(HANDSHAKE_S):
                self._stream = await trio.open_tcp_stream(*split_address(self._address))
        except LOSSES as error:
            raise _not_answered(error) from None
        try:
            with trio.fail_after(HANDSHAKE_S):
                self._incoming = Incoming(self._stream)
                await dial(self._stream, self._incoming, self._key, OPERATOR, self._incarnation)
        except BaseException as error:
            await trio.aclose_forcefully(self._stream)
            if isinstance(error, LOSSES):
                raise _not_answered(error) from None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stream.aclose()

    async def ask(self, question: Question) -> Answer:
        """Ask, and wait for the answer. A cancellation leaves a connection of no use.

        Raises:
            NotAnswered: the node has ended, or does not answer.
        """
        payload = encode(question)
        try:
            with trio.fail_after(ANSWER_S):
                await self._stream.send_all(len(payload).to_bytes(4, "big") + QUESTION + payload)
                size = int.from_bytes(await self._incoming.exactly(4), "big")
                if size > ANSWER_BYTES_MAX:
                    raise PeerRefused(f"its answer has {size} bytes; allowed are {ANSWER_BYTES_MAX}")
                answer: Answer = _decode_answer(await self._incoming.exactly(size))
                return answer
        except (*LOSSES, msgspec.DecodeError) as error:
            raise _not_answered(error) from None


def _not_answered(error: BaseException) -> NotAnswered:
    return NotAnswered(_in_words(error), refused=isinstance(error, PeerRefused | msgspec.DecodeError))


def _in_words(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return "nothing answers"
    if isinstance(error, msgspec.DecodeError):
        return f"its answer is not understood, it may be of another version ({error})"
    while isinstance(error.__cause__, BaseExceptionGroup):  # trio tells that all attempts failed, and there why
        error = error.__cause__.exceptions[0]
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
