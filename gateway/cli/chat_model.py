"""What a terminal chat knows of its conversation, and how that reads as text. No input or output here."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final

from msgspec import Struct

from gateway.cli.chat_text import in_lines, in_one_line
from protocol import limits
from protocol.client import (
    Closed,
    Connecting,
    ConversationCreated,
    ConversationLeft,
    ConversationRenamed,
    EntryEvent,
    Event,
    MembersAdded,
    MembersRemoved,
    MessageReceived,
    Online,
    PresenceChanged,
    ReceiptChanged,
    State,
    StateChanged,
    TypingChanged,
    Waiting,
)
from protocol.frames import Member

Fragments = list[tuple[str, str]]
"""Styled text, as prompt_toolkit has it: (style class, text)."""

LINES_MAX: Final = 2_000
"""Lines kept for scrolling back."""

HISTORY_ENTRIES: Final = 20
"""Entries shown on entry: about a screen."""

_NAME_COLUMN_CHARS_MAX: Final = 16
"""Characters shown of a name: most of a narrow terminal is for what is said."""


class Line(Struct):
    """A line of the conversation. ``seq`` is 0 for what is not in the log: notes, and messages on their way."""

    time: str
    name: str
    text: str
    style: str
    seq: int = 0
    own: bool = False
    failed: str = ""


class ChatModel:
    """A conversation as one user sees it.

    Args:
        user: who looks at it.
        title: what to call the conversation.
        members: the members and how far they are.
    """

    def __init__(self, user: str, title: str, members: Iterable[Member]) -> None:
        self.user = user
        self.title = title
        self.lines: list[Line] = []
        self.seen_seq = 0
        self.state: State = Connecting(1)
        self._read: dict[str, int] = {}
        self._delivered: dict[str, int] = {}
        self._typing: dict[str, float] = {}
        self._presence: dict[str, PresenceChanged] = {}
        for member in members:
            if member.user != user:
                self._note_receipt(member.user, member.delivered_seq, member.read_seq)

    @property
    def others(self) -> list[str]:
        """The other members, as far as known."""
        return list(self._delivered)

    def note(self, text: str) -> None:
        """Say something that is not part of the conversation."""
        self._add(Line("", "", text, "class:note"))

    def sending(self, text: str) -> Line:
        """Show a message that is on its way."""
        line = Line(datetime.now().strftime("%H:%M"), "you", text, "class:own", own=True)
        self._add(line)
        return line

    def take(self, event: Event, now_s: float) -> bool:
        """Take note of an event of this conversation; returns whether it was news. ``now_s``: the monotonic clock."""
        match event:
            case EntryEvent():
                return self._take_entry(event)
            case ReceiptChanged():
                self._note_receipt(event.user, event.delivered_seq, event.read_seq)
            case TypingChanged(user=user, typing=True):
                self._typing[user] = now_s + limits.TYPING_ENDS_S
            case TypingChanged():
                self._typing.pop(event.user, None)
            case PresenceChanged():
                self._presence[event.user] = event
            case StateChanged():
                self.state = event.state
                self._typing.clear()  # who has stopped meanwhile is told to nobody who is away
            case ConversationLeft():
                self.note("you are no longer in this conversation")
            case _:
                return False
        return True

    def tick(self, line: Line) -> str:
        """How far an own message is: not acknowledged, stored, delivered to all, read by all."""
        if line.failed:
            return "✗"
        if not line.seq:
            return "…"
        if self._read and min(self._read.values()) >= line.seq:
            return "✓✓"
        if self._delivered and min(self._delivered.values()) >= line.seq:
            return "✓"
        return "·"

    @property
    def indent(self) -> int:
        """Columns before the text of a message: what goes on below it begins there, so that it passes for no other."""
        return 6 + self._name_width() + 2

    def _name_width(self) -> int:
        return min(max((len(line.name) for line in self.lines), default=0), _NAME_COLUMN_CHARS_MAX)

    def newest_first(self) -> Iterator[Fragments]:
        """The lines as styled text; line breaks within are those of the message."""
        width = self._name_width()
        for line in self.lines[::-1]:  # a copy, because the screen's thread reads it while others add to it
            yield self._styled(line, width)

    def _styled(self, line: Line, width: int) -> Fragments:
        if not line.name:
            return [(line.style, f"      {in_one_line(line.text)}")]
        styled = [("class:time", f"{line.time} "), (line.style, f"{line.name[:width]:>{width}}  "), ("", line.text)]
        if line.own:
            tick = self.tick(line)
            styled.append(("class:read" if tick == "✓✓" else "class:tick", f"  {tick}"))
        if line.failed:
            styled.append(("class:error", f" not sent: {in_one_line(line.failed)}"))
        return styled

    def status(self, now_s: float) -> Fragments:
        """One line about the connection, the others and who types."""
        parts = [("class:status.title", f" {self.title} "), *self._connection(), *self._company(now_s)]
        return [(style, in_one_line(text)) for style, text in parts]

    def _connection(self) -> Fragments:
        match self.state:
            case Online():
                return []
            case Waiting(delay_s=delay_s, reason=reason):
                return [("class:status.warn", f" connection lost, trying again in {delay_s:.1f} s ({reason}) ")]
            case Connecting():
                return [("class:status.warn", " connecting ")]
            case Closed(reason=reason):
                return [("class:status.warn", f" closed: {reason} ")]

    def _company(self, now_s: float) -> Fragments:
        if not isinstance(self.state, Online):
            return []  # what was known is old, and nobody tells
        typing = [user for user, until_s in self._typing.items() if until_s > now_s]
        if typing:
            names = ", ".join(typing)
            return [("class:status.typing", f" {names} {'is' if len(typing) == 1 else 'are'} typing… ")]
        if len(self._presence) == 1:
            presence = next(iter(self._presence.values()))
            if presence.online:
                return [("class:status.online", f" ● {presence.user} is online ")]
            seen = f", last seen {_moment(presence.last_seen_ms / 1000)}" if presence.last_seen_ms else ""
            return [("class:status", f" ○ {presence.user} is offline{seen} ")]
        online = sum(presence.online for presence in self._presence.values())
        return [("class:status.online", f" ● {online} of {len(self._presence)} online ")] if self._presence else []

    def prepend(self, entries: Iterable[EntryEvent]) -> None:
        """Show older entries above the others."""
        older = ChatModel(self.user, self.title, [])
        for entry in entries:
            older.take(entry, 0.0)
        self.lines[:0] = older.lines

    def _take_entry(self, event: EntryEvent) -> bool:
        if event.seq <= self.seen_seq:
            return False
        self.seen_seq = event.seq
        if isinstance(event, MessageReceived):
            own = event.sender == self.user
            self._typing.pop(event.sender, None)
            style, name = ("class:own", "you") if own else ("class:name", event.sender)
            self._add(Line(_moment(event.time_us / 1e6), name, event.body, style, seq=event.seq, own=own))
        else:
            self._take_change(event)
        return True

    def _take_change(self, event: EntryEvent) -> None:
        who = "you" if event.sender == self.user else event.sender
        match event:
            case ConversationCreated(users=users):
                self._join(users)
                self.note(f"{_moment(event.time_us / 1e6)} {who} began this conversation")
            case MembersAdded(users=users):
                self._join(users)
                self.note(f"{who} added {', '.join(users)}")
            case MembersRemoved(users=users):
                for user in users:
                    self._delivered.pop(user, None)
                    self._read.pop(user, None)
                self.note(
                    f"{', '.join(users)} left" if users == [event.sender] else f"{who} removed {', '.join(users)}"
                )
            case ConversationRenamed(title=title):
                self.title = title
                self.note(f"{who} renamed the conversation: {title}")
            case _:
                self.note("something that this version cannot show")

    def _join(self, users: Iterable[str]) -> None:
        for user in users:
            if user != self.user:
                self._note_receipt(user, 0, 0)

    def _note_receipt(self, user: str, delivered_seq: int, read_seq: int) -> None:
        if user == self.user:
            return
        self._delivered[user] = max(self._delivered.get(user, 0), delivered_seq, read_seq)
        self._read[user] = max(self._read.get(user, 0), read_seq)

    def _add(self, line: Line) -> None:
        line.name, line.text = in_one_line(line.name), in_lines(line.text)
        self.lines.append(line)
        del self.lines[:-LINES_MAX]


def _moment(epoch_s: float) -> str:
    """A time as people write it: the hour today, else the day with it."""
    moment = datetime.fromtimestamp(epoch_s)
    today = moment.date() == datetime.now().date()
    return moment.strftime("%H:%M" if today else "%d %b %H:%M")
