"""A chat with a script: a message a line in, and, when asked for, a JSON object an event out."""

import math
import sys
from collections import deque

import msgspec
import trio

from gateway.cli.chat_session import Chat
from gateway.cli.chat_text import in_one_line, json_for_terminals
from gateway.cli.errors import CliError
from protocol.client import (
    EntryEvent,
    Event,
    MessageNotSent,
    MessageReceived,
    MessageSent,
    Outgoing,
    SendExpired,
    SendRefused,
    Sent,
)

LINE_CHARS_MAX = 100_000
"""Characters of a line that are read at most; anything beyond a message's body is refused anyway."""


class History(Event, frozen=True, tag="history"):
    """The newest entries at the beginning, oldest first, and the conversation that they are of."""

    conversation_id: str
    entries: list[EntryEvent]


class Script:
    """A script's chat.

    What is printed of the conversation is in the order of ``seq``, the acknowledgements of own lines among the entries
    of others: they come by two ways, of which either may be the faster one.

    Args:
        chat: the conversation.
        json: whether events are printed.
    """

    def __init__(self, chat: Chat, *, json: bool) -> None:
        self._chat = chat
        self._json = json
        self._not_sent = 0
        self._printed_seq = 0
        self._under_way: Outgoing | None = None
        self._stored: deque[MessageSent] = deque()

    async def run(self) -> None:
        """Send each line of the standard input, and return when all are acknowledged.

        Raises:
            CliError: a line was refused. The others are sent.
        """
        if not self._json:
            await self._send_lines()
        else:
            entries = await self._chat.load_history()
            self._print(History(self._chat.conversation_id, entries))
            self._printed_seq = self._chat.model.seen_seq
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._print_events)
                    nursery.start_soon(self._chat.keep_read)
                    await self._send_lines()
                    nursery.cancel_scope.cancel()
            finally:
                self._print_stored(math.inf)
        if self._not_sent:
            raise CliError(f"{self._not_sent} of the lines could not be sent")

    async def _send_lines(self) -> None:
        number, goes_on = 0, False
        while text := await trio.to_thread.run_sync(sys.stdin.readline, LINE_CHARS_MAX, abandon_on_cancel=True):
            rest, goes_on = goes_on, not text.endswith("\n")
            if rest:
                continue  # of a line that was refused as too long; its end is no message either
            number += 1
            body = text.rstrip("\r\n")
            if body:
                await self._send(number, body)

    async def _send(self, number: int, body: str) -> None:
        outgoing = None
        try:
            outgoing = self._under_way = self._chat.client.submit(self._chat.conversation_id, body)
            await outgoing.wait_settled()
        except (SendRefused, SendExpired) as error:
            self._not_sent += 1
            print(f"tidegate: line {number} was not sent: {in_one_line(str(error))}", file=sys.stderr)
            name = outgoing.client_msg_id if outgoing is not None else ""
            shown = body.encode(errors="replace").decode()  # a refused line may have bytes that are no UTF-8
            self._print(MessageNotSent(self._chat.conversation_id, name, shown, str(error)))
        else:
            self._print_stored()

    async def _print_events(self) -> None:
        async for event in self._chat.client.events():
            if not self._chat.concerns(event):
                continue
            if isinstance(event, EntryEvent) and event.seq <= self._chat.model.seen_seq:
                continue  # it stood in the history
            self._print_in_order(event)
            if isinstance(event, MessageReceived):
                self._chat.read(event.seq)

    def _print_in_order(self, event: Event) -> None:
        if isinstance(event, EntryEvent):
            self._print_stored(event.seq - 1)
            self._print(event)
            self._printed_seq = event.seq
            self._print_stored()
        else:
            self._print_stored()  # a receipt may be for it
            self._print(event)

    def _print_stored(self, last_seq: float = 0) -> None:
        """Print which own lines are stored: those whose turn it is, and others up to ``last_seq``."""
        line = self._under_way
        if line is not None and isinstance(line.outcome, Sent):  # even if the task that sends it has not run since
            self._under_way = None
            sent = line.outcome
            self._stored.append(MessageSent(line.conversation_id, line.client_msg_id, sent.seq, sent.time_us))
        while self._stored and self._stored[0].seq <= max(self._printed_seq + 1, last_seq):
            stored = self._stored.popleft()
            self._print(stored)
            self._printed_seq = stored.seq

    def _print(self, event: Event) -> None:
        if self._json:
            print(json_for_terminals(msgspec.json.encode(event).decode()), flush=True)
