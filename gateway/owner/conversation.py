"""One conversation in its owner's memory: head, members, recent entries, and what is on its way to the store.

Its seqs, from old to new: ``first_tail_seq`` … ``head_seq`` are durable and in the tail, ``head_seq + 1`` …
``last_seq`` are assigned and pending. Nobody but the owner sees anything of what is pending.
"""

from collections import deque
from collections.abc import Collection

from msgspec import Struct

from gateway.broker import Origin, followers_of, is_channel
from gateway.owner.deduplication import Key, key_of
from gateway.refusals import not_found
from protocol.codec import decode_entry
from protocol.frames import Command, ConversationKind, Entry
from store.entries import Append, Loaded, MemberRecord, StoredEntry, changes_of
from store.interface import StoreError


class Pending(Struct, gc=False):
    """A send whose entry is not known to be durable yet.

    Attributes:
        origin: who is to be answered; None once answered (the entry is then delivered to that connection, too).
        request_id: the command's id.
        stored: the entry.
        key: what a repeat would be recognised by.
        arrived_s: trio's clock when the first command of the same slice arrived.
        repeats: origins and ids of repeats that came meanwhile.
    """

    origin: Origin | None
    request_id: int
    stored: StoredEntry
    key: Key
    arrived_s: float
    repeats: list[tuple[Origin, int]] | None = None


class MembersUnknown(Exception):
    """A command cannot be judged before it is known whether ``users`` are in the channel."""

    def __init__(self, users: list[str]) -> None:
        super().__init__()
        self.users = users


