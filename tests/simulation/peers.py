"""Parcels straight from node to node, simulated: what ``gateway.cluster.peers`` does with sockets, without them."""

from collections.abc import Callable

import trio

from gateway.cluster.peers import SILENCE_S
from gateway.cluster.ports import Taken
from tests.simulation.place import Line, Place
from tests.simulation.timeline import Timeline


class Streets:
    """What all nodes share: who can be reached where.

    Attributes:
        used: parcels that went this way, ever.
    """

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.peers: dict[str, SimulatedPeers] = {}
        self.used = 0


class SimulatedPeers:
    """One node's direct connections. Stands in for ``gateway.cluster.peers.Peers``.

    Attributes:
        received: see Transport.
    """

    def __init__(self, streets: Streets, place: Place, incarnation: str) -> None:
        self.received: Callable[[bytes], None] = lambda _parcel: None
        self._streets = streets
        self.place = place
        self._incarnation = incarnation
        self._lines: dict[str, tuple[Line, Line]] = {}
        self._cut_off_s: dict[str, float] = {}
        streets.peers[incarnation] = self

    def close(self) -> None:
        """The node has ended."""
        del self._streets.peers[self._incarnation]

    def cut_off(self, incarnation: str) -> bool:
        """See Peers.cut_off."""
        return trio.current_time() - self._cut_off_s.get(incarnation, -SILENCE_S) < SILENCE_S

    def send(self, incarnation: str, parcel: bytes, taken: Taken, *, without_redis: bool) -> None:
        """See Peers.send."""
        self._streets.used += 1
        timeline = self._streets.timeline
        there, back = self._lines.setdefault(incarnation, (Line(timeline), Line(timeline)))
        place = self.place

        def answer(known: bool) -> None:
            back.put(place.delay_s(), lambda: place.hear(lambda: taken(known)))

        def arrive() -> None:
            receiver = self._streets.peers.get(incarnation)
            if receiver is None or place.peers_cut or receiver.place.peers_cut:
                answer(False)
            else:
                receiver.place.hear(lambda: receiver.take(self._incarnation, parcel, without_redis))
                answer(True)

        there.put(place.held_s() + place.delay_s(), arrive)

    def forget(self, incarnation: str) -> None:
        """See Peers.forget."""
        self._lines.pop(incarnation, None)

    def take(self, sender: str, parcel: bytes, without_redis: bool) -> None:
        """A parcel has come."""
        if without_redis:
            self._cut_off_s[sender] = trio.current_time()
        else:
            self._cut_off_s.pop(sender, None)
        self.received(parcel)
