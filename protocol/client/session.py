"""What this device has seen of each conversation, across reconnects. No input or output here.

A conversation's *cursor* is the last seq without a gap. An entry beyond cursor + 1 is held back until the gap is
filled; an entry at or below the cursor is a repeat and dropped. So each entry comes out once and in order, however
often and in whatever order pushes, syncs and history pages bring it.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from protocol.frames import Entry, EntryKind


class _Log(Struct):
    """One conversation. ``held`` maps seqs beyond the cursor to entries; None stands for an entry of our own."""

    cursor: int
    head: int
    held: dict[int, Entry | None]

    def advance(self) -> list[Entry]:
        """Move the cursor over everything that is held without a gap; returns the entries to show."""
        ready: list[Entry] = []
        while self.held and self.cursor + 1 in self.held:
            self.cursor += 1
            entry = self.held.pop(self.cursor)
            if entry is not None:
                ready.append(entry)
        return ready


class Session:
    """Cursors and held-back entries of one device.

    A conversation's view begins with the first entry that comes from it; ``start_at`` sets another beginning.

    Args:
        cursors: what an earlier run had seen.
        held_max: entries held back at once, over all conversations. What does not fit is fetched again later.
    """

    def __init__(self, cursors: Mapping[str, int], held_max: int) -> None:
        self._logs = {name: _Log(cursor, cursor, {}) for name, cursor in cursors.items()}
        self._starts: dict[str, int] = {}
        self._left: dict[str, int] = {}  # cursors of conversations that the user left: what comes late is no news
        self._gaps: dict[str, None] = {}
        self._held_max = held_max
        self._held = 0

    def cursors(self) -> dict[str, int]:
        """The last seq without a gap, for each conversation, as a sync wants them."""
        cursors = dict(self._starts)
        cursors.update((name, log.cursor) for name, log in self._logs.items())
        return cursors

    def __contains__(self, conversation_id: object) -> bool:
        return conversation_id in self._logs or conversation_id in self._starts

    def start_at(self, conversation_id: str, seq: int) -> None:
        """Take everything up to ``seq`` as seen, unless the conversation is known already.

        It is not final yet: an entry pushed at or below ``seq`` before any other was on its way when the number was
        asked for, and moves the beginning back to itself.
        """
        if conversation_id not in self._logs:
            self._starts.setdefault(conversation_id, seq)

    def offer(self, conversation_id: str, entry: Entry) -> list[Entry]:
        """Take an entry as it came; returns the entries that are now to be shown, in order."""
        if self._was_seen_before_leaving(conversation_id, entry.seq):
            return []
        log = self._log(conversation_id, entry.seq)
        if entry.seq == log.cursor + 1 and not log.held:
            log.cursor += 1
            ready = [entry]
        else:
            ready = self._keep(log, entry.seq, entry)
        self._seen(conversation_id, log, entry.seq)
        return ready

    def own(self, conversation_id: str, seq: int) -> list[Entry]:
        """Take note that ``seq`` is an entry that this client sent: nothing to show for it.

        Returns the entries that were held back for it.
        """
        if conversation_id not in self._logs and seq <= self._starts.get(conversation_id, 0):
            return []  # the answer to a repeat of something long stored
        if self._was_seen_before_leaving(conversation_id, seq):
            return []
        log = self._log(conversation_id, seq)
        ready = self._keep(log, seq, None)
        self._seen(conversation_id, log, seq)
        return ready

    def exists(self, conversation_id: str, seq: int) -> None:
        """Take note that ``seq`` is in the log, without its entry: it becomes a gap, unless it was seen."""
        if self._was_seen_before_leaving(conversation_id, seq):
            return
        self._seen(conversation_id, self._log(conversation_id, seq), seq)

    def forget(self, conversation_id: str) -> bool:
        """The user is no longer in the conversation. Returns whether it was known."""
        known = conversation_id in self
        self._starts.pop(conversation_id, None)
        self._gaps.pop(conversation_id, None)
        log = self._logs.pop(conversation_id, None)
        if log is not None:
            self._held -= len(log.held)
            self._left[conversation_id] = log.cursor
        return known

    def lower(self, heads: Mapping[str, int]) -> list[str]:
        """Set back cursors beyond the heads that the node tells; returns the conversations concerned.

        Only a node whose data were restored from a backup has such heads: acknowledged entries are gone there.
        """
        lowered: list[str] = []
        for name, head in heads.items():
            if self._left.get(name, 0) > head:
                del self._left[name]
            if self._starts.get(name, 0) > head:
                self._starts[name] = head
                lowered.append(name)
            log = self._logs.get(name)
            if log is not None and log.cursor > head:
                self._held -= len(log.held)
                self._logs[name] = _Log(head, head, {})
                self._gaps.pop(name, None)
                lowered.append(name)
        return lowered

    def gap(self) -> str | None:
        """A conversation with entries that exist and were not shown yet; the one that waits longest."""
        return next(iter(self._gaps), None)

    def postpone(self, conversation_id: str) -> None:
        """Let the other gaps be filled first."""
        if conversation_id in self._gaps:
            del self._gaps[conversation_id]
            self._gaps[conversation_id] = None

    def cursor(self, conversation_id: str) -> int:
        """The cursor of one conversation, 0 when it is not known."""
        log = self._logs.get(conversation_id)
        return log.cursor if log is not None else self._starts.get(conversation_id, 0)

    def _was_seen_before_leaving(self, conversation_id: str, seq: int) -> bool:
        return conversation_id not in self and seq <= self._left.get(conversation_id, 0)

    def _log(self, conversation_id: str, seq: int) -> _Log:
        """The conversation, begun right before ``seq`` when it is new."""
        log = self._logs.get(conversation_id)
        if log is None:
            cursor = min(self._starts.pop(conversation_id, seq - 1), seq - 1)
            log = self._logs[conversation_id] = _Log(cursor, cursor, {})
            self._left.pop(conversation_id, None)
        return log

    def _seen(self, conversation_id: str, log: _Log, seq: int) -> None:
        """``seq`` is in the log: note whether that leaves a gap."""
        log.head = max(log.head, seq)
        if log.head > log.cursor:
            self._gaps.setdefault(conversation_id)
        else:
            self._gaps.pop(conversation_id, None)

    def _keep(self, log: _Log, seq: int, entry: Entry | None) -> list[Entry]:
        if seq <= log.cursor or seq in log.held:
            return []
        if self._held >= self._held_max and seq != log.cursor + 1 and entry is not None:
            return []  # log.head tells that it is missing
        before = len(log.held)
        log.held[seq] = entry
        ready = log.advance()
        self._held += len(log.held) - before
        return ready


def since_joining(entries: Iterable[Entry], user: str) -> list[Entry]:
    """What ``user`` is shown of a conversation that is new to the device: from the entry that made ``user`` a member.

    Without that entry (it lies further back) everything is shown.
    """
    shown = list(entries)
    for index in range(len(shown) - 1, -1, -1):
        entry = shown[index]
        if entry.kind in (EntryKind.CREATED, EntryKind.MEMBERS_ADDED) and user in (entry.users or ()):
            return shown[index:]
    return shown
