"""Fresh tokens over live connections."""

import random

import trio

from gateway.auth import Identity, TokenRefused, UnknownKey, Verifier
from gateway.broker import EdgePort
from gateway.edge.connection import GONE, Connection
from gateway.edge.keepalive import Keepalive
from gateway.edge.sessions import Sessions
from protocol.errors import ErrorCode
from protocol.frames import Authenticate, Authenticated, ErrorReply

FETCHES_MAX = 256
"""Refreshes that wait for a key at once. They all wait for the same fetch, so that it is over for all of them together;
a rotation of keys under more clients than that makes the others come back when the key is known."""

RETRY_MS_MIN, RETRY_MS_MAX = 1_000, 3_000
"""Milliseconds after which a refresh that was not begun may be repeated; spread, so that a crowd does not come back as
one."""


class Refreshes:
    """Fresh tokens over live connections. Where a key has to be fetched first it takes a task, one per connection."""

    def __init__(self, verifier: Verifier, sessions: Sessions, keepalive: Keepalive, edge: EdgePort) -> None:
        self._verifier = verifier
        self._sessions = sessions
        self._keepalive = keepalive
        self._edge = edge
        self._nursery: trio.Nursery
        self._fetching: dict[Connection, Authenticate] = {}

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Hold the nursery of the refreshes in progress; cancelling drops them unanswered."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def submit(self, connection: Connection, command: Authenticate) -> None:
        """Verify the token of an open connection's authenticate command and answer it."""
        if connection in self._fetching:
            self._put_off(
                connection, command, ErrorCode.RATE_LIMITED, "the token before this one is still being verified"
            )
            return
        try:
            identity = self._verifier.verify(command.token)
        except UnknownKey:
            if len(self._fetching) >= FETCHES_MAX:
                self._put_off(
                    connection, command, ErrorCode.OVERLOADED, "too many tokens wait for a key of their issuer"
                )
                return
            self._fetching[connection] = command
            self._nursery.start_soon(self._fetch_and_verify, connection, command)
        except TokenRefused as error:
            self._refuse(connection, command, str(error))
        else:
            self._accept(connection, command, identity)

    async def _fetch_and_verify(self, connection: Connection, command: Authenticate) -> None:
        refusal = ""
        try:
            identity = await self._verifier.verify_fresh(command.token)
        except TokenRefused as error:
            refusal = str(error)
        if self._fetching.get(connection) is not command:
            return  # it was put off meanwhile
        del self._fetching[connection]
        if refusal:
            self._refuse(connection, command, refusal)
        else:
            self._accept(connection, command, identity)

    def put_off_all(self) -> None:
        """Tell everybody whose token waits for a key to come back later."""
        waiting, self._fetching = self._fetching, {}
        for connection, command in waiting.items():
            self._put_off(connection, command, ErrorCode.UNAVAILABLE, "the node is being upgraded")

    def _accept(self, connection: Connection, command: Authenticate, identity: Identity) -> None:
        if connection.flags & GONE:
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

    def _put_off(self, connection: Connection, command: Authenticate, code: ErrorCode, reason: str) -> None:
        retry_ms = random.randint(RETRY_MS_MIN, RETRY_MS_MAX)
        self._edge.reply(connection, ErrorReply(command.id, code, f"{reason}: repeat it in {retry_ms} ms", retry_ms))
