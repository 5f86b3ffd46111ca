"""A chat with a script: a message a line in, and, when asked for, a JSON object an event out."""

import sys

import msgspec
import trio

from gateway.cli.chat_session import Chat
from gateway.cli.errors import CliError
from protocol.client import EntryEvent, Event, MessageNotSent, MessageReceived, MessageSent, SendExpired, SendRefused

LINE_CHARS_MAX = 100_000
"""Characters of a line that are read at most; anything beyond a message's body is refused anyway."""


class History(Event, frozen=True, tag="history"):
    """The newest entries at the beginning, oldest first, and the conversation that they are of."""

    conversation_id: str
    entries: list[EntryEvent]


class Script:
    """A script's chat.

    Args:
        chat: the conversation.
        json: whether events are printed.
    """

    def __init__(self, chat: Chat, *, json: bool) -> None:
        self._chat = chat
        self._json = json
        self._not_sent = 0

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
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._print_events)
                nursery.start_soon(self._chat.keep_read)
                await self._send_lines()
                nursery.cancel_scope.cancel()
        if self._not_sent:
            raise CliError(f"{self._not_sent} of the lines could not be sent")

    async def _send_lines(self) -> None:
        number = 0
        while text := await trio.to_thread.run_sync(sys.stdin.readline, LINE_CHARS_MAX, abandon_on_cancel=True):
            number += 1
            body = text.rstrip("\r\n")
            if body:
                await self._send(number, body)

    async def _send(self, number: int, body: str) -> None:
        outgoing = None
        try:
            outgoing = self._chat.client.submit(self._chat.conversation_id, body)
            sent = await outgoing.wait_settled()
        except (SendRefused, SendExpired) as error:
            self._not_sent += 1
            print(f"tidegate: line {number} was not sent: {error}", file=sys.stderr)
            name = outgoing.client_msg_id if outgoing is not None else ""
            shown = body.encode(errors="replace").decode()  # a refused line may have bytes that are no UTF-8
            self._print(MessageNotSent(self._chat.conversation_id, name, shown, str(error)))
        else:
            self._print(MessageSent(self._chat.conversation_id, outgoing.client_msg_id, sent.seq, sent.time_us))

    async def _print_events(self) -> None:
        async for event in self._chat.client.events():
            if not self._chat.concerns(event):
                continue
            if isinstance(event, EntryEvent) and event.seq <= self._chat.model.seen_seq:
                continue  # it stood in the history
            self._print(event)
            if isinstance(event, MessageReceived):
                self._chat.read(event.seq)

    def _print(self, event: Event) -> None:
        if self._json:
            print(msgspec.json.encode(event).decode(), flush=True)
