"""The client: what a program uses. ``connect`` makes one and keeps it connected."""

import logging
import random
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from protocol import limits
from protocol.client.backoff import Backoff
from protocol.client.commands import REQUEST_TIMEOUT_S, Commands
from protocol.client.connection import RefusedNow
from protocol.client.engine import Engine
from protocol.client.errors import (
    ClientClosed,
    ConnectionLost,
    NotReachable,
    Refused,
    RequestTimeout,
    StateFileError,
)
from protocol.client.events import Event
from protocol.client.send_queue import Outgoing, Sent
from protocol.client.state_file import Changes, Saved, StateFile
from protocol.client.states import Closed, Online, State, Waiting
from protocol.client.tokens import TokenProvider, Tokens
from protocol.client.wire import StreamOpener, open_stream, parse_url
from protocol.frames import Command, ConversationReply, Presence, Reply, SendAck, Typing

log = logging.getLogger("tidegate.client")

EVENTS_MAX: Final = 1_000
"""Events that wait for the program (default): ten syncs' worth of one conversation, some 500 KB."""

SENDS_MAX: Final = 10_000
"""Messages that wait to be sent (default): a day of a busy person offline, at most 160 MB of bodies."""


@asynccontextmanager
async def connect(
    url: str,
    *,
    token: TokenProvider,
    device: str = "",
    state_file: Path | None = None,
    replay: bool = False,
    mark_delivered: bool = True,
    events_max: int = EVENTS_MAX,
    sends_max: int = SENDS_MAX,
    opener: StreamOpener = open_stream,
    rng: random.Random | None = None,
) -> AsyncIterator["Client"]:
    """A client that stays connected, until the block is left. Entering does not wait for the connection.

    Leaving closes the connection, after a second at most for what is to be marked as delivered. Messages that are not
    acknowledged by then are given up, or, with a state file, kept for the next run; ``flush`` waits for them.

    Args:
        url: the node, ``ws://HOST:PORT`` or ``wss://…``; without a path the protocol's endpoint is meant.
        token: a token, or an async function that returns one: see TokenProvider.
        device: name of this device, at most 64 characters. The same name of the same user elsewhere replaces this
            connection, so without one the state file's is used, or a random one.
        state_file: where unsent messages and cursors outlive the process.
        replay: a client without earlier cursors begins with the newest entries of each conversation. Otherwise with
            what comes from now on.
        mark_delivered: tell the others that messages reached this user, once the program has got them.
        events_max: events that may wait for the program; beyond, nothing more is read.
        sends_max: messages that may wait to be sent.
        opener: opens the stream to the node.
        rng: source of the jitter.

    Raises:
        ValueError: the url or the device is not acceptable.
        StateFileError: the state file cannot be used.
    """
    address = parse_url(url)
    if len(device) > limits.DEVICE_ID_CHARS_MAX:
        text = f"a device name of {len(device)} characters: no more than {limits.DEVICE_ID_CHARS_MAX} are allowed"
        raise ValueError(text)
    file = await StateFile.open(state_file) if state_file is not None else None
    try:
        saved = await file.load() if file is not None else Saved({}, [], {})
        device = device or saved.facts.get("device") or uuid.uuid4().hex
        if file is not None:
            await file.commit(Changes(facts={"device": device}))
        engine = Engine(
            address, Tokens(token), device, opener=opener, rng=rng or random.Random(), state_file=file, saved=saved,
            events_max=events_max, sends_max=sends_max, replay=replay, mark_delivered=mark_delivered,
        )  # fmt: skip
        problem: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            try:
                yield Client(engine)
                await engine.part()
            except BaseException as error:  # noqa: BLE001 - raised again below, outside of the nursery's group
                problem = error
            nursery.cancel_scope.cancel()
        engine.close(ClientClosed("the client was closed by the program"), by_user=True)
        try:
            await engine.save(all_dealt_with=problem is None)
        except StateFileError:
            if problem is None or isinstance(problem, trio.Cancelled):
                raise
            log.exception("what was to be kept for the next run is not, or not all of it")
        if problem is not None:
            raise problem
    finally:
        if file is not None:
            await file.aclose()