class Conversation:
    """A conversation that is being loaded or is loaded.

    Attributes:
        is_channel: whether its members are not all in memory.
        loaded: False until ``fill`` was called; nothing but id, is_channel, waiting and is_open means anything before.
        members: the members as of head_seq, in order of joining; of a channel those who are known (see ``Census``).
        outsiders: of a channel, users who are known not to be in, as of head_seq.
        member_count: how many there are, known or not.
        member_changes: how often members have changed since it was loaded.
        recipients: their ids, a snapshot that is replaced and never changed; in a channel that of all followers.
        tail: encoded entries up to the head, oldest first.
        recent: for each key of the tail and of what is pending, its seq.
        pending: sends with seqs head_seq + 1 … last_seq, in that order.
        unflushed: the newest entries of pending, which the store was not given yet.
        flights: what the store was given and has not answered for good, in seq order.
        outcomes: None while all goes well; otherwise the answers to flights so far, in their order.
        uncertain: so many flights, from the oldest, end with one that may be in the store though it was not confirmed.
        barrier: the newest pending entry changes members or title; commands wait until it is settled.
        waiting: None while commands are handled as they come; otherwise they wait here, in order of arrival, but for
            those of origins in ``lookups``.
        leaving: it is being handed over to another node: commands are not for this one any more.
        lookups: by id of the origin, the command that is looked up and those that wait for it; None when there is none.
        due_s: when its next entry is due at the pace it may have at most, seconds of trio's clock (see ``Pace``).
        is_open: neither waiting nor lookups: the one thing that the hot path has to ask.
    """

    __slots__ = (
        "_tail_keys",
        "barrier",
        "conversation_id",
        "creator",
        "due_s",
        "epoch",
        "flights",
        "head_seq",
        "is_channel",
        "is_open",
        "kind",
        "last_seq",
        "last_time_us",
        "leaving",
        "loaded",
        "lookups",
        "member_changes",
        "member_count",
        "members",
        "outcomes",
        "outsiders",
        "pending",
        "recent",
        "recipients",
        "tail",
        "title",
        "uncertain",
        "unflushed",
        "waiting",
    )

    def __init__(self, conversation_id: str) -> None:
        self.conversation_id = conversation_id
        self.is_channel = is_channel(conversation_id)
        self.loaded = False
        self.kind = ConversationKind.DIRECT
        self.title = ""
        self.creator = ""
        self.epoch = 0
        self.members: dict[str, MemberRecord] = {}
        self.outsiders: dict[str, None] = {}
        self.member_count = 0
        self.member_changes = 0
        self.recipients: tuple[str, ...] = ()
        self.head_seq = 0
        self.last_seq = 0
        self.last_time_us = 0
        self.tail: list[bytes] = []
        self._tail_keys: list[Key] = []
        self.recent: dict[Key, int] = {}
        self.pending: list[Pending] = []
        self.unflushed: list[StoredEntry] = []
        self.flights: list[Append] = []
        self.outcomes: list[StoreError | None] | None = None
        self.uncertain = 0
        self.barrier = False
        self.waiting: deque[tuple[Origin, Command]] | None = deque()
        self.lookups: dict[int, deque[tuple[Origin, Command]]] | None = None
        self.leaving = False
        self.due_s = 0.0
        self.is_open = False

    def fill(self, loaded: Loaded, epoch: int) -> None:
        """Take what the store knows."""
        self.loaded = True
        self.kind = loaded.record.kind
        self.title = loaded.record.title
        self.creator = loaded.record.creator
        self.epoch = epoch
        self.members = loaded.members
        self.member_count = loaded.member_count
        self.recipients = (followers_of(self.conversation_id),) if self.is_channel else tuple(loaded.members)
        self.head_seq = self.last_seq = loaded.head_seq
        self.last_time_us = loaded.head_time_us
        self.tail = [stored.encoded for stored in loaded.tail]
        self._tail_keys = [key_of(stored.entry.sender, stored.entry.client_msg_id) for stored in loaded.tail]
        self.recent = {key: self.first_tail_seq + index for index, key in enumerate(self._tail_keys)}

    def excludes(self, user: str) -> bool:
        """Whether a user is surely not in."""
        return self.loaded and (user in self.outsiders if self.is_channel else user not in self.members)

    def require_member(self, user: str) -> None:
        """Raises Refused: not a member; MembersUnknown: that is not known."""
        if user not in self.members:
            self.require_known((user,))
            raise not_found()

    def require_known(self, users: Collection[str]) -> None:
        """Raises MembersUnknown unless it is known of all these users whether they are in."""
        if self.is_channel:
            unknown = [user for user in users if user not in self.members and user not in self.outsiders]
            if unknown:
                raise MembersUnknown(unknown)

    @property
    def first_tail_seq(self) -> int:
        """The seq of the oldest entry in the tail; head_seq + 1 when the tail is empty."""
        return self.head_seq - len(self.tail) + 1

    @property
    def idle(self) -> bool:
        """Nothing is under way, so that it may be forgotten."""
        return self.is_open and self.settled

    @property
    def settled(self) -> bool:
        """Nothing is under way in the store, whoever waits for that."""
        return self.loaded and not (self.pending or self.flights or self.lookups)

    def doubt_flights(self) -> None:
        """Any of what the store was given may be in it, and count or not, whatever it answered."""
        self.uncertain = len(self.flights)

    def close(self) -> None:
        """Let commands wait from now on."""
        if self.waiting is None:
            self.waiting = deque()
        self.is_open = False

    def wait_again(self, commands: deque[tuple[Origin, Command]]) -> None:
        """Let commands go on waiting, before others; those of an origin for which a lookup has begun, behind that."""
        commands.extend(self.waiting or ())
        self.waiting = deque()
        lookups = self.lookups or {}
        for origin, command in commands:
            lookups.get(id(origin), self.waiting).append((origin, command))

    def update_open(self) -> None:
        """Set is_open after waiting or lookups changed."""
        self.is_open = self.waiting is None and self.lookups is None

    def remember(self, sends: list[Pending], tail_entries_max: int) -> None:
        """Add what has become durable to the tail, and forget the oldest quarter of it when it grows too long."""
        for send in sends:
            self.tail.append(send.stored.encoded)
            self._tail_keys.append(send.key)
        self.head_seq += len(sends)
        excess = len(self.tail) - tail_entries_max
        if excess > 0:
            self._forget(excess + tail_entries_max // 4)

    def _forget(self, count: int) -> None:
        first = self.first_tail_seq
        for index, key in enumerate(self._tail_keys[:count]):
            if self.recent.get(key) == first + index:  # else: a later entry took the same key
                del self.recent[key]
        del self.tail[:count]
        del self._tail_keys[:count]

    def entry_in_tail(self, seq: int) -> Entry | None:
        """The durable entry with this seq, if memory has it."""
        first = self.first_tail_seq
        return decode_entry(self.tail[seq - first]) if first <= seq <= self.head_seq else None

    def recipients_again(self, entry: Entry) -> tuple[str, ...]:
        """Who is to get a durable entry once more, because its first delivery may have been lost.

        That is who was a member by it and is one still, and whom it removed, unless they are in again. (In a channel:
        whom it added, and all followers, of whom their nodes leave out who joined behind it.)
        """
        changes = changes_of(entry)
        removed = [user for user in changes.removed if self.excludes(user)]
        if self.is_channel:
            added = [user for user in changes.added if user in self.members]
            return (*self.recipients, *added, *removed) if added or removed else self.recipients
        present = [user for user, member in self.members.items() if member.joined_seq <= entry.seq]
        return (*present, *removed) if removed or len(present) < len(self.recipients) else self.recipients

    def apply(self, entry: Entry) -> Collection[str]:
        """Carry out what a durable entry does to members and title; answers who is to get that entry.

        Who is removed gets the removal itself and nothing later; who is added gets the entry that added it. (An entry
        of a channel names nobody whom it does not add or remove, so that it can be counted without looking.)
        """
        changes = changes_of(entry)
        if changes.title is not None:
            self.title = changes.title
        before = self.recipients
        if changes.added or changes.removed:
            self.member_changes += 1
        for user in changes.added:
            self.outsiders.pop(user, None)
            self.members.setdefault(user, MemberRecord(user, joined_seq=entry.seq))
        for user in changes.removed:
            self.members.pop(user, None)
        if self.is_channel:
            self.outsiders.update(dict.fromkeys(changes.removed))
            self.member_count += len(changes.added) - len(changes.removed)
            return (*before, *changes.added, *changes.removed)
        if changes.added or changes.removed:
            self.recipients = tuple(self.members)
            self.member_count = len(self.members)
        return before if changes.removed else self.recipients
