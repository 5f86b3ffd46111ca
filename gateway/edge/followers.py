"""Which users of this node follow which channels: to whom of those who are connected a channel's entries are pushed.

A channel's owner names nobody in a delivery (``gateway.broker.followers_of``), so each node has to know by itself who
of its users is in. It learns that in two ways:

* A user's Sync or ListConversations *compares*: it reads which channels the user is in, lets the user follow those,
  waits until the session directory knows that this node wants their entries, and only then reads how far they are.
  What is durable before that is in its answer, what comes later is handed on here. What was read first is enough only
  if the user was following the channel before that, by another device for instance.
* An entry that adds or removes users names them besides, and so reaches the nodes where they are: they begin to follow,
  or end it, with that entry. Whoever is the first of a channel here may miss what is handed on before the directory
  knows it: ``on_joined`` has that user sync once more.

What arrives of an entry while a comparison is under way is kept in spite of what was read: it may be newer, and if it
is older, what made the difference is on its way. If changes got lost meanwhile, nobody follows by what was read, which
may be older than they are; all connections are told to sync then, and do so once more. Entries of one channel arrive in
order, except for what a dead owner left behind; changes older than the last one are therefore passed over.

An owner tells an entry again whose first deliveries may have been lost, and cannot name who was in by then. Who joined
behind it is left out here: of each follower it is known by which entry it is in.

A user who is not connected any more follows nothing.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from gateway.broker import Delivery, followers_of
from protocol.codec import decode_entry, decode_entry_head
from protocol.frames import Entry
from store.entries import changes_of

CHANGES_KNOWN_MAX: Final = 4_096
"""Channels of which it is remembered how far changes of members have been heard, some 100 bytes each."""


class Followers:
    """The users of this node by the channels that they follow.

    Attributes:
        on_first: called with a channel's id when the first user here begins to follow it.
        on_last: called with a channel's id when nobody here follows it any more.
        registered: awaited with a channel's id: until the session directory knows that this node wants its entries;
            None on a single node.
        on_joined: called with a channel's id and users who were added to it while they were connected, if the
            directory may not know that yet; to be followed by ``joined`` when it does.
        losses: times that changes of members got lost on the way here.
    """

    def __init__(self, connected: Container[str]) -> None:
        """``connected``: the users who have a connection here."""
        self.on_first: Callable[[str], None] = lambda _channel: None
        self.on_last: Callable[[str], None] = lambda _channel: None
        self.on_joined: Callable[[str, list[str]], None] = lambda _channel, _users: None
        self.registered: Callable[[str], Awaitable[None]] | None = None
        self._connected = connected
        self._users: dict[str, dict[str, int]] = {}  # the seqs of the entries by which they are in
        self._last_joined_seq: dict[str, int] = {}
        self._channels: dict[str, set[str]] = {}
        self._snapshots: dict[str, tuple[str, ...]] = {}
        self._changed_seq: dict[str, int] = {}
        self._comparisons: dict[str, list[set[str]]] = {}
        self._registering: Counter[str] = Counter()
        self.losses = 0

    def __contains__(self, channel: str) -> bool:
        return channel in self._users

    def __iter__(self) -> Iterator[str]:
        return iter(self._users)

    def __len__(self) -> int:
        """Channels that somebody here follows."""
        return len(self._users)

    def here(self, channel: str) -> tuple[str, ...]:
        """The users here who follow a channel: a snapshot, the same object until that changes."""
        snapshot = self._snapshots.get(channel)
        if snapshot is None:
            snapshot = self._snapshots[channel] = tuple(self._users.get(channel, ()))
            if not snapshot:
                del self._snapshots[channel]
        return snapshot

    def is_following(self, user: str, channel: str) -> bool:
        """Whether a channel's entries are pushed to a user here."""
        return channel in self._channels.get(user, ())

    # --- Deliveries -------------------------------------------------------------------------------------------------

    def recipients(self, delivery: Delivery) -> tuple[str, ...]:
        """Who is to get a channel's delivery here; whom its last entry adds or removes begins or ends to follow.

        Who is removed still gets that entry, and nothing behind it.
        """
        channel = delivery.conversation_id
        everybody = followers_of(channel)
        named = [user for user in delivery.recipients if user != everybody]
        here = self._in_by(channel, delivery.entries[0]) if len(named) < len(delivery.recipients) else ()
        if not named:
            return here
        told = set(here)
        others = tuple(user for user in named if user not in told)
        self._change(channel, decode_entry(delivery.entries[-1]), named)
        return here + others

    def _in_by(self, channel: str, encoded: bytes) -> tuple[str, ...]:
        """The followers here who were in when an entry was appended, or are by it."""
        here = self.here(channel)
        if not here:
            return here
        seq = decode_entry_head(encoded).seq
        if seq >= self._last_joined_seq[channel]:
            return here
        return tuple(user for user, joined_seq in self._users[channel].items() if joined_seq <= seq)

    def _change(self, channel: str, entry: Entry, named: Collection[str]) -> None:
        if entry.seq < self._changed_seq.get(channel, 0):
            return
        self._changed_seq.pop(channel, None)
        self._changed_seq[channel] = entry.seq
        if len(self._changed_seq) > CHANGES_KNOWN_MAX:
            del self._changed_seq[next(iter(self._changed_seq))]
        changes = changes_of(entry)
        for user in named:
            for heard in self._comparisons.get(user, ()):
                heard.add(channel)
        unknown = channel not in self._users or self._registering[channel] > 0
        joined = [user for user in changes.added if user in named and user in self._connected]
        for user in joined:
            self._follow(user, channel, entry.seq)
        for user in changes.removed:
            if user in named:
                self._end(user, channel)
        if joined and unknown and self.registered is not None:
            self._registering[channel] += 1
            self.on_joined(channel, joined)

    def joined(self, channel: str) -> None:
        """The session directory knows what ``on_joined`` was called for."""
        self._registering[channel] -= 1
        if not self._registering[channel]:
            del self._registering[channel]

    # --- Comparing --------------------------------------------------------------------------------------------------

    @contextmanager
    def comparing(self, user: str) -> Iterator["Comparison"]:
        """Hold this while it is read which channels a user is in."""
        heard: set[str] = set()
        coming = {channel for channel in self._channels.get(user, ()) if channel not in self._registering}
        self._comparisons.setdefault(user, []).append(heard)
        try:
            yield Comparison(self, user, heard, coming)
        finally:
            others = [each for each in self._comparisons[user] if each is not heard]
            if others:
                self._comparisons[user] = others
            else:
                del self._comparisons[user]

    async def register(self, channels: Iterable[str]) -> None:
        """Wait until the session directory knows that this node wants the entries of channels. Cancelling is safe."""
        if self.registered is None:
            return
        for channel in channels:
            self._registering[channel] += 1
            try:
                await self.registered(channel)
            finally:
                self.joined(channel)

    def compare(
        self, user: str, channels: Mapping[str, int], heard: Container[str], coming: Container[str], *, whole: bool
    ) -> bool:
        """Let a user follow channels; ``whole``: and no others. Whether what was read of them is enough.

        ``channels``: what was read, with the seqs of the entries by which the user is in; ``heard``: those whose
        entries said that the user joined or left, since before it was read; ``coming``: those whose pushes were coming
        by then.
        """
        if user not in self._connected:
            return True
        followed = self._channels.get(user, set())
        complete = True
        for channel, joined_seq in channels.items():
            if channel not in followed and channel not in heard:
                self._follow(user, channel, joined_seq)
                complete = False
            elif channel in followed and (self._registering.get(channel) or channel not in coming):
                complete = False
        if whole:
            for channel in [each for each in followed if each not in channels and each not in heard]:
                self._end(user, channel)
        return complete

    # --- Beginning and ending ---------------------------------------------------------------------------------------

    def _follow(self, user: str, channel: str, joined_seq: int) -> None:
        users = self._users.get(channel)
        if users is None:
            users = self._users[channel] = {}
        users[user] = joined_seq
        self._last_joined_seq[channel] = max(joined_seq, self._last_joined_seq.get(channel, 0))
        self._snapshots.pop(channel, None)
        self._channels.setdefault(user, set()).add(channel)
        if len(users) == 1:
            self.on_first(channel)

    def _end(self, user: str, channel: str) -> None:
        channels = self._channels.get(user, set())
        if channel not in channels:
            return
        channels.remove(channel)
        if not channels:
            del self._channels[user]
        users = self._users[channel]
        del users[user]
        self._snapshots.pop(channel, None)
        if not users:
            del self._users[channel], self._last_joined_seq[channel]
            self.on_last(channel)

    def departed(self, user: str) -> None:
        """The user's last connection here is gone."""
        for channel in list(self._channels.get(user, ())):
            self._end(user, channel)

    def end_all(self) -> None:
        """Nobody follows anything until the next Sync: what changed was lost on the way here."""
        self.losses += 1
        for user in list(self._channels):
            self.departed(user)

    # --- Upgrade ----------------------------------------------------------------------------------------------------

    def all(self) -> dict[str, dict[str, int]]:
        """Everything that is followed here, by whom, and the seqs of the entries by which they are in."""
        return {channel: dict(users) for channel, users in self._users.items()}

    def restore(self, followed: Mapping[str, Mapping[str, int]]) -> None:
        """Go on for another process, whose ``all`` this was."""
        for channel, users in followed.items():
            for user, joined_seq in users.items():
                if user in self._connected:
                    self._follow(user, channel, joined_seq)


class Comparison:
    """One comparison of what a user follows with what was read."""

    __slots__ = ("_coming", "_followers", "_heard", "_losses", "_user")

    def __init__(self, followers: Followers, user: str, heard: set[str], coming: set[str]) -> None:
        self._followers = followers
        self._user = user
        self._heard = heard
        self._coming = coming
        self._losses = followers.losses

    async def take(self, channels: Mapping[str, int], *, whole: bool) -> bool:
        """Follow the channels that were read; ``whole``: they are all. Whether that is all there is to do.

        ``channels``: with the seqs of the entries by which the user is in. If it is not all there is to do, their logs
        are to be read again: what was durable until now may not have been handed on to this node.
        A cancellation leaves them followed, which is harmless: the user is in them.
        """
        if self._losses != self._followers.losses:
            return True  # what was read may be older than what got lost
        complete = self._followers.compare(self._user, channels, self._heard, self._coming, whole=whole)
        if not complete:
            await self._followers.register(channels)
        return complete
