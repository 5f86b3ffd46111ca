"""The part of a conversation that a terminal shows.

A window of prompt_toolkit scrolls by lines, and of a line that is taller than itself it shows the beginning. So lines
are cut into rows here, and rows are what is scrolled: every row of a message of any length can be seen.
"""

from prompt_toolkit.layout.controls import UIContent, UIControl

from gateway.cli.chat_model import ChatModel, Fragments
from gateway.cli.chat_rows import in_rows


class ConversationView(UIControl):
    """The newest rows of a conversation, or older ones once the person has gone back.

    Args:
        model: the conversation.
    """

    def __init__(self, model: ChatModel) -> None:
        self.rows_below = 0
        """Rows between the last one shown and the newest."""
        self._model = model
        self._page_rows = 1

    def back(self) -> None:
        """Show what is above; the topmost row stays, at the bottom."""
        self.rows_below += self._page_rows

    def forward(self) -> None:
        """Show what is below; the last row stays, at the top."""
        self.rows_below = max(0, self.rows_below - self._page_rows)

    def to_newest(self) -> None:
        """Show the newest rows again."""
        self.rows_below = 0

    def create_content(self, width: int, height: int) -> UIContent:
        """The rows that a window of this many columns and rows shows; prompt_toolkit asks for them at each redraw."""
        self._page_rows = max(1, height - 1)
        rows = self._newest_rows(width, height + self.rows_below)
        self.rows_below = min(self.rows_below, max(0, len(rows) - height))
        shown = rows[max(0, len(rows) - height - self.rows_below) : len(rows) - self.rows_below] or [[]]
        return UIContent(lambda row: [*shown[row]], len(shown))

    def _newest_rows(self, columns: int, count: int) -> list[Fragments]:
        """At least this many, or all there are: of a long conversation few lines are cut at each redraw."""
        indent = min(self._model.indent, columns // 3)
        lines: list[list[Fragments]] = []
        cut = 0
        for line in self._model.newest_first():
            if cut >= count:
                break
            lines.append(in_rows(line, columns, indent))
            cut += len(lines[-1])
        return [row for rows in reversed(lines) for row in rows]
