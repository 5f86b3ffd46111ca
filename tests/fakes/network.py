"""Nodes' transports and a session directory in one process, on a virtual clock (MockClock).

Like Redis: everything of one node goes over one connection, in order, and changes of the directory are reported on that
connection before the reply of any command executed behind them.
"""

from collections import deque
from collections.abc import Callable, Collection

import trio

from gateway.cluster.ports import Found, Taken


class Network:
    """What all nodes share.

    Attributes:
        inboxes: for each incarnation its connection.
        users: user -> incarnations.
        delay_s: seconds from one end of a connection to the other.
        drop: asked for each parcel; True loses it.
        away: whether the shared medium is unreachable.
    """

    def __init__(self, delay_s: float = 0.001) -> None:
        self.inboxes: dict[str, NodeConnection] = {}
        self.users: dict[str, tuple[str, ...]] = {}
        self.delay_s = delay_s
        self.drop: Callable[[str, bytes], bool] = lambda _receiver, _parcel: False
        self.away = False
        self.barriers = 0

    def place(self, user: str, *incarnations: str) -> None:
        """The user is connected there now; everybody who looked the user up is told."""
        self.users[user] = incarnations
        for connection in self.inboxes.values():
            if user in connection.tracked:
                connection.tracked.discard(user)
                connection.later(lambda connection=connection: connection.report({user}))


class Wire:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.calls: deque[tuple[float, Callable[[], None]]] = deque()
        self.wake = trio.Event()

    def put(self, call: Callable[[], None], delay_s: float) -> None:
        due_s = trio.current_time() + delay_s
        if self.calls:
            due_s = max(due_s, self.calls[-1][0])
        self.calls.append((due_s, call))
        self.wake.set()


class NodeConnection:
    """Implements Transport and Directory for one incarnation.

    Attributes:
        late_s: seconds that whatever comes for this node takes longer.
    """

    def __init__(self, network: Network, incarnation: str) -> None:
        self.network = network
        self.incarnation = incarnation
        self.received: Callable[[bytes], None] = lambda _parcel: None
        self.on_invalidated: Callable[[Collection[str] | None], None] = lambda _users: None
        self.tracked: set[str] = set()
        self.cache: dict[str, tuple[str, ...]] = {}
        self.late_s = 0.0
        self._to_server = Wire()
        self._to_node = Wire()
        network.inboxes[incarnation] = self

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._carry, self._to_server)
            nursery.start_soon(self._carry, self._to_node)

    async def _carry(self, wire: "Wire") -> None:
        while True:
            while wire.calls:
                due_s, call = wire.calls[0]
                await trio.sleep_until(due_s)
                wire.calls.popleft()
                call()
            wire.wake = trio.Event()
            await wire.wake.wait()

    def execute(self, call: Callable[[], None]) -> None:
        """Call it when the command has reached the server; in order."""
        self._to_server.put(call, self.network.delay_s)

    def later(self, call: Callable[[], None]) -> None:
        """Call it when this end of the connection is reached; in order."""
        self._to_node.put(call, self.network.delay_s + self.late_s)

    def report(self, users: set[str]) -> None:
        for user in users:
            self.cache.pop(user, None)
        self.on_invalidated(users)

    # Transport

    @property
    def away(self) -> bool:
        return self.network.away

    def send(self, incarnation: str, parcel: bytes, taken: Taken) -> None:
        receiver = self.network.inboxes.get(incarnation)
        if self.network.away or receiver is None:
            taken(False)
            return

        def put() -> None:
            if not self.network.drop(incarnation, parcel):
                receiver.later(lambda: receiver.received(parcel))
            self.later(lambda: taken(True))

        self.execute(put)

    def forget(self, incarnation: str) -> None:
        self.network.inboxes.pop(incarnation, None)

    # Directory

    def arrive(self, user: str) -> None:
        self.network.place(user, *self.network.users.get(user, ()), self.incarnation)

    def leave(self, user: str) -> None:
        self.network.place(user, *(each for each in self.network.users.get(user, ()) if each != self.incarnation))

    async def registered(self, user: str) -> None:
        await trio.lowlevel.checkpoint()

    def cached(self, user: str) -> tuple[str, ...] | None:
        return self.cache.get(user)

    def lookup(self, users: Collection[str], then: Found) -> None:
        if self.network.away:
            then(None)
            return
        missing = [user for user in users if user not in self.cache]
        if not missing:
            then({user: self.cache[user] for user in users})
            return

        def read() -> None:
            self.tracked.update(missing)
            answer = {user: self.network.users.get(user, ()) for user in missing}
            self.later(lambda: reply(answer))

        def reply(answer: dict[str, tuple[str, ...]]) -> None:
            self.cache.update(answer)
            then({user: self.cache.get(user, ()) for user in users})

        self.execute(read)

    def is_void(self, incarnation: str) -> bool:
        return incarnation not in self.network.inboxes

    def barrier(self, done: Taken) -> None:
        self.network.barriers += 1
        if self.network.away:
            done(False)
        else:
            self.execute(lambda: self.later(lambda: done(True)))
