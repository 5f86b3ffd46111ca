"""The edge's way to owners: a command goes to whichever node owns its conversation's slot, and is sent again when that
changes before it was answered.

Commands of one session for one conversation reach an owner in the order in which they came, whatever moves meanwhile:

- what is sent to a slot's owner stays in the slot's queue until it is answered; a new owner gets the queue from its
  beginning, each command marked as a repeat;
- a slot whose owner is not known just now gathers commands in that queue;
- each beginning has a number (``round``); an owner that gave one command back gives back all of that round.

Who refuses a repeat says nothing of what was sent before it: an owner whose answer got lost, or that died, may have
stored that. A client knows of one attempt only, so it is told that the outcome is unknown.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import trio
from msgspec.structs import replace

from gateway.broker import EdgePort, Origin, OwnerPort
from gateway.cluster.links import Links
from gateway.cluster.parcels import Answered, Forwarded, GivenBack, decode_reply
from gateway.cluster.slots import slot_of_command
from gateway.owner.backlog import Backlog, size_of
from gateway.refusals import Refused, outcome_unknown, unavailable
from protocol.codec import encode_msgpack
from protocol.frames import (
    AddMembers,
    Command,
    CreateConversation,
    ErrorReply,
    GetConversation,
    History,
    ListMembers,
    RemoveMembers,
    Rename,
    Send,
    Typing,
)

ANSWER_MAX_S: Final = 10.0
"""Seconds after which a command that no owner answered is told so: as long as one's own store may take."""

FRESH_S: Final = 1.0
"""Seconds after which a command that was never sent counts as a repeat: its client may have given it up and repeated it
through another node, so its owner has to look it up. What is held up later, on its way between nodes, the owner knows
by the repeat that came before it (``gateway.owner.deduplication.Repeats``)."""

DOUBT_S: Final = 60.0
"""Seconds for which it is remembered that a command which this node's owner has now was sent to another before: longer
than any store lets an owner wait."""

SWEEP_S: Final = 0.5
"""Seconds between two looks for commands that are overdue, and for owners that are to be asked once more."""

READS: Final = (History, GetConversation, ListMembers)
WRITES_WITH_ATTEMPT: Final = (Send, AddMembers, RemoveMembers, Rename)


class Owners(Protocol):
    """Who owns what (``SlotOwnership``)."""

    on_change: list[Callable[[], None]]

    def owner_of(self, slot: int) -> str:
        """The incarnation that accepts commands for a slot; empty: nobody just now."""

    def wake(self) -> None:
        """Look at the slot table soon."""


class _Waiting:
    """A command that waits for its reply.

    Attributes:
        copies: how often it was sent to anybody, but for those that were given back; its outcome is unknown if it was.
    """

    __slots__ = ("arrived_s", "command", "copies", "origin", "request", "session")

    def __init__(self, origin: Origin, command: Command, request: int, session: int, arrived_s: float) -> None:
        self.origin = origin
        self.command = command
        self.request = request
        self.session = session
        self.arrived_s = arrived_s
        self.copies = 0

    @property
    def stores(self) -> bool:
        """Whether anything may be stored by it, about which its client is told."""
        return bool(self.command.id) and isinstance(self.command, (*WRITES_WITH_ATTEMPT, CreateConversation))


class _Route:
    """What waits for one slot. ``owner``: to whom it was sent, all of it up to the last but for what is unsent."""

    __slots__ = ("owner", "returned", "round", "waiting")

    def __init__(self) -> None:
        self.owner = ""
        self.round = 0
        self.waiting: dict[int, _Waiting] = {}
        self.returned: deque[tuple[Origin, Command]] = deque()


