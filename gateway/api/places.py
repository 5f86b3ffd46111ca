"""Places for HTTP connections: a bounded number, from which those that keep the node waiting give way to others.

Anybody may open HTTP connections, so without this some strangers who let theirs idle, who send the rest of a request
late or never, or who do not read what they asked for, would keep everybody else out.

States of a connection::

    RECEIVING  its request is on its way: what comes first, and after IDLE from the request's whole head on
    WORKING    the application has the whole request: the client waits for the node
    ANSWERING  the answer is on its way
    IDLE       answered, and the client may send another request
"""

from enum import Enum, auto
from typing import Final

import trio

from gateway.api.stream import HandedOverStream
from protocol.handshake import error_response

PATIENCE_S: Final = 0.1
"""Seconds that a client may keep the node waiting in the midst of a request before its place can go to another. Far
longer than a pass of the loop, so that whoever does not wait for its client never gives way. Short, because so often
strangers would have to begin anew to hold all places: that many requests would be too many for the processor, too.
Beyond it only a need for the place ends a connection, and the one that waited longest goes first."""

_RETRY_AFTER_S: Final = 1
"""Seconds after which who was sent away may come back: a place is free as soon as a request is answered."""

_TOO_SLOW: Final = (
    "the rest of the request did not come, and others needed its place: this node holds %d HTTP connections, the most "
    "allowed; try again in 1 s, and send a request at once"
)


class State(Enum):
    """Whose turn it is on a connection."""

    RECEIVING = auto()
    WORKING = auto()
    ANSWERING = auto()
    IDLE = auto()


class Place:
    """The place of one connection.

    Attributes:
        stream: the connection.
        scope: cancels all that is done for it.
        state: whose turn it is.
        since_s: since when, on trio's clock.
    """

    __slots__ = ("scope", "since_s", "state", "stream")

    def __init__(self, stream: HandedOverStream) -> None:
        self.stream = stream
        # Shielded: when the node is cancelled, open requests first get their grace
        self.scope = trio.CancelScope(shield=True)
        self.state = State.RECEIVING
        self.since_s = trio.current_time()

    def enter(self, state: State) -> None:
        """Note whose turn it is from now on."""
        self.state = state
        self.since_s = trio.current_time()

    def end(self) -> None:
        """Close the connection, whatever is under way."""
        self.scope.cancel()
        self.stream.cut()


class Places:
    """At most ``count_max`` of them.

    Attributes:
        held: those that are taken.
        gave_way: connections closed because others needed their places, ever.
    """

    def __init__(self, count_max: int) -> None:
        self.held: set[Place] = set()
        self.gave_way = 0
        self._count_max = count_max

    def make_room(self) -> bool:
        """Whether one more may come; if need be by closing the connection that its client keeps waiting for longest.

        Idle ones go first, for they lose nothing: who uses HTTP is prepared for that (RFC 9112 section 9.5).
        """
        if len(self.held) < self._count_max:
            return True
        too_slow_s = trio.current_time() - PATIENCE_S
        waited_for = [
            place
            for place in self.held
            if place.state is State.IDLE or (place.state is not State.WORKING and place.since_s <= too_slow_s)
        ]
        if not waited_for:
            return False
        self._close(min(waited_for, key=lambda place: (place.state is not State.IDLE, place.since_s)))
        return True

    def take(self, stream: HandedOverStream) -> Place:
        """Give a connection a place, for which there is room."""
        place = Place(stream)
        self.held.add(place)
        return place

    def _close(self, place: Place) -> None:
        self.held.remove(place)
        self.gave_way += 1
        if place.state is State.RECEIVING:
            place.stream.dismiss(unavailable(_TOO_SLOW % self._count_max))
        place.end()


def unavailable(message: str) -> bytes:
    """A whole answer, for whoever cannot be served now."""
    return error_response(503, message, (("Retry-After", str(_RETRY_AFTER_S)),))
