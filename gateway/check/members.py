"""I13: who was a member when, by the log's own entries, and who received something without being one."""

from collections.abc import Iterator, Sequence

from msgspec import Struct

from gateway.broker import is_channel
from gateway.check.facts import Facts, Logged
from gateway.check.history import APPENDING, SeenEntry
from gateway.check.report import Breach


class Stay(Struct):
    """One time as a member: seqs from ``joined`` to ``left`` (the removal itself included), and the widest times.

    ``since``: before this the user surely was not in; ``until``: after this surely not any more, None while in.
    """

    joined: int
    since: int
    left: int | None = None
    until: int | None = None


class Members:
    """Stays by conversation and user, for conversations whose first entry is known."""

    def __init__(self, facts: Facts) -> None:
        self._stays: dict[str, dict[str, list[Stay]]] = {}
        self._conversations: dict[str, list[str]] = {}
        for conversation, log in facts.log.items():
            if 1 in log and _change(facts, log[1])[0] == "created":
                self._stays[conversation] = _stays(facts, log)
                for user in self._stays[conversation]:
                    self._conversations.setdefault(user, []).append(conversation)

    def known(self, conversation: str) -> bool:
        """Whether the history tells the members."""
        return conversation in self._stays

    def stays(self, conversation: str, user: str) -> Sequence[Stay]:
        """The user's times as a member, in order."""
        return self._stays.get(conversation, {}).get(user, ())

    def conversations(self, user: str) -> Sequence[str]:
        """Conversations that the user was ever in."""
        return self._conversations.get(user, ())

    def at(self, conversation: str, user: str, seq: int) -> bool:
        """Whether the user was to receive that seq."""
        return any(stay.joined <= seq <= (stay.left or seq) for stay in self.stays(conversation, user))


def outsiders(facts: Facts, members: Members) -> Iterator[Breach]:
    """I13: entries pushed to, read by, or acknowledged to somebody who was not a member."""
    yield from _receivers(facts, members)
    for attempt in facts.attempts:
        conversation, user, seq = attempt.conversation, attempt.invoke.user, attempt.acknowledged
        if seq is not None and members.known(conversation) and not members.at(conversation, user, seq):
            what = f"{user} was answered that it sent seq {seq}, and was no member then"
            yield Breach("leak-to-outsider", conversation, what)
    for read in facts.reads:
        if not read.user or not read.entries or not members.known(read.conversation):
            continue
        stays = members.stays(read.conversation, read.user)
        if not any(stay.since < read.ended and (stay.until is None or stay.until > read.invoked) for stay in stays):
            what = f"{read.user} read seq {read.entries[0].seq} and more, and was no member then"
            yield Breach("leak-to-outsider", read.conversation, what)


def told_again(conversation: str, entry: SeenEntry, user: str) -> bool:
    """Whether an entry adds the user to a channel, or removes: its next owner tells of that again, whenever it was."""
    return is_channel(conversation) and entry.kind in ("added", "removed") and user in entry.users


def _receivers(facts: Facts, members: Members) -> Iterator[Breach]:
    """Pushes and deliveries.

    What was sent to a member before its removal may still be on its way when the removal is acknowledged, but not any
    more when all has been quiet since.
    """
    quiet = -1
    for when, record in enumerate(facts.records):
        if record.op == "quiet":
            quiet = when
        if record.entry is None or not members.known(record.conversation):
            continue
        seq, user = record.entry.seq, record.user
        stays = [stay for stay in members.stays(record.conversation, user) if stay.since < when]
        # A repeat of an old entry reaches those who are members now.
        again = any(seq < stay.joined and (stay.until is None or when < stay.until) for stay in stays)
        if not again and not members.at(record.conversation, user, seq):
            yield Breach("leak-to-outsider", record.conversation, f"{user} received seq {seq} and was no member then")
        elif (
            record.op == "push"
            and _long_gone(stays, seq, quiet)
            and not told_again(record.conversation, record.entry, user)
        ):
            what = f"{user} received seq {seq} long after the removal at seq {stays[-1].left} was acknowledged"
            yield Breach("leak-to-outsider", record.conversation, what)


def _long_gone(stays: Sequence[Stay], seq: int, quiet: int) -> bool:
    """Whether the last stay ended before all was quiet. The removal itself may be told again."""
    last = stays[-1] if stays else None
    return last is not None and last.until is not None and last.until < quiet and seq != last.left


def _change(facts: Facts, logged: Logged) -> tuple[str, tuple[str, ...]]:
    """Kind of an entry and the users it names; an entry that was only acknowledged is known by who sent it."""
    if logged.entry is not None:
        return logged.entry.kind, logged.entry.users
    invoke = facts.by_key[logged.key][0].invoke
    return APPENDING[invoke.op], invoke.users


def _stays(facts: Facts, log: dict[int, Logged]) -> dict[str, list[Stay]]:
    stays: dict[str, list[Stay]] = {}
    for seq in sorted(log):
        logged = log[seq]
        kind, users = _change(facts, logged)
        if kind in ("created", "added"):
            attempts = facts.by_key.get(logged.key)
            since = attempts[0].invoked if attempts else logged.first
            for user in users:
                own = stays.setdefault(user, [])
                if not own or own[-1].left is not None:
                    own.append(Stay(seq, since))
        elif kind == "removed":
            for user in users:
                for stay in stays.get(user, ())[-1:]:
                    stay.left, stay.until = seq, logged.acknowledged
    return stays
