"""Users of a node under test: their tokens and handshakes, made before any clock starts."""

import time
import uuid
from random import Random

import jwt
from msgspec import Struct

from bench.load.wire import client_frame, upgrade_request
from protocol.codec import encode_msgpack
from protocol.frames import SUBPROTOCOL, Ping

TOKEN_LIFETIME_S = 3_600
"""Seconds that a benchmark's tokens last: longer than any benchmark."""

CLOSE_FRAME = client_frame((1000).to_bytes(2, "big"), opcode=8)
"""A client's farewell."""


class Door(Struct, frozen=True):
    """Where a server is and how to get in; what a load generator needs to know of it.

    Attributes:
        host: its address.
        port: its port.
        pid: its process, whose processor time is measured.
        secret: the HS256 secret of a node's development tokens; empty for a peer.
    """

    host: str
    port: int
    pid: int
    secret: str = ""

    @property
    def welcome_frames(self) -> int:
        """Frames right behind the handshake: a node's welcome, nothing from a peer."""
        return 1 if self.secret else 0

    def token(self, user: str) -> str:
        """A token of a node for ``user``."""
        expires = int(time.time()) + TOKEN_LIFETIME_S
        return jwt.encode({"sub": user, "aud": "tidegate", "exp": expires}, self.secret, algorithm="HS256")

    def request(self, user: str, *, path: str = "/", seed: int = 0) -> bytes:
        """The handshake of ``user``: to a node with a token and a device id, to a peer bare, for ``path``."""
        if not self.secret:
            return upgrade_request(self.host, self.port, path)
        device = uuid.UUID(int=Random(f"{seed}/{user}").getrandbits(128), version=4)
        return upgrade_request(
            self.host,
            self.port,
            f"/v1/connect?device={device}",
            token=self.token(user),
            subprotocol=SUBPROTOCOL,
        )

    def requests(self, users: list[str]) -> list[bytes]:
        """The handshakes of many users."""
        return [self.request(user) for user in users]


def user_names(count: int, wave: str) -> list[str]:
    """Distinct user ids as an identity provider makes them (a UUID each), the same in every run."""
    return [str(uuid.UUID(int=Random(f"{wave}/{number}").getrandbits(128), version=4)) for number in range(count)]


PING = client_frame(encode_msgpack(Ping(id=1)))
"""The smallest command that is answered."""

PONG_BYTES = 5
"""Its reply on the wire: a two-byte ws head and three bytes of msgpack."""
