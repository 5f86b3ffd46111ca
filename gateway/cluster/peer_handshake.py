"""How two nodes convince each other that they belong to one cluster, before a parcel goes straight between them.

Both know ``cluster_secret`` and neither sends it: each proves it on random bytes that the other has just chosen. So a
proof is good for one connection, needs no clock, and cannot be confused with a client's token, nor a token with it::

    dialer    PREAMBLE, 32 random bytes, its incarnation, the incarnation that it wants to reach
    listener  32 random bytes, proof as listener over all of that
    dialer    proof as dialer over all of that

The listener proves itself first: an address may have passed to somebody else since its lease was read.
"""

import hashlib
import hmac
import secrets
from typing import Final

import trio

from gateway.config import CLUSTER_SECRET_CHARACTERS_MIN

PREAMBLE: Final = b"tidegate peer 1\n"
"""Begins each connection; changes when what follows does."""

NONCE_BYTES: Final = 32
"""Random bytes from each side: enough never to repeat."""

PROOF_BYTES: Final = 32
"""Size of an HMAC-SHA256."""

NAME_BYTES_MAX: Final = 1_024
"""Size of an incarnation: a node's name and some random characters."""

RECEIVE_BYTES: Final = 64 * 1024
"""Read from a socket at once."""

_KEY_LABEL: Final = b"tidegate peer connections 1"  # another use of the same secret gets another key


class PeerRefused(Exception):
    """Who is at the other end does not belong there; the message says why."""


def key_of(cluster_secret: str) -> bytes:
    """The key of proofs. Raises ValueError if the secret is too short; the message is for operators."""
    if len(cluster_secret) < CLUSTER_SECRET_CHARACTERS_MIN:
        raise ValueError(
            f"cluster_secret has {len(cluster_secret)} characters; allowed: at least "
            f"{CLUSTER_SECRET_CHARACTERS_MIN}, the same on all nodes (make one with: openssl rand -base64 48)"
        )
    return hmac.digest(cluster_secret.encode(), _KEY_LABEL, hashlib.sha256)


class Incoming:
    """Reads exact numbers of bytes from a stream."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    @property
    def empty(self) -> bool:
        """Whether the next read has to wait for the network."""
        return not self._buffer

    async def exactly(self, size: int) -> bytes:
        """The next ``size`` bytes. Cancelling loses none of them.

        Raises:
            PeerRefused: the stream ended before.
            trio.BrokenResourceError: the connection broke.
        """
        while len(self._buffer) < size:
            chunk = await self._stream.receive_some(RECEIVE_BYTES)
            if not chunk:
                raise PeerRefused("the other end closed the connection")
            self._buffer += chunk
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def name(self) -> bytes:
        """An incarnation, with its length in front. Raises PeerRefused if it is too long, and what ``exactly`` does."""
        size = int.from_bytes(await self.exactly(2), "big")
        if not 0 < size <= NAME_BYTES_MAX:
            raise PeerRefused(f"its name has {size} bytes; allowed are 1 to {NAME_BYTES_MAX}")
        return await self.exactly(size)


async def dial(stream: trio.abc.Stream, incoming: Incoming, key: bytes, own: str, wanted: str) -> None:
    """The dialer's half. Raises PeerRefused, trio.BrokenResourceError. Close the stream unless this returned."""
    names = _named(own) + _named(wanted)
    nonce = secrets.token_bytes(NONCE_BYTES)
    await stream.send_all(PREAMBLE + nonce + names)
    other_nonce = await incoming.exactly(NONCE_BYTES)
    proof = await incoming.exactly(PROOF_BYTES)
    agreed = nonce + other_nonce + names
    if not hmac.compare_digest(proof, _proof(key, b"listener", agreed)):
        raise PeerRefused("its cluster_secret is not the same")
    await stream.send_all(_proof(key, b"dialer", agreed))


async def admit(stream: trio.abc.Stream, incoming: Incoming, key: bytes, own: str) -> str:
    """The listener's half: the dialer's incarnation.

    Raises:
        PeerRefused: it does not know the secret, wants somebody else, or is no node.
        trio.BrokenResourceError: the connection broke.

    Close the stream unless this returned.
    """
    _check_preamble(await incoming.exactly(len(PREAMBLE)))
    nonce = await incoming.exactly(NONCE_BYTES)
    dialer, wanted = await incoming.name(), await incoming.name()
    if wanted != own.encode():
        raise PeerRefused("it wants to reach another node, or an earlier life of this one")
    other_nonce = secrets.token_bytes(NONCE_BYTES)
    agreed = nonce + other_nonce + _prefixed(dialer) + _prefixed(wanted)
    await stream.send_all(other_nonce + _proof(key, b"listener", agreed))
    if not hmac.compare_digest(await incoming.exactly(PROOF_BYTES), _proof(key, b"dialer", agreed)):
        raise PeerRefused("it does not know this node's cluster_secret")
    try:
        return dialer.decode()
    except UnicodeDecodeError:
        raise PeerRefused("its name is not UTF-8") from None


def _check_preamble(begins: bytes) -> None:
    if begins == PREAMBLE:
        return
    common = PREAMBLE[: PREAMBLE.rindex(b" ") + 1]
    if begins.startswith(common):
        other, own = (each[len(common) :].decode("ascii", "replace").strip() for each in (begins, PREAMBLE))
        raise PeerRefused(
            f"it is of a tidegate whose nodes connect by version {other}, these by version {own}: "
            "give all nodes a tidegate that speaks the same one"
        )
    raise PeerRefused("it does not begin as a node does: clients belong at the other port")


def _named(incarnation: str) -> bytes:
    return _prefixed(incarnation.encode())


def _prefixed(name: bytes) -> bytes:
    return len(name).to_bytes(2, "big") + name


def _proof(key: bytes, role: bytes, agreed: bytes) -> bytes:
    """Roles differ, so that nobody's own proof can be sent back to it."""
    return hmac.digest(key, role + b":" + agreed, hashlib.sha256)
