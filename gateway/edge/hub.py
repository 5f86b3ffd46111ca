"""The connections of this node by user, and the edge's side of the broker: replies, deliveries, signals."""

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from contextvars import Context

import trio

from gateway.broker import Delivery, Origin, is_channel
from gateway.edge.connection import CLOSING, GONE, JSON, QUEUED, Connection, ConnectionTable, Devices, has_left
from gateway.edge.fanout import Fanout
from gateway.edge.followers import Followers
from gateway.edge.outgoing import encode_for
from gateway.edge.writer import Writer
from gateway.refusals import NotOwner
from protocol.errors import CloseCode
from protocol.frames import Command, Push, Reply


class Caller:
    """An origin inside this process (an HTTP request): its reply goes to a function, not to a socket."""

    __slots__ = ("receive", "user")

    def __init__(self, user: str, receive: Callable[[Reply], None]) -> None:
        self.user = user
        self.receive = receive


async def ask(submit: Callable[[Origin, Command], None], user: str, command: Command) -> Reply:
    """Submit a command for a user who has no connection here, and wait for its reply.

    A cancellation leaves the command under way; what it is answered is dropped.
    """
    replies: list[Reply] = []
    answered = trio.Event()

    def receive(reply: Reply) -> None:
        replies.append(reply)
        answered.set()

    # Tasks inherit the ids that the log has of a request, and what is set going here may go on for others as well.
    Context().run(submit, Caller(user, receive), command)
    await answered.wait()
    return replies[0]


class Hub:
    """Implements ``gateway.broker.EdgePort`` for the connections of this node.

    Attributes:
        by_user: user id -> connection, or Devices where the user has several here.
        followers: who of them follows which channels.
        on_arrival, on_departure: called with a user's id when the first connection came, the last one went.
        signals_shed: receipts, typing and presence pushes not sent because a send queue had begun.
    """

    def __init__(self, table: ConnectionTable, writer: Writer, *, devices_per_user_max: int) -> None:
        self.by_user: dict[str, Connection | Devices] = {}
        self._table = table
        self._writer = writer
        self._devices_per_user_max = devices_per_user_max
        self.fanout = Fanout(self.by_user, writer)
        self.followers = Followers(self.by_user)
        self.on_arrival: Callable[[str], None] = lambda _user: None
        self.on_departure: Callable[[str], None] = lambda _user: None
        self.signals_shed = 0
        self.replies = 0

    # --- Who is here --------------------------------------------------------------------------------------------

    def connections_of(self, user: str) -> tuple[Connection, ...]:
        """The open connections of a user on this node."""
        found = self.by_user.get(user)
        if found is None:
            return ()
        return found.connections if type(found) is Devices else (found,)  # type: ignore[return-value]

    def add(self, connection: Connection) -> None:
        """Enter an open connection that the table knows.

        One of the same user's same device is closed: replaced; and so is the user's oldest where there are too many.
        But whoever has left already replaces nobody, and is closed: a client may give an attempt up and connect anew,
        and the attempt come behind that, because a crowded node's kernel lets data in late.
        """
        user, keys = connection.user, self._table.device_key
        present = self.connections_of(user)
        same = [other for other in present if keys[other.fd] == keys[connection.fd]]
        too_many = len(present) - len(same) >= self._devices_per_user_max
        if (same or too_many) and has_left(connection):
            self._writer.abort(connection)
            return
        for other in same:
            self._writer.close(other, CloseCode.REPLACED, "this device connected again")
        if too_many:
            oldest = next(other for other in present if other not in same)
            reason = f"the user has more than {self._devices_per_user_max} connections here: the oldest gave way"
            self._writer.close(oldest, CloseCode.REPLACED, reason)
        present = self.connections_of(user)
        if not present:
            self.by_user[user] = connection
            self.on_arrival(user)
        else:
            self.by_user[user] = Devices((*present, connection))

    def restore(self, connection: Connection) -> None:
        """Enter a connection that another process had in its hub: nobody has come, and nobody has to give way.

        The connections of one user come in the order in which that one had them.
        """
        present = self.by_user.get(connection.user)
        if present is None:
            self.by_user[connection.user] = connection
        else:
            self.by_user[connection.user] = Devices((*self.connections_of(connection.user), connection))

    def remove(self, connection: Connection) -> None:
        """Take out a connection that is open no more. Deliveries skip it from now on."""
        user = connection.user
        rest = tuple(other for other in self.connections_of(user) if other is not connection)
        if not rest:
            if self.by_user.pop(user, None) is not None:
                self.followers.departed(user)
                self.on_departure(user)
        else:
            self.by_user[user] = rest[0] if len(rest) == 1 else Devices(rest)

    # --- EdgePort -----------------------------------------------------------------------------------------------

    def reply(self, origin: Origin, reply: Reply, conversation_id: str = "") -> None:
        """See EdgePort.reply."""
        if not (
            self.fanout.jobs_waiting
            and conversation_id
            and self.fanout.after(conversation_id, lambda: self._reply(origin, reply))
        ):
            self._reply(origin, reply)

    def _reply(self, origin: Origin, reply: Reply) -> None:
        if type(origin) is Connection:
            self.replies += 1
            self._writer.write(origin, encode_for(reply, json=bool(origin.flags & JSON)))
        elif isinstance(origin, Caller):
            origin.receive(reply)

    def not_owner(self, origin: Origin, command: Command) -> None:
        """See EdgePort.not_owner. Of use where nothing routes: the client is to try again."""
        self.reply(origin, NotOwner().reply(command.id))

    def is_gone(self, origin: Origin) -> bool:
        """See EdgePort.is_gone."""
        return type(origin) is Connection and bool(origin.flags & GONE)

    def when_room(self, origin: Origin, then: Callable[[], None]) -> None:
        """See EdgePort.when_room."""
        if type(origin) is Connection:
            self._writer.when_room(origin, then)
        else:
            then()

    def together(self) -> AbstractContextManager[object]:
        """See EdgePort.together."""
        return self._writer.together

    def deliver(self, delivery: Delivery) -> None:
        """See EdgePort.deliver."""
        recipients = delivery.recipients
        if is_channel(delivery.conversation_id):
            recipients = self.followers.recipients(delivery)
            if not recipients:
                return
        self.fanout.deliver(delivery, recipients)

    def signal(self, recipients: Collection[str], push: Push, conversation_id: str, skip: Origin | None = None) -> None:
        """See EdgePort.signal."""
        self.signal_connections(
            (connection for user in recipients for connection in self.connections_of(user) if connection is not skip),
            push,
        )

    def signal_connections(self, connections: Iterable[Connection], push: Push) -> None:
        """Send a push that may be shed to some connections: one whose socket is full does without."""
        data = json_data = b""
        for connection in connections:
            if connection.flags & (QUEUED | CLOSING):
                self.signals_shed += 1
            elif connection.flags & JSON:
                json_data = json_data or encode_for(push, json=True)
                self._writer.write(connection, json_data)
            else:
                data = data or encode_for(push, json=False)
                self._writer.write(connection, data)
