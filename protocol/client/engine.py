"""The life of a client: connections one after the other, and what goes on during each."""

import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from protocol.client.backoff import STABLE_S, Backoff
from protocol.client.connection import Connection
from protocol.client.endings import Ending
from protocol.client.errors import ClientClosed, ConnectionLost, Refused, TokenRefused
from protocol.client.events import (
    EntryEvent,
    Event,
    EventQueue,
    MessageReceived,
    PresenceChanged,
    ReceiptChanged,
    StateChanged,
    TypingChanged,
)
from protocol.client.following import HELD_ENTRIES_MAX, Follower
from protocol.client.lifetime import Handlers, live
from protocol.client.send_queue import SendQueue
from protocol.client.session import Session
from protocol.client.state_file import Changes, Saved, StateFile
from protocol.client.states import Connecting, Online, StateBox, Waiting
from protocol.client.tokens import Tokens
from protocol.client.wire import Address, StreamOpener
from protocol.errors import CloseCode
from protocol.frames import (
    Authenticate,
    Authenticated,
    EntryPush,
    GoAway,
    MarkReceipt,
    PresencePush,
    PresenceReply,
    Push,
    ReceiptPush,
    Resync,
    TokenExpiring,
    TypingPush,
    WatchPresence,
)

log = logging.getLogger("tidegate.client")

NOTES_DELAY_S: Final = 1.0
"""Seconds for which cursors to save and delivered receipts to send are collected."""

RECEIPT_INTERVAL_S: Final = 0.02
"""Seconds between two delivered receipts: half of what a node admits is left to the program, also when a thousand
conversations have news."""

PARTING_S: Final = 1.0
"""Seconds that leaving may take for the sake of delivered receipts."""

ABANDONED_S: Final = 120.0
"""Seconds within which an attempt that was given up may still come to a node: kernels go on for as long with what a
program sent before it closed a socket."""


