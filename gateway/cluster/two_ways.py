"""Parcels by Redis while it is there, and straight to the other nodes while it is not."""

from collections.abc import Callable

from gateway.cluster.peers import Peers
from gateway.cluster.ports import Taken, Transport


class TwoWays:
    """Implements ``Transport``.

    A node that cannot reach Redis cannot read its inbox either, so those that can answer it the way it writes to them.
    Changing the way may lose, repeat or overtake parcels; their numbers show it.

    Attributes:
        received: see Transport.
        direct: parcels sent straight to their receivers, ever.
    """

    def __init__(self, redis: Transport, peers: Peers) -> None:
        """Args: ``redis``: the way to be preferred."""
        self.received: Callable[[bytes], None] = lambda _parcel: None
        self.direct = 0
        self._redis = redis
        self._peers = peers
        redis.received = peers.received = self._receive

    @property
    def away(self) -> bool:
        """Whether parcels have to go straight: they may get there, but no delivery is sure until Redis is back."""
        return self._redis.away

    def send(self, incarnation: str, parcel: bytes, taken: Taken) -> None:
        """See Transport.send."""
        away = self._redis.away
        if away or self._peers.cut_off(incarnation):
            self.direct += 1
            self._peers.send(incarnation, parcel, taken, without_redis=away)
        else:
            self._redis.send(incarnation, parcel, taken)

    def forget(self, incarnation: str) -> None:
        """See Transport.forget."""
        self._peers.forget(incarnation)
        self._redis.forget(incarnation)

    def _receive(self, parcel: bytes) -> None:
        """Whichever way it came."""
        self.received(parcel)
