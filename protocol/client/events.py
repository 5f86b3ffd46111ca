"""What a client tells its user: typed events, and the bounded queue that they wait in."""

from collections import deque
from typing import Final

import trio
from msgspec import Struct

from protocol.client.states import State
from protocol.frames import Entry, EntryKind


class Event(Struct, frozen=True, tag_field="event"):
    """Base of all events. As JSON an event is an object whose ``event`` field names its type."""


class EntryEvent(Event, frozen=True):
    """A new entry of a conversation: seen exactly once and in ``seq`` order within its conversation.

    Entries that this client sent itself are no events: ``send`` returns their seq. Those of the user's other devices
    are. ``time_us`` is microseconds since the Unix epoch.
    """

    conversation_id: str
    seq: int
    time_us: int
    sender: str
    client_msg_id: str


class MessageReceived(EntryEvent, frozen=True, tag="message"):
    """Somebody wrote."""

    body: str
    metadata: dict[str, str] | None = None


class ConversationCreated(EntryEvent, frozen=True, tag="created"):
    """A conversation with this user in it was created; always seq 1. Direct ones have an empty title."""

    title: str
    users: list[str]


class MembersAdded(EntryEvent, frozen=True, tag="members_added"):
    """Users came into the conversation; the client's user may be one of them."""

    users: list[str]


class MembersRemoved(EntryEvent, frozen=True, tag="members_removed"):
    """Users left or were removed. When the client's user is one of them, nothing more comes from there."""

    users: list[str]


class ConversationRenamed(EntryEvent, frozen=True, tag="renamed"):
    """A group has a new title."""

    title: str


class OtherEntry(EntryEvent, frozen=True, tag="other_entry"):
    """An entry of a kind that this version does not know. Its seq counts; show nothing."""

    kind: int


class ConversationLeft(Event, frozen=True, tag="left"):
    """The user is no longer in the conversation; learnt when coming back."""

    conversation_id: str


class ReceiptChanged(Event, frozen=True, tag="receipt"):
    """How far a member is. May be shed when the program does not keep up; the newest one tells all."""

    conversation_id: str
    user: str
    delivered_seq: int
    read_seq: int


class TypingChanged(Event, frozen=True, tag="typing"):
    """A member began to type or stopped. May be shed."""

    conversation_id: str
    user: str
    typing: bool


class PresenceChanged(Event, frozen=True, tag="presence"):
    """A watched user came or went; ``last_seen_ms`` since the Unix epoch, 0 when unknown. May be shed."""

    user: str
    online: bool
    last_seen_ms: int


class StateChanged(Event, frozen=True, tag="state"):
    """The client's connection changed its state."""

    state: State


class Resumed(Event, frozen=True, tag="resumed"):
    """The client is up to date after connecting.

    ``resumed``: everything was continued without a gap. If not, some conversation had more news than one sync
    carries; the client fills in the rest, still in order.
    """

    resumed: bool


class MessageSent(Event, frozen=True, tag="sent"):
    """A message that no ``send`` call waits for any more (cancelled, or of an earlier run) was stored."""

    conversation_id: str
    client_msg_id: str
    seq: int
    time_us: int


class MessageNotSent(Event, frozen=True, tag="not_sent"):
    """A message that no ``send`` call waits for any more was given up; ``reason`` says why."""

    conversation_id: str
    client_msg_id: str
    body: str
    reason: str


def entry_event(conversation_id: str, entry: Entry) -> EntryEvent:
    """The event that tells of an entry."""
    head = (conversation_id, entry.seq, entry.time_us, entry.sender, entry.client_msg_id)
    users = list(entry.users or ())
    match entry.kind:
        case EntryKind.MESSAGE:
            return MessageReceived(*head, entry.body, entry.metadata)
        case EntryKind.CREATED:
            return ConversationCreated(*head, entry.body, users)
        case EntryKind.MEMBERS_ADDED:
            return MembersAdded(*head, users)
        case EntryKind.MEMBERS_REMOVED:
            return MembersRemoved(*head, users)
        case EntryKind.RENAMED:
            return ConversationRenamed(*head, entry.body)
        case _:
            return OtherEntry(*head, entry.kind)


