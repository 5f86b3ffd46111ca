"""Fresh tokens over live connections."""

import trio

from gateway.auth import Identity, TokenRefused, UnknownKey, Verifier
from gateway.broker import EdgePort
from gateway.edge.connection import Connection
from gateway.edge.keepalive import Keepalive
from gateway.edge.sessions import Sessions
from protocol.errors import ErrorCode
from protocol.frames import Authenticate, Authenticated, ErrorReply


class Refreshes:
    """Fresh tokens over live connections. A task each, because a key may have to be fetched; they are rare."""

    def __init__(self, verifier: Verifier, sessions: Sessions, keepalive: Keepalive, edge: EdgePort) -> None:
        self._verifier = verifier
        self._sessions = sessions
        self._keepalive = keepalive
        self._edge = edge
        self._nursery: trio.Nursery

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Hold the nursery of the refreshes in progress; cancelling drops them unanswered."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def submit(self, connection: Connection, command: Authenticate) -> None:
        """Verify the token of an open connection's authenticate command and answer it."""
        try:
            identity = self._verifier.verify(command.token)
        except UnknownKey:
            self._nursery.start_soon(self._fetch_and_verify, connection, command)
        except TokenRefused as error:
            self._refuse(connection, command, str(error))
        else:
            self._accept(connection, command, identity)

    async def _fetch_and_verify(self, connection: Connection, command: Authenticate) -> None:
        try:
            identity = await self._verifier.verify_fresh(command.token)
        except TokenRefused as error:
            self._refuse(connection, command, str(error))
        else:
            self._accept(connection, command, identity)

    def _accept(self, connection: Connection, command: Authenticate, identity: Identity) -> None:
        if connection.fd < 0:
            return
        if identity.user != connection.user:
            self._refuse(connection, command, "the token is another user's: open a connection of its own for it")
            return
        expires_in_s = self._sessions.renew(connection, identity)
        self._keepalive.forget(connection)
        self._edge.reply(connection, Authenticated(command.id, expires_in_s))

    def _refuse(self, connection: Connection, command: Authenticate, message: str) -> None:
        """The old token stays in force until it runs out."""
        self._edge.reply(connection, ErrorReply(command.id, ErrorCode.TOKEN_REFUSED, message))