class Router:
    """Implements ``gateway.broker.OwnerPort`` for the edge of a node in a cluster.

    Attributes:
        local: this node's own owner.
        forwarded, repeated, given_back, unanswered: commands sent to other nodes, sent again, given back by an owner,
            and never answered in time, ever.
    """

    def __init__(
        self, incarnation: str, owners: Owners, links: Links, local: OwnerPort, edge: EdgePort, waiting_max: int
    ) -> None:
        self.local = local
        self.forwarded = 0
        self.repeated = 0
        self.given_back = 0
        self.unanswered = 0
        self._incarnation = incarnation
        self._owners = owners
        self._links = links
        self._edge = edge
        self._backlog = Backlog(waiting_max)
        self._routes: dict[int, _Route] = {}
        self._by_request: dict[int, tuple[int, _Waiting]] = {}
        self._sessions: dict[Origin, tuple[int, int]] = {}  # origin: its number, and how many of its commands wait
        self._origins: dict[int, Origin] = {}
        self._requests = 0
        self._session_count = 0
        self._rounds = 0
        self._doubtful: dict[tuple[Origin, int], float] = {}  # sent elsewhere before, and since when not any more
        owners.on_change.append(self.reroute)
        links.on_gap.append(self.repeat)

    @property
    def waiting(self) -> int:
        """Commands that wait for another node, or for an owner to be known."""
        return len(self._by_request)

    @property
    def idle(self) -> bool:
        """Whether no command waits, given back ones included."""
        return not self._routes

    @property
    def counts(self) -> tuple[int, int, int]:
        """Requests, sessions and rounds numbered so far: a process that goes on with this one's name begins there."""
        return self._requests, self._session_count, self._rounds

    @counts.setter
    def counts(self, counts: tuple[int, int, int]) -> None:
        self._requests, self._session_count, self._rounds = counts

    def submit(self, origin: Origin, command: Command) -> None:
        """See OwnerPort.submit."""
        try:
            slot = slot_of_command(origin.user, command)
            owner = self._owners.owner_of(slot)
            route = self._routes.get(slot)
            if owner == self._incarnation and route is None:
                self.local.submit(origin, command)
            elif type(command) is Typing and not command.id:
                self._forward_typing(origin, command, slot, owner)
            else:
                self._enqueue(origin, command, slot, route, owner)
        except Refused as refusal:
            self._edge.reply(origin, self.refusal(origin, refusal.reply(command.id)))

    def take_back(self, origin: Origin, command: Command) -> None:
        """A command that the local owner gave back: to be handed to the next one, before all that came later."""
        try:
            slot = slot_of_command(origin.user, command)
        except Refused as refusal:
            self._edge.reply(origin, refusal.reply(command.id))
            return
        self.given_back += 1
        if isinstance(command, WRITES_WITH_ATTEMPT):
            command = replace(command, attempt=max(command.attempt, 2))  # nobody knows how long it has waited there
        route = self._routes.setdefault(slot, _Route())
        route.returned.append((origin, command))
        route.owner = ""
        self._owners.wake()

    def origin_of(self, session: int) -> Origin | None:
        """The origin with this number, if any command of it still waits."""
        return self._origins.get(session)

    # --- What other nodes say ---------------------------------------------------------------------------------------

    def answered(self, item: Answered) -> None:
        """An owner's reply. Raises NOT_UNDERSTOOD."""
        reply = decode_reply(item.reply)
        waiting = self._end(reply.id)
        if waiting is not None and waiting.command.id:
            if type(reply) is ErrorReply and waiting.copies > 1 and waiting.stores:
                reply = outcome_unknown().reply(reply.id)
            self._edge.reply(waiting.origin, replace(reply, id=waiting.command.id), item.conversation_id)

    def refusal(self, origin: Origin, reply: ErrorReply) -> ErrorReply:
        """What the client is to be told where this node's own owner refuses a command."""
        known = self._doubtful.pop((origin, reply.id), None) is not None
        return outcome_unknown().reply(reply.id) if known else reply

    def gave_back(self, item: GivenBack) -> None:
        """An owner says that it is not the owner: the whole queue is to be sent to whoever is."""
        found = self._by_request.get(item.request)
        if found is None:
            return
        self.given_back += 1
        found[1].copies -= 1
        route = self._routes[found[0]]
        route.owner = ""
        self._owners.wake()

    def repeat(self, incarnation: str) -> None:
        """Parcels to or from a node got lost: send it again what it has not answered."""
        for slot, route in list(self._routes.items()):
            if route.owner == incarnation:
                self._send_all(slot, route, incarnation)

    def reroute(self) -> None:
        """The slot table, or who lives, has changed: send what waits to whom it is for now."""
        for slot, route in list(self._routes.items()):
            owner = self._owners.owner_of(slot)
            if owner and owner != route.owner:
                self._move(slot, route, owner)

    # --- Life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look after what waits until cancelled; it stays unanswered then."""
        while True:
            await trio.sleep(SWEEP_S)
            for slot, route in self._routes.items():
                self._gather(slot, route)
            self._end_overdue(trio.current_time() - ANSWER_MAX_S)
            self._forget_doubts(trio.current_time() - DOUBT_S)
            self.reroute()

    def _end_overdue(self, overdue_s: float) -> None:
        late = [waiting for _, waiting in self._by_request.values() if waiting.arrived_s <= overdue_s]
        for waiting in late:
            self._end(waiting.request)
            self.unanswered += 1
            if waiting.command.id:
                self._edge.reply(waiting.origin, _late(waiting).reply(waiting.command.id))

    def _forget_doubts(self, old_s: float) -> None:
        for place in [place for place, since_s in self._doubtful.items() if since_s < old_s]:
            del self._doubtful[place]

    # --- Queues -----------------------------------------------------------------------------------------------------

    def _forward_typing(self, origin: Origin, command: Typing, slot: int, owner: str) -> None:
        """Typing that wants no answer waits for nothing: with no owner known, it is not worth a place in a queue.

        With an answer it needs a request's number: by the client's own id another command would be taken for answered.
        """
        if owner and owner != self._incarnation:
            number = self._sessions.get(origin, (0, 0))[0]
            self._links.send(owner, Forwarded(number, origin.user, slot, 0, encode_msgpack(command)))

    def _enqueue(self, origin: Origin, command: Command, slot: int, route: _Route | None, owner: str) -> None:
        if self._backlog.full:
            raise self._backlog.refusal()
        if route is None:
            route = self._routes[slot] = _Route()
        self._add(origin, command, slot, route)
        if not owner or (owner == self._incarnation and route.returned):
            # Whoever it will be gets the queue from its beginning. The local owner that has just given back what came
            # before is not asked again at once: it would give back this, too, and so on without end.
            route.owner = ""
            self._owners.wake()
        elif owner != route.owner:
            self._move(slot, route, owner)
        else:
            self._send(slot, route, [next(reversed(route.waiting.values()))])

    def _add(self, origin: Origin, command: Command, slot: int, route: _Route) -> None:
        self._requests += 1
        number, count = self._sessions.get(origin, (0, 0))
        if not number:
            self._session_count += 1
            number = self._session_count
            self._origins[number] = origin
        self._sessions[origin] = (number, count + 1)
        waiting = _Waiting(origin, command, self._requests, number, trio.current_time())
        waiting.copies += (origin, command.id) in self._doubtful
        route.waiting[waiting.request] = waiting
        self._by_request[waiting.request] = (slot, waiting)
        self._backlog.add(size_of(command))

    def _move(self, slot: int, route: _Route, owner: str) -> None:
        """Give a slot's whole queue to its owner, the local one or another."""
        self._gather(slot, route)
        if owner == self._incarnation:
            queue = [*route.waiting.values()]
            for waiting in queue:
                self._end(waiting.request)
                if waiting.copies and waiting.stores:
                    self._doubtful[waiting.origin, waiting.command.id] = trio.current_time()
            self._routes.pop(slot, None)
            for waiting in queue:
                self.submit(waiting.origin, self._again(waiting))
            return
        self._send_all(slot, route, owner)

    def _gather(self, slot: int, route: _Route) -> None:
        """Let what was given back wait like all else, from now on with a time limit."""
        returned, route.returned = route.returned, deque()
        later, route.waiting = route.waiting, {}
        for origin, command in returned:  # older than all that waits here
            self._add(origin, command, slot, route)
        route.waiting.update(later)

    def _send_all(self, slot: int, route: _Route, owner: str) -> None:
        self._rounds += 1
        route.round = self._rounds
        route.owner = owner
        self._send(slot, route, route.waiting.values())
        if not route.waiting:
            self._routes.pop(slot, None)

    def _send(self, slot: int, route: _Route, commands: Iterable[_Waiting]) -> None:
        for waiting in commands:
            self.repeated += waiting.copies > 0
            self.forwarded += not waiting.copies
            command = replace(self._again(waiting), id=waiting.request)
            waiting.copies += 1
            item = Forwarded(waiting.session, waiting.origin.user, slot, route.round, encode_msgpack(command))
            self._links.send(route.owner, item)

    def _again(self, waiting: _Waiting) -> Command:
        """The command as it is to be sent (once more): what may be a repeat says so, and its owner looks it up."""
        command = waiting.command
        if not isinstance(command, WRITES_WITH_ATTEMPT):
            return command
        stale = trio.current_time() - waiting.arrived_s > FRESH_S or self._edge.is_gone(waiting.origin)
        return replace(command, attempt=max(command.attempt, 2)) if waiting.copies or stale else command

    def _end(self, request: int) -> _Waiting | None:
        """Take a command out of its queue."""
        found = self._by_request.pop(request, None)
        if found is None:
            return None
        slot, waiting = found
        self._backlog.remove(size_of(waiting.command))
        route = self._routes[slot]
        del route.waiting[request]
        if not route.waiting and not route.returned:
            del self._routes[slot]
        number, count = self._sessions[waiting.origin]
        if count > 1:
            self._sessions[waiting.origin] = (number, count - 1)
        else:
            del self._sessions[waiting.origin], self._origins[number]
        return waiting


def _late(waiting: _Waiting) -> Refused:
    if waiting.copies and not isinstance(waiting.command, READS):
        return outcome_unknown()
    return unavailable(f"no node answered for the conversation within {ANSWER_MAX_S:g} s")