class EventQueue:
    """Events between the connection and the program, bounded.

    Entries are never dropped here: whoever puts them asks ``full`` first and fetches what did not fit by history.
    Receipts, typing and presence are shed when the queue is full (``shed`` counts them). Of the rare rest there are
    kept, whatever else waits, the newest CONTROL_EVENTS_MAX (states, Resumed) and the newest ``outcomes_max`` outcomes
    of sends: a message that was given up is told of nowhere else. That a conversation was left is never shed; it comes
    once for each.

    Args:
        events_max: events that may wait.
        outcomes_max: outcomes of sends that may wait.
    """

    CONTROL_EVENTS_MAX = 256
    """States and Resumed that wait: what half an hour brings in which no connection can be made."""

    def __init__(self, events_max: int, outcomes_max: int) -> None:
        self.events_max = events_max
        self.shed = 0
        self._events: deque[Event] = deque()
        self._rare = {_STATES: 0, _OUTCOMES: 0}
        self._rare_max = {_STATES: self.CONTROL_EVENTS_MAX, _OUTCOMES: outcomes_max}
        self._in_hand: EntryEvent | None = None
        self._closed = False
        self._arrived = trio.Event()
        self._room = trio.Event()

    @property
    def full(self) -> bool:
        """Is there no room for an entry?"""
        return len(self._events) >= self.events_max

    @property
    def half_empty(self) -> bool:
        """Is there room enough to make fetching worthwhile?"""
        return len(self._events) <= self.events_max // 2

    def put_entry(self, event: EntryEvent) -> None:
        """Queue an entry. Going over the bound is the caller's to avoid."""
        self._put(event)

    def put_or_shed(self, event: ReceiptChanged | TypingChanged | PresenceChanged) -> None:
        """Queue an event that may be lost."""
        if self.full:
            self.shed += 1
        else:
            self._put(event)

    def put_control(self, event: Event) -> None:
        """Queue a rare event even beyond the bound; the oldest of its sort goes when there are too many."""
        sort = _sort(event)
        if sort is not None:
            if self._rare[sort] >= self._rare_max[sort]:
                oldest = next(place for place, e in enumerate(self._events) if isinstance(e, sort))
                del self._events[oldest]
                self.shed += 1
            else:
                self._rare[sort] += 1
        self._put(event)

    def close(self) -> None:
        """No more events come: ``get`` returns those that wait, then None."""
        self._closed = True
        self._arrived.set()
        self._room.set()

    async def get(self) -> Event | None:
        """The next event, or None when closed. The one got before counts as dealt with from now on.

        Cancelling leaves the event in the queue.
        """
        self._in_hand = None
        await trio.lowlevel.checkpoint()
        while not self._events:
            if self._closed:
                return None
            if self._arrived.is_set():  # else somebody waits for it already
                self._arrived = trio.Event()
            await self._arrived.wait()
        event = self._events.popleft()
        sort = _sort(event)
        if isinstance(event, EntryEvent):
            self._in_hand = event
        elif sort is not None:
            self._rare[sort] -= 1
        if self.half_empty:
            self._room.set()
        return event

    async def wait_half_empty(self) -> None:
        """Wait until at least half of the queue is free, or it is closed. Cancelling leaves nothing behind."""
        while not self.half_empty and not self._closed:
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()

    def deal_with_last(self) -> None:
        """The event got last counts as dealt with."""
        self._in_hand = None

    def not_dealt_with(self) -> dict[str, int]:
        """For each conversation with waiting entries (or one in the program's hands): the smallest seq of them."""
        first: dict[str, int] = {}
        waiting = [self._in_hand, *self._events]
        for event in reversed(waiting):
            if isinstance(event, EntryEvent):
                first[event.conversation_id] = event.seq
        return first

    def _put(self, event: Event) -> None:
        if not self._closed:
            self._events.append(event)
            self._arrived.set()


_Sort = tuple[type[Event], ...]
_STATES: Final[_Sort] = (StateChanged, Resumed)
_OUTCOMES: Final[_Sort] = (MessageSent, MessageNotSent)


def _sort(event: Event) -> _Sort | None:
    return next((sort for sort in (_STATES, _OUTCOMES) if isinstance(event, sort)), None)
