"""The owner's side of the broker in a cluster: replies and deliveries go to the nodes where they are wanted.

What was acknowledged must not be missed by a connected member, even if this node dies the moment after. So an
acknowledgement is held back until the deliveries in front of it are *handed on*:

1. A delivery is split by the nodes where its recipients are connected, as the session directory's cache has it; users
   that are not cached are looked up first. It leaves with the parcels of this pass of the loop.
2. A barrier command follows them on the same connection to Redis. Its reply proves two things: the parcels were taken,
   and every change of the directory that Redis made before was reported here.
3. Users reported as changed since the look-up began are looked up again, and nodes that were left out get the delivery,
   too, followed by another barrier. A user who registered even later reads the store after that, and finds the entry.

Whom an entry adds to a channel or removes is told to all nodes where the channel is followed, wherever these users are:
the directory does not know of somebody who came to a node while that was cut off from Redis.

Per conversation these things keep their order: one queue, a *strand*, holds what is not done. A node that is alone does
none of this; and while Redis is away nothing is held back, and all living nodes that are reached get everything:
everybody resyncs now and then until it is there again.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Final
from weakref import WeakSet, WeakValueDictionary

import structlog
import trio

from gateway.broker import Delivery, EdgePort, Origin, OwnerPort, followers_of, is_channel
from gateway.cluster.links import Links, LiveIncarnations
from gateway.cluster.parcels import Answered, Delivered, Forwarded, GivenBack, Signalled, decode_command
from gateway.cluster.places import Places, grouped
from gateway.cluster.ports import Directory
from gateway.cluster.rounds import Rounds
from gateway.cluster.slots import slot_of_command
from gateway.refusals import fault
from protocol.codec import encode_msgpack
from protocol.frames import Command, ErrorReply, Push, ReceiptPush, Reply

HELD_MAX: Final = 65_536
"""Deliveries and replies held back at once, above which deliveries are handed on unconfirmed: as many as sends may
wait. Only a Redis that takes commands and answers none lets so many gather, and its loss is noticed by then."""

HANDED_ON_CHECK_S: Final = 0.01
"""Seconds between two looks at whether all is handed on, before slots are handed over."""

log = structlog.get_logger(__name__)


class RemoteOrigin:
    """A session of another node whose command is handled here. One object per session while anybody refers to it."""

    __slots__ = ("__weakref__", "incarnation", "session", "user")

    def __init__(self, incarnation: str, session: int, user: str) -> None:
        self.incarnation = incarnation
        self.session = session
        self.user = user


class _Moves:
    """Users reported as changed, for all look-ups that began between two barriers.

    Attributes:
        users: those who were reported.
        anybody: whether it was reported that everybody may have moved.
    """

    __slots__ = ("__weakref__", "anybody", "users")

    def __init__(self) -> None:
        self.users: set[str] = set()
        self.anybody = False

    def among(self, recipients: Collection[str], places: Mapping[str, object] | None) -> Collection[str]:
        """Those of the recipients, who are the keys of ``places`` where these are known, who may have moved."""
        if self.anybody:
            return recipients
        if not self.users:
            return ()
        return self.users.intersection(recipients) if places is None else places.keys() & self.users


class _Handing:
    """A delivery on its way to other nodes.

    Attributes:
        recipients: who is looked up for it.
        named: of a channel's, the users whom its entry adds or removes.
        places: where its recipients are, once that is known.
        sent: the nodes that got it, and for which users; not changed, but replaced.
        moves: who moved since its last look-up began.
        moved: recipients who moved while it was under way, until that is seen to.
        split: whether it was sent for the first time.
        done: whether it is handed on, or need not be.
    """

    __slots__ = ("delivery", "done", "moved", "moves", "named", "places", "recipients", "sent", "split")

    def __init__(self, delivery: Delivery, moves: _Moves) -> None:
        self.delivery = delivery
        self.recipients = delivery.recipients
        self.named: Collection[str] = ()
        if is_channel(delivery.conversation_id):
            everybody = followers_of(delivery.conversation_id)
            self.named = [user for user in delivery.recipients if user != everybody]
            if self.named and len(self.named) == len(delivery.recipients):
                self.recipients = (everybody, *self.named)  # told again: not for the followers, but for their nodes
        self.places: Mapping[str, tuple[str, ...]] | None = None
        self.sent: dict[str, Collection[str]] = {}
        self.moves = moves
        self.moved: Collection[str] = ()
        self.split = False
        self.done = False

    def moved_since(self) -> Collection[str]:
        """Recipients who may have moved since its last look-up began."""
        return self.moves.among(self.recipients, self.places)

    def recipients_at(self, users: Collection[str]) -> Collection[str]:
        """Who is to be named to a node where ``users`` were found."""
        if not self.named:
            return users
        if self.recipients is not self.delivery.recipients:
            return self.named
        return dict.fromkeys((*users, *self.named))


_Held = tuple[Origin, Reply]


class HandingOn:
    """Implements ``gateway.broker.EdgePort`` for the owner of a node in a cluster.

    Attributes:
        on_delivery: called with a conversation's id before its delivery goes anywhere.
        on_receipt: called with conversation and user of each receipt that other nodes may want to know.
        receipts_everywhere: whether receipts have to go to all living nodes, wherever recipients are known to be.
        refusal: gives what an origin of this node is to be told where its owner refuses a command (the router).
        give_back: takes commands of this node's own connections that its owner gave back (the router).
        owner: the owner that gets what other nodes forward.
        rounds: which rounds of forwarded commands were given back.
        delivered_elsewhere, looked_again: deliveries sent to other nodes, and those sent again to somebody who came
            meanwhile, ever.
    """

    def __init__(
        self, incarnation: str, local: EdgePort, links: Links, directory: Directory, watch: LiveIncarnations
    ) -> None:
        self.on_delivery: Callable[[str], None] = lambda _conversation_id: None
        self.on_receipt: Callable[[str, str], None] = lambda _conversation_id, _user: None
        self.receipts_everywhere: Callable[[], bool] = lambda: False
        self.refusal: Callable[[Origin, ErrorReply], ErrorReply] = lambda _origin, reply: reply
        self.give_back: Callable[[Origin, Command], None] = lambda _origin, _command: None
        self.owner: OwnerPort
        self.rounds = Rounds()
        self.delivered_elsewhere = 0
        self.looked_again = 0
        self._incarnation = incarnation
        self._local = local
        self._links = links
        self._directory = directory
        self._watch = watch
        self._strands: dict[str, deque[_Handing | _Held]] = {}
        self._held = 0
        self._leaving: list[_Handing] = []  # split in this pass, not yet followed by a barrier
        self._moves: _Moves | None = None  # of look-ups that began since the last barrier was set
        self._all_moves: WeakSet[_Moves] = WeakSet()  # of all deliveries under way
        self._origins: WeakValueDictionary[tuple[str, int], RemoteOrigin] = WeakValueDictionary()
        directory.on_invalidated = self._invalidated
        links.after_flush = self._set_barrier

    @property
    def held(self) -> int:
        """Deliveries and replies that are held back now."""
        return self._held

    async def handed_on(self, concerns: Callable[[str], bool]) -> None:
        """Wait until nothing of the conversations that ``concerns`` says is held back. Cancelling changes nothing."""
        while any(concerns(conversation_id) for conversation_id in self._strands):  # noqa: ASYNC110 - in handovers only
            await trio.sleep(HANDED_ON_CHECK_S)

    # --- What other nodes ask ---------------------------------------------------------------------------------------

    def forwarded(self, sender: str, item: Forwarded) -> None:
        """Handle a command of another node's session. Raises NOT_UNDERSTOOD."""
        command = decode_command(item.command)
        if not self.rounds.admit(sender, item.slot, item.round):
            self._links.send(sender, GivenBack(command.id))
            return
        origin = self._origins.get((sender, item.session))
        if origin is None or origin.user != item.user:
            origin = self._origins[sender, item.session] = RemoteOrigin(sender, item.session, item.user)
        try:
            self.owner.submit(origin, command)
        except Exception:
            # Our bug, logged whole. A node that it ended would leave the command to the next owner, and so to all.
            log.exception("forwarded command failed", sender=sender, user=item.user)
            if command.id:
                self.reply(origin, fault().reply(command.id))

    # --- gateway.broker.EdgePort ------------------------------------------------------------------------------------

    def not_owner(self, origin: Origin, command: Command) -> None:
        """See EdgePort.not_owner."""
        if type(origin) is not RemoteOrigin:
            self.give_back(origin, command)
            return
        self.rounds.refuse(origin.incarnation, slot_of_command(origin.user, command))
        self._links.send(origin.incarnation, GivenBack(command.id))

    def is_gone(self, origin: Origin) -> bool:
        """See EdgePort.is_gone."""
        if type(origin) is RemoteOrigin:
            return origin.incarnation not in self._watch.live
        return self._local.is_gone(origin)

    def when_room(self, origin: Origin, then: Callable[[], None]) -> None:
        """See EdgePort.when_room. What goes to another node has room there: its edge bounds what a client may ask."""
        if type(origin) is RemoteOrigin:
            then()
        else:
            self._local.when_room(origin, then)

    def reply(self, origin: Origin, reply: Reply, conversation_id: str = "") -> None:
        """See EdgePort.reply."""
        strand = self._strands.get(conversation_id) if conversation_id else None
        if strand is None:
            self._reply(origin, reply, conversation_id)
        else:
            self._held += 1
            strand.append((origin, reply))

    def _reply(self, origin: Origin, reply: Reply, conversation_id: str) -> None:
        if type(origin) is RemoteOrigin:
            self._links.send(origin.incarnation, Answered(encode_msgpack(reply), conversation_id))
        else:
            if type(reply) is ErrorReply:
                reply = self.refusal(origin, reply)
            self._local.reply(origin, reply, conversation_id)

    def together(self) -> AbstractContextManager[object]:
        """See EdgePort.together. What goes to other nodes leaves with the parcels of the pass anyway."""
        return self._local.together()

    def signal(self, recipients: Collection[str], push: Push, conversation_id: str, skip: Origin | None = None) -> None:
        """See EdgePort.signal."""
        self._local.signal(recipients, push, conversation_id, skip)
        if self._links.alone:
            return
        if type(push) is ReceiptPush:
            self.on_receipt(conversation_id, push.user)
            if self.receipts_everywhere():
                everywhere = tuple(each for each in self._watch.live if each != self._incarnation)
                self._signal_to(dict.fromkeys(everywhere, recipients), push, conversation_id, skip)
                return

        def found(places: Mapping[str, tuple[str, ...]] | None) -> None:
            self._signal_to(self._by_node(places or {}), push, conversation_id, skip)

        self._directory.lookup(recipients, found)

    def _signal_to(
        self, by_node: Mapping[str, Collection[str]], push: Push, conversation_id: str, skip: Origin | None
    ) -> None:
        encoded = encode_msgpack(push)
        for incarnation, users in by_node.items():
            session = _session(skip, incarnation)
            self._links.send(incarnation, Signalled(conversation_id, list(users), encoded, session))

    def deliver(self, delivery: Delivery) -> None:
        """See EdgePort.deliver."""
        self.on_delivery(delivery.conversation_id)
        self._local.deliver(delivery)
        if self._links.alone:
            return
        handing = _Handing(delivery, self._moves_from_now())
        self._strands.setdefault(delivery.conversation_id, deque()).append(handing)
        self._held += 1
        self._look_up(handing, handing.recipients)

    # --- Handing on -------------------------------------------------------------------------------------------------

    def _look_up(self, handing: _Handing, users: Collection[str]) -> None:
        """Find where users are and send them a delivery; the first time behind what its conversation sent before."""

        def found(places: Mapping[str, tuple[str, ...]] | None) -> None:
            if places is None:
                # Redis is away: nobody knows, everybody gets it, and the resync of its return covers what is lost.
                handing.split = True
                self._send_to(handing, {each: users for each in self._watch.live if each != self._incarnation})
                self._done([handing])
            elif handing.split:
                handing.moved = ()
                self._send(handing, places)
                self._leave(handing)
            else:
                handing.places = places
            self._split_in_order(handing.delivery.conversation_id)

        self._directory.lookup(users, found)

    def _split_in_order(self, conversation_id: str) -> None:
        """Send the deliveries of a conversation whose turn it is, each to all nodes where recipients are."""
        strand = self._strands.get(conversation_id, ())
        for handing in [each for each in strand if type(each) is _Handing and not each.split]:
            if handing.places is None:
                return
            self._catch_up(strand, handing)
            handing.split = True
            self._send(handing, handing.places)
            self._leave(handing)
            if self._held > HELD_MAX:
                self._done([handing])

    def _catch_up(self, strand: Iterable[_Handing | _Held], next_one: _Handing) -> None:
        """Before a node gets its first delivery for somebody who has just moved, send it those that left before."""
        known = next_one.places or {}
        for handing in [each for each in strand if type(each) is _Handing and each.split and not each.done]:
            moved = {*handing.moved_since(), *handing.moved}
            if moved:
                self._send(handing, {user: known[user] for user in moved if user in known})

    def _send(self, handing: _Handing, places: Mapping[str, tuple[str, ...]]) -> None:
        """Send a delivery to those who did not get it yet."""
        self._send_to(handing, self._by_node(places))

    def _send_to(self, handing: _Handing, by_node: Mapping[str, Collection[str]]) -> None:
        delivery = handing.delivery
        for incarnation, found in by_node.items():
            users = handing.recipients_at(found)
            earlier = handing.sent.get(incarnation)
            if earlier is None:
                news = handing.sent[incarnation] = list(users)
            else:
                known = frozenset(earlier)
                news = [user for user in users if user not in known]
                handing.sent[incarnation] = known.union(news)
            if news:
                self.delivered_elsewhere += 1
                sessions = [_session(origin, incarnation) for origin in delivery.origins]
                entries = list(delivery.entries)
                self._links.send(incarnation, Delivered(delivery.conversation_id, news, entries, sessions))

    def _leave(self, handing: _Handing) -> None:
        """Have a barrier follow what was sent in this pass."""
        self._leaving.append(handing)
        self._links.flush_soon()

    def _by_node(self, places: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
        """Users by the other living nodes where they are."""
        together = places.together if isinstance(places, Places) else grouped(places)
        by_node: dict[str, list[str]] = {}
        for incarnations, users in together.items():
            for incarnation in incarnations:
                if incarnation != self._incarnation and not self._directory.is_void(incarnation):
                    by_node.setdefault(incarnation, []).extend(users)
        return by_node

    def _set_barrier(self) -> None:
        """The parcels of this pass are sent: have it proved that they were taken."""
        if not self._leaving:
            return
        leaving, self._leaving = self._leaving, []
        self._moves = None
        self._directory.barrier(lambda known: self._confirm(leaving) if known else self._done(leaving))

    def _moves_from_now(self) -> _Moves:
        """What a look-up that begins now has to know of later."""
        if self._moves is None:
            self._moves = _Moves()
            self._all_moves.add(self._moves)
        return self._moves

    def _invalidated(self, users: Collection[str] | None) -> None:
        for moves in self._all_moves:
            if users is None:
                moves.anybody = True
            else:
                moves.users.update(users)

    def _confirm(self, handings: Iterable[_Handing]) -> None:
        """A barrier is through: what nobody moved under is handed on, the rest is looked at again."""
        done = []
        for handing in handings:
            moved = handing.moved_since()
            if moved:
                self.looked_again += 1
                handing.moved = moved
                handing.moves = self._moves_from_now()
                self._look_up(handing, moved)
            else:
                done.append(handing)
        self._done(done)

    def _done(self, handings: Iterable[_Handing]) -> None:
        with self._local.together():
            for handing in handings:
                handing.done = True
                conversation_id = handing.delivery.conversation_id
                strand = self._strands.get(conversation_id)
                if strand is not None:
                    self._release(conversation_id, strand)

    def _release(self, conversation_id: str, strand: deque[_Handing | _Held]) -> None:
        """Let go what has nothing unfinished in front of it."""
        while strand:
            first = strand[0]
            if type(first) is _Handing:
                if not first.done:
                    return
                strand.popleft()
            else:
                strand.popleft()
                origin, reply = first  # type: ignore[misc]
                self._reply(origin, reply, conversation_id)
            self._held -= 1
        del self._strands[conversation_id]


def _session(origin: Origin | None, incarnation: str) -> int:
    """The origin's session number if it belongs to that node, else 0."""
    return origin.session if type(origin) is RemoteOrigin and origin.incarnation == incarnation else 0