class Client(Commands):
    """A user's device at a node, across reconnects. Made by ``connect``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def device(self) -> str:
        """The device name that the node knows this client by."""
        return self._engine.device

    @property
    def node(self) -> str:
        """Name of the node of the present connection, or of the last one; empty before the first."""
        return self._engine.node

    @property
    def user(self) -> str:
        """The user that the node knows this client as; empty before the first connection."""
        return self._engine.user

    @property
    def state(self) -> State:
        """What the connection is doing now. Changes are told by StateChanged events."""
        return self._engine.states.state

    @property
    def unsent(self) -> int:
        """Messages that are not acknowledged yet."""
        return len(self._engine.sends)

    @property
    def shed_events(self) -> int:
        """Events dropped because the program did not keep up: receipts, typing, presence, and the oldest of very many
        states or outcomes of sends.
        """
        return self._engine.events.shed

    def events(self) -> "Events":
        """What happens, as an async iterator. It ends when the client is closed by the program.

        Each event goes to one iterator. An entry counts as dealt with when the next event is asked for; with a state
        file, a later run begins with the first entry that was not dealt with.

        Raises:
            ClientClosed: (from the iteration) the client stopped for a reason that a person has to put right.
        """
        return Events(self._engine)

    async def wait_online(self, timeout_s: float = REQUEST_TIMEOUT_S) -> Online:
        """Wait until connected. Cancelling leaves nothing behind.

        Raises:
            NotReachable: not within ``timeout_s`` seconds; the message tells why the last attempt failed.
            ClientClosed: see ``events``.
        """
        reason = "still connecting"
        with trio.move_on_after(timeout_s):
            while not isinstance(self.state, Online):
                if self._engine.states.error is not None:
                    raise self._engine.states.error
                if isinstance(self.state, Waiting):
                    reason = self.state.reason
                await self._engine.states.wait_change()
            return self.state
        raise NotReachable(f"{self._engine.address} could not be reached within {timeout_s:g} s: {reason}")

    async def send(
        self,
        conversation_id: str,
        body: str,
        metadata: dict[str, str] | None = None,
        *,
        client_msg_id: str | None = None,
    ) -> Sent:
        """Send a message and wait until it is durable, however many reconnects that takes.

        Cancelling removes a message that was not yet written to any connection: it is not sent. One that was, stays
        in the queue, because its outcome is unknown; it is repeated until it is known, and a MessageSent or
        MessageNotSent event tells it.

        Raises:
            SendRefused: the node refused it for good, or would.
            SendExpired: it could not be sent for a day.
            SendQueueFull: too many messages wait already.
            ClientClosed: the client is, or was, closed first. With a state file a later run goes on sending.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._engine.sends.wait(self.submit(conversation_id, body, metadata, client_msg_id=client_msg_id))

    def submit(
        self,
        conversation_id: str,
        body: str,
        metadata: dict[str, str] | None = None,
        *,
        client_msg_id: str | None = None,
    ) -> Outgoing:
        """Put a message into the send queue without waiting; its ``wait_settled`` waits. Raises as ``send``."""
        return self._engine.sends.submit(conversation_id, body, metadata, client_msg_id)

    async def flush(self) -> None:
        """Wait until every message is acknowledged or refused. Cancelling leaves nothing behind.

        Raises:
            ClientClosed: the client was closed first.
        """
        await self._engine.sends.flush()

    def typing(self, conversation_id: str, *, typing: bool = True) -> None:
        """Tell the others that the user types, or has stopped. While offline this does nothing."""
        if self._engine.connection is not None:
            self._engine.connection.post(Typing(0, conversation_id, typing))

    async def watch_presence(self, users: Sequence[str]) -> list[Presence]:
        before, self._engine.watched = self._engine.watched, list(users)
        try:
            return await super().watch_presence(users)
        except Refused:
            self._engine.watched = before  # the node goes on with those, and so does the next connection
            raise

    async def request(
        self, command: Callable[[int, int], Command], *, timeout_s: float = REQUEST_TIMEOUT_S, own: str = ""
    ) -> Reply:
        attempt = 0
        backoff = Backoff(rng=self._engine.rng)
        self._engine.follower.own_ids.add(own)
        try:
            with trio.fail_after(timeout_s):
                while True:
                    attempt += 1
                    try:
                        return await self._request_once(command, attempt)
                    except ConnectionLost:
                        continue  # wait for the next connection, then ask again
                    except RefusedNow as refused:
                        if not refused.retry:
                            raise
                        await trio.sleep(max(refused.retry_after_s, backoff.fail()))
        except trio.TooSlowError:
            state = self.state
            why = f": {state.reason}" if isinstance(state, Waiting) else ""
            raise RequestTimeout(f"no answer from {self._engine.address} within {timeout_s:g} s{why}") from None
        finally:
            self._engine.follower.own_ids.discard(own)

    async def _request_once(self, command: Callable[[int, int], Command], attempt: int) -> Reply:
        connection = await self._engine.wait_connection()
        made = command(0, attempt)
        conversation_id = getattr(made, "conversation_id", "")

        def on_reply(reply: Reply) -> None:
            if isinstance(reply, SendAck):
                self._engine.follower.own(conversation_id, reply.seq)
            elif isinstance(reply, ConversationReply) and reply.created:
                self._engine.follower.own(reply.conversation.conversation_id, 1)

        return await connection.call(lambda request_id: command(request_id, attempt), on_reply)

    def _forget(self, conversation_id: str) -> None:
        self._engine.follower.leave(conversation_id)


class Events:
    """Iterator over a client's events: see ``Client.events``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __aiter__(self) -> "Events":
        return self

    async def __anext__(self) -> Event:
        event = await self._engine.events.get()
        if event is None:
            state, error = self._engine.states.state, self._engine.states.error
            if error is not None and not (isinstance(state, Closed) and state.by_user):
                raise error
            raise StopAsyncIteration
        self._engine.handed_over(event)
        return event