class Engine:
    """Keeps a client connected and its parts fed.

    Attributes:
        user: whom the node knows this client as; empty before the first connection.
        node: the node of the present connection, or of the last one.
        watched: users whose presence each new connection watches.
    """

    def __init__(
        self, address: Address, tokens: Tokens, device: str, *, opener: StreamOpener, rng: random.Random,
        state_file: StateFile | None, saved: Saved, events_max: int, sends_max: int, replay: bool,
        mark_delivered: bool,
    ) -> None:  # fmt: skip
        self.address = address
        self.device = device
        self.user = saved.facts.get("user", "")
        self.node = ""
        self.watched: list[str] = []
        self.rng = rng
        self.events = EventQueue(events_max, outcomes_max=sends_max)
        self.states = StateBox(lambda state: self.events.put_control(StateChanged(state)))
        self.sends = SendQueue(state_file, self.events.put_control, sends_max)
        self.sends.restore(saved.messages)
        self._session = Session(saved.cursors, HELD_ENTRIES_MAX)
        begun = bool(self.user) and saved.facts.get("begun") != "no"
        self.follower = Follower(self._session, self.events, self.sends, begun=begun, replay=replay)
        self._tokens = tokens
        self._opener = opener
        self._state_file = state_file
        self._marks_delivered = mark_delivered
        self._connection: Connection | None = None
        self._online_since: float | None = None
        self._abandoned_until_s: deque[float] = deque()  # so long each attempt that was given up may come
        self._delivered: dict[str, int] = {}
        self._notes = trio.Event()
        self._reached = trio.Event()
        self._token_expiring = trio.Event()

    @property
    def connection(self) -> Connection | None:
        """The live connection, if there is one."""
        return self._connection

    async def wait_connection(self) -> Connection:
        """The live connection, waiting for it. Cancelling leaves nothing behind.

        Raises:
            ClientClosed: there will be none.
        """
        await trio.lowlevel.checkpoint()
        while self._connection is None:
            if self.states.error is not None:
                raise self.states.error
            await self.states.wait_change()
        return self._connection

    async def run(self) -> None:
        """Connect, and again whenever the connection ends, until that is no use."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.sends.keep_saved)
                nursery.start_soon(self._keep_notes)
                await self._stay_connected()
                nursery.cancel_scope.cancel()
        except* ClientClosed as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            assert isinstance(error, ClientClosed)
            self.close(error, by_user=False)

    def close(self, error: ClientClosed, *, by_user: bool) -> None:
        """Tell everybody who waits that this is the end."""
        self.states.close(error, by_user=by_user)
        self.sends.close(error)
        self.events.close()

    async def _stay_connected(self) -> None:
        backoff = Backoff(rng=self.rng)
        attempt = 1
        while True:
            ending = await self._attempt()
            if self._online_since is not None and trio.current_time() - self._online_since >= STABLE_S:
                backoff.succeed()
            ending = self._own_attempt_considered(ending)
            if ending.advice == "new_token":
                self._tokens.refuse(ending.reason, ending.code)
            if ending.advice == "never":
                self.close(ending.error(), by_user=False)
                return
            delay_s = ending.after_s + backoff.fail(at_once=ending.advice == "now")
            self.states.change(Waiting(delay_s, ending.reason))
            await trio.sleep(delay_s)
            attempt = 1 if self._online_since is not None else attempt + 1
            self.states.change(Connecting(attempt))

    def _own_attempt_considered(self, ending: Ending) -> Ending:
        """The ending, or what it means where an attempt of this client, given up before, has come to the node late."""
        now_s = trio.current_time()
        while self._abandoned_until_s and self._abandoned_until_s[0] <= now_s:
            self._abandoned_until_s.popleft()
        if ending.abandoned:
            self._abandoned_until_s.append(now_s + ABANDONED_S)
        elif ending.code == CloseCode.REPLACED and self._abandoned_until_s:
            self._abandoned_until_s.popleft()  # it comes once, but others may come, too
            reason = "an attempt of this client that was given up may have come late, and replaced the connection"
            return Ending("backoff", reason, ending.code)
        return ending

    async def _attempt(self) -> Ending:
        """One connection from its token to its end."""
        self._online_since = None
        try:
            token = await self._tokens.fetch()
        except OSError as error:
            return Ending("backoff", f"no token to be had: {error}")
        if self._tokens.exhausted:
            raise TokenRefused(f"{self._tokens.reason}, and there is no other token", self._tokens.code)
        handlers = Handlers(self._begin, self._end, self._work, self._ready_to_read, self._on_push)
        return await live(
            self._opener, self.address, token=token, device=self.device, handlers=handlers, was_online=bool(self.node)
        )

    def _begin(self, connection: Connection) -> None:
        """A connection is authenticated; nothing behind its welcome was read yet."""
        welcome = connection.welcome
        if self.user and welcome.user != self.user:
            raise ClientClosed(f"the token is {welcome.user}'s, but this client and its state are {self.user}'s")
        self.user = welcome.user
        self.follower.begin(welcome.user)
        self.node = welcome.node
        self._token_expiring = trio.Event()
        self._connection = connection
        self._online_since = trio.current_time()
        self._notes.set()
        self.states.change(Online(welcome.user, welcome.device, welcome.node))

    def _end(self) -> None:
        self._connection = None

    async def _work(self, connection: Connection) -> None:
        """What goes on during one connection. Cancelled at its end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.follower.run, connection)
            nursery.start_soon(self.sends.run, connection, self.follower.own)
            nursery.start_soon(self._refresh_tokens, connection)
            nursery.start_soon(self._watch_again, connection)
            nursery.start_soon(self._keep_receipts, connection)

    async def _ready_to_read(self, connection: Connection) -> None:
        """Return when reading may go on: there is room for events, or somebody waits for a reply.

        So a program that does not keep up stops the reading, and in the end the node's writing; but one that asks
        for something while it is behind gets its answer. What is read meanwhile and does not fit is fetched later.
        """
        while self.events.full and not connection.awaited:
            async with trio.open_nursery() as nursery:

                async def until(wait: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
                    await wait()
                    scope.cancel()

                nursery.start_soon(until, self.events.wait_half_empty, nursery.cancel_scope)
                nursery.start_soon(until, connection.wait_asked, nursery.cancel_scope)

    def _on_push(self, connection: Connection, push: Push) -> None:
        match push:
            case EntryPush():
                self.follower.pushed(push.conversation_id, push.entry)
            case ReceiptPush():
                event = ReceiptChanged(push.conversation_id, push.user, push.delivered_seq, push.read_seq)
                self.events.put_or_shed(event)
            case TypingPush():
                self.events.put_or_shed(TypingChanged(push.conversation_id, push.user, push.typing))
            case PresencePush():
                self.events.put_or_shed(PresenceChanged(push.user, push.online, push.last_seen_ms))
            case TokenExpiring():
                self._token_expiring.set()
            case Resync():
                self.follower.resync(push.conversation_ids)
            case GoAway():
                connection.go_away_at = trio.current_time() + push.after_ms / 1000

    async def _refresh_tokens(self, connection: Connection) -> None:
        while True:
            await self._token_expiring.wait()
            self._token_expiring = trio.Event()
            try:
                token = await self._tokens.ask()
                if token == self._tokens.in_use:
                    log.warning("the token runs out soon, and the token provider has no fresh one")
                    continue
                reply = await connection.insist(partial(Authenticate, token=token, device=self.device))
                assert isinstance(reply, Authenticated)
                self._tokens.in_use = token  # not earlier: until then it is the old one that runs out
            except (OSError, Refused) as error:
                # Not the end: the connection lives until its token runs out, and the next one begins with a new one.
                log.warning("the token could not be refreshed: %s", error)

    async def _watch_again(self, connection: Connection) -> None:
        if not self.watched:
            return
        try:
            reply = await connection.insist(lambda n: WatchPresence(n, self.watched))
        except Refused as refused:
            log.warning("presence is not watched any more: %s", refused)
            return
        assert isinstance(reply, PresenceReply)
        for presence in reply.users:
            self.events.put_or_shed(PresenceChanged(presence.user, presence.online, presence.last_seen_ms))

    # --- Notes: cursors to save, delivered receipts to send --------------------------------------------------------

    def handed_over(self, event: Event) -> None:
        """The program has got ``event``."""
        if isinstance(event, EntryEvent):
            if self._marks_delivered and isinstance(event, MessageReceived) and event.sender != self.user:
                self._delivered[event.conversation_id] = event.seq
                self._reached.set()
            self._notes.set()

    async def _keep_notes(self) -> None:
        while True:
            await self._notes.wait()
            await trio.sleep(NOTES_DELAY_S)
            self._notes = trio.Event()
            await self.save_cursors()

    async def _keep_receipts(self, connection: Connection) -> None:
        while True:
            self._reached = trio.Event()
            if not self._delivered:
                await self._reached.wait()
            await trio.sleep(NOTES_DELAY_S)
            await self._send_receipts(connection)

    async def _send_receipts(self, connection: Connection) -> None:
        """Tell what reached the program, one after the other: what was not acknowledged is told again."""
        for conversation_id in list(self._delivered):
            seq = self._delivered.get(conversation_id, 0)
            try:
                await connection.insist(partial(MarkReceipt, conversation_id=conversation_id, delivered_seq=seq))
            except Refused as refused:
                log.info("conversation %s: delivered receipt refused: %s", conversation_id, refused)
            if self._delivered.get(conversation_id) == seq:
                del self._delivered[conversation_id]
            await trio.sleep(RECEIPT_INTERVAL_S)

    async def part(self) -> None:
        """Tell what is left to tell before the connection is closed. Cancelling is safe."""
        if self._delivered and self._connection is not None:
            with trio.move_on_after(PARTING_S), suppress(ConnectionLost):
                await self._send_receipts(self._connection)

    async def save(self, *, all_dealt_with: bool) -> None:
        """Write what is left to write at the end. ``all_dealt_with``: the program is done with what it got last."""
        with trio.CancelScope(shield=True):
            await self.sends.save()
            if all_dealt_with:
                self.events.deal_with_last()
            await self.save_cursors()

    async def save_cursors(self) -> None:
        """Write to the state file what the program has dealt with. Cancelling waits for the write to end."""
        if self._state_file is None or not self.user:
            return
        waiting = self.events.not_dealt_with()
        moved = self.follower.moved
        cursors = {name: waiting.get(name, self._session.cursor(name) + 1) - 1 for name in moved}
        self.follower.moved = moved & waiting.keys()
        left, self.follower.left = self.follower.left, set()
        facts = {"user": self.user, "begun": "yes" if self.follower.begun else "no"}
        try:
            await self.sends.save()  # a program that answers what it got counts on both, or on neither
            await self._state_file.commit(Changes(cursors=cursors, dropped_cursors=left, facts=facts))
        except BaseException:
            self.follower.moved |= moved
            self.follower.left |= left
            raise
