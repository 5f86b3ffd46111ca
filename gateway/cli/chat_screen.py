"""The terminal's side of a chat: a window for the conversation, a line to write in, a status bar.

prompt_toolkit wants an event loop of its own, so it runs in a thread; what is typed comes out through ``submit`` and
``typed``, called in the trio thread.
"""

import time
from collections.abc import Callable

import trio
from prompt_toolkit.application import Application
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import HSplit, Layout, Window
from prompt_toolkit.layout.controls import FormattedTextControl
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.styles import Style
from prompt_toolkit.widgets import TextArea

from gateway.cli.chat_model import ChatModel
from gateway.cli.chat_status import fitted
from gateway.cli.chat_view import ConversationView

STYLE = Style.from_dict(
    {
        "time": "#888888", "name": "bold ansicyan", "own": "bold ansigreen", "note": "italic #888888",
        "tick": "#888888", "read": "ansibrightblue", "error": "ansired", "prompt": "bold ansigreen",
        "status": "bg:#303030 #cccccc", "status.title": "bg:#005f87 bold #ffffff",
        "status.online": "bg:#303030 ansibrightgreen", "status.typing": "bg:#303030 italic ansibrightyellow",
        "status.warn": "bg:#875f00 #ffffff",
    }
)  # fmt: skip

REFRESH_S = 1.0
"""Seconds between two redraws without an event: typing ends by itself."""

STATUS_LINES_MAX = 3
"""Lines of the status: in a narrow terminal, why the connection is lost takes more than one."""


class ChatScreen:
    """A full-screen chat.

    Args:
        model: what to show.
        submit: takes a line, in the trio thread.
        typed: called in the trio thread when the text being written changes; says whether there is any.
    """

    def __init__(self, model: ChatModel, submit: Callable[[str], None], typed: Callable[[bool], None]) -> None:
        self._model = model
        self._submit = submit
        self._typed = typed
        self._view = ConversationView(model)
        self._closed = False
        self._input = TextArea(prompt=[("class:prompt", "> ")], multiline=False)
        self._input.buffer.accept_handler = self._accept
        self._input.buffer.on_text_changed += self._text_changed
        body = HSplit(
            [
                Window(self._view, always_hide_cursor=True),
                Window(
                    FormattedTextControl(self._status),
                    height=Dimension(min=1, max=STATUS_LINES_MAX),
                    dont_extend_height=True,
                    style="class:status",
                ),
                self._input,
            ]
        )
        self._application: Application[None] = Application(
            Layout(body, focused_element=self._input), key_bindings=self._keys(), style=STYLE, full_screen=True,
            refresh_interval=REFRESH_S,
        )  # fmt: skip

    async def run(self) -> None:
        """Show the chat until the user ends it. Cancelling closes the screen and waits for the terminal to be reset."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_when_cancelled)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._run)
            nursery.cancel_scope.cancel()

    def redraw(self) -> None:
        """Show what has changed. May be called from any thread."""
        self._application.invalidate()

    def _run(self) -> None:
        self._application.run(pre_run=self._opened, handle_sigint=False, set_exception_handler=False)

    def _opened(self) -> None:
        if self._closed:  # while the thread was starting: there was no screen yet to be closed
            self._application.exit()

    async def _close_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.close()

    def close(self) -> None:
        """Leave the screen. May be called from any thread."""
        self._closed = True
        loop = self._application.loop
        if loop is not None and self._application.is_running:
            loop.call_soon_threadsafe(self._exit)

    def _exit(self) -> None:
        if self._application.is_running and not self._application.is_done:
            self._application.exit()

    def _accept(self, _: object) -> bool:
        self._view.to_newest()
        text = self._input.text.strip()
        if text:
            trio.from_thread.run_sync(self._submit, text)
        return False  # clears the line

    def _text_changed(self, _: object) -> None:
        text = self._input.text
        trio.from_thread.run_sync(self._typed, bool(text) and not text.startswith("/"))

    def _status(self) -> StyleAndTextTuples:
        status = self._model.status(time.monotonic())
        if self._view.rows_below:
            status.append(("class:status", f" {self._view.rows_below} lines further down "))
        return [*fitted(status, self._application.output.get_size().columns, STATUS_LINES_MAX)]

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("c-c")
        @keys.add("c-d")
        def leave(event: KeyPressEvent) -> None:
            event.app.exit()

        @keys.add("pageup")
        def back(event: KeyPressEvent) -> None:
            self._view.back()

        @keys.add("pagedown")
        def forward(event: KeyPressEvent) -> None:
            self._view.forward()

        return keys
