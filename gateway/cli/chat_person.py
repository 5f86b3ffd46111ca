"""A chat with a person at the terminal."""

import time

import trio

from gateway.cli.chat_model import HISTORY_ENTRIES, Line
from gateway.cli.chat_screen import ChatScreen
from gateway.cli.chat_session import Chat
from protocol import limits
from protocol.client import ClientError, MessageReceived, Outgoing, Refused, RequestTimeout, Resumed

HELP = (
    "write a line and press Enter to send it; ticks: … on its way, · stored, ✓ delivered, ✓✓ read",
    "/history [n]  show n older entries (20)",
    "/members      who is here",
    "/help         this text",
    "/quit         leave (also Ctrl-C or Ctrl-D); Page Up and Page Down scroll",
)


class Person:
    """A person's chat: lines in, a screen out."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._model = chat.model
        self._screen = ChatScreen(chat.model, self._entered, self._typed)
        self._typing_told_at: float | None = None
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Chat until the person leaves. Cancelling resets the terminal."""
        await self._chat.load_history()
        self._model.note("/help tells what there is")
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._chat.keep_read)
            nursery.start_soon(self._follow)
            await self._screen.run()
            nursery.cancel_scope.cancel()

    async def _follow(self) -> None:
        async for event in self._chat.client.events():
            if self._chat.concerns(event) and self._model.take(event, time.monotonic()):
                if isinstance(event, MessageReceived):
                    self._chat.read(event.seq)
                self._screen.redraw()
            elif isinstance(event, Resumed):
                self._chat.came_back()

    def _entered(self, text: str) -> None:
        assert self._nursery is not None, "the screen runs inside the nursery"
        if text.startswith("/"):
            self._nursery.start_soon(self._command, text)
            return
        line = self._model.sending(text)
        try:
            outgoing = self._chat.client.submit(self._chat.conversation_id, text)
        except ClientError as error:
            line.failed = str(error)
        else:
            self._nursery.start_soon(self._settle, line, outgoing)

    async def _settle(self, line: Line, outgoing: Outgoing) -> None:
        try:
            line.seq = (await outgoing.wait_settled()).seq
        except ClientError as error:
            line.failed = str(error)
        self._screen.redraw()

    async def _command(self, text: str) -> None:
        name, _, argument = text.partition(" ")
        match name:
            case "/help":
                for line in HELP:
                    self._model.note(line)
            case "/quit":
                self._screen.close()
            case "/members":
                self._model.note(", ".join(["you", *self._model.others]))
            case "/history":
                await self._history(argument)
            case _:
                self._model.note(f"there is no {name}; /help tells what there is (to send a slash, begin with a space)")
        self._screen.redraw()

    async def _history(self, argument: str) -> None:
        if argument and not (argument.isdecimal() and 0 < int(argument) <= limits.HISTORY_ENTRIES_MAX):
            self._model.note(f"/history takes a number from 1 to {limits.HISTORY_ENTRIES_MAX}, not {argument!r}")
            return
        try:
            entries = await self._chat.older(int(argument or HISTORY_ENTRIES))
        except (Refused, RequestTimeout) as error:
            self._model.note(f"no history now: {error}")
            return
        if not entries:
            self._model.note("that was the beginning")
        self._model.prepend(entries)

    def _typed(self, any_text: bool) -> None:
        """The text being written changed: tell the others, seldom enough."""
        now = trio.current_time()
        if not any_text:
            if self._typing_told_at is not None:
                self._chat.client.typing(self._chat.conversation_id, typing=False)
            self._typing_told_at = None
        elif self._typing_told_at is None or now - self._typing_told_at >= limits.TYPING_INTERVAL_S:
            self._typing_told_at = now
            self._chat.client.typing(self._chat.conversation_id)
