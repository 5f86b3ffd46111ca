"""Numbered links to the other nodes: what one pass of the loop has for a node leaves as one parcel.

Parcels travel at most once. That something is missing shows in the numbers; what follows from it is for those who
listen: sessions resync, commands are sent again. So nothing here keeps or repeats a parcel.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from math import inf
from typing import Final, Protocol

import structlog
import trio
from msgspec import Struct

from gateway.cluster.parcels import (
    NOT_UNDERSTOOD,
    Hello,
    Item,
    LinkBroken,
    Parcel,
    Welcome,
    decode_parcel,
    encode_parcel,
)
from gateway.cluster.ports import Transport
from gateway.cluster.silences import SILENCE_S, Silences
from store.coordination import LeaseRecord

EMPTY_PARCEL_S: Final = 2.0
"""Seconds after which a link that carries nothing carries an empty parcel, so that the loss of a last one shows."""

GATHER_S: Final = 0.010
"""Seconds between two flushes of a busy node: what comes in between leaves together. Each flush costs both nodes and
Redis some hundred microseconds, however little is in it. (Measured with two nodes, Cassandra and Redis on two cores at
4,600 sends a second: the p99 of deliveries was 90 to 330 ms without, 115 to 145 ms with 4 ms, 76 and 93 ms with 10 ms,
68 and 70 ms with 20 ms.)"""

GATHER_ITEMS_MIN: Final = 8
"""Items in one flush that tell a busy node; after fewer the next leaves at once. A command that another node carries
out waits for a flush up to three times: with 10 ms each, that was most of what it took in a quiet cluster."""

HELLO_S: Final = 1.0
"""Seconds until a hello that was not answered is said again."""

REACH_MAX_S: Final = 2.0
"""Seconds that a node has to answer that it has read what was sent to it: many times what its inbox takes, and what a
handover waits for (``ownership.SLOT_RELEASE_MAX_S``)."""

STANDSTILL_S: Final = SILENCE_S
"""Seconds from one look of a node at its clock to the next, of which there is one each second, after which it takes
itself for one that stood still: as long as others must be silent before they are looked into."""

NEWCOMER_S: Final = 30.0
"""Seconds that a node which said hello counts although no look has seen its lease: three leases."""

FORGET_S: Final = 300.0
"""Seconds of silence after which a node's numbers are forgotten: it has ended long ago."""

log = structlog.get_logger(__name__)


class LinksState(Struct, array_like=True):
    """What another process has to know to go on with this node's links.

    Attributes:
        sent: number of the last parcel for each receiver.
        expected: number of the next parcel of each sender.
        welcomes: nodes that know this one.
        kept: encoded parcels that came during the pause.
        hellos: number of the last hello.
        heads_from: number of the first hash of each node's heads that counts.
    """

    sent: dict[str, int]
    expected: dict[str, int]
    welcomes: list[str]
    kept: list[bytes]
    hellos: int = 0
    heads_from: dict[str, int] = {}


class LiveIncarnations(Protocol):
    """Who is alive (``Watch``)."""

    @property
    def live(self) -> Mapping[str, LeaseRecord]: ...


class Links:
    """Sends items to other incarnations, and hands over those that come.

    Attributes:
        received: called with the sender and the items of each parcel, in order.
        on_gap: called with a sender some of whose parcels got lost on the way, before the next items are handed over;
            so are those of a sender that lives and is not heard of.
        on_standstill: called before the next items are handed over when this node itself stood still, with seconds.
            (Parcels may have got lost meanwhile, and those of others come before the next one of a sender shows it.)
        heads_from: tells what parcels say of this node's heads.
        on_heads_void: called with a sender that says that hashes of its heads do not count any more.
        before_flush, after_flush: called when a pass's parcels are about to leave, and when they have been sent.
        sleep: waits between two looks at the clock; a simulated node that stands still does not come back in time.
        parcels, gaps: parcels sent and gaps noticed, ever.
    """

    def __init__(self, incarnation: str, transport: Transport, watch: LiveIncarnations) -> None:
        self.received: Callable[[str, Sequence[Item]], None] = lambda _sender, _items: None
        self.on_gap: list[Callable[[str], None]] = []
        self.on_standstill: Callable[[float], None] = lambda _seconds: None
        self.heads_from: Callable[[], int] = lambda: 0
        self.on_heads_void: Callable[[str], None] = lambda _sender: None
        self.before_flush: list[Callable[[], None]] = []
        self.after_flush: Callable[[], None] = lambda: None
        self.sleep: Callable[[float], Awaitable[None]] = trio.sleep
        self.parcels = 0
        self.gaps = 0
        self._incarnation = incarnation
        self._transport = transport
        self._watch = watch
        self._outgoing: dict[str, list[Item]] = {}
        self._sent: dict[str, int] = {}
        self._sent_s: dict[str, float] = {}
        self._flushed_s = -inf
        self._flushed_items = 0
        self._expected: dict[str, int] = {}
        self._heard_s: dict[str, float] = {}
        self._heads_from: dict[str, int] = {}
        self._silences = Silences(incarnation)
        self._awake_s = inf
        self._newcomers: dict[str, float] = {}  # since when nodes are known that the last look did not see yet
        self._welcomes: set[str] = set()
        self._hellos = 0
        self._answered: dict[str, int] = {}  # the last hello that each node has answered
        self._welcomed = trio.Event()
        self._wake = trio.Event()
        self._running = False
        self._kept: list[bytes] | None = None  # what comes during a pause; None: there is none
        transport.received = self._receive

    @property
    def alone(self) -> bool:
        """Whether there is surely nobody else: no other node lives, and none that was not yet seen has said hello."""
        return len(self._watch.live) <= 1 and not self._newcomers

    def send(self, incarnation: str, item: Item) -> None:
        """Put an item into the next parcel for a node."""
        waiting = self._outgoing.get(incarnation)
        if waiting is None:
            self._outgoing[incarnation] = [item]
            self._wake.set()
        else:
            waiting.append(item)

    def send_all(self, item: Item) -> None:
        """Put an item into the next parcel for every other living node."""
        for incarnation in self._watch.live:
            if incarnation != self._incarnation:
                self.send(incarnation, item)

    def send_empty(self) -> None:
        """Send every other living node a parcel soon, if only an empty one, for what it says besides its items."""
        for incarnation in self._watch.live:
            if incarnation != self._incarnation:
                self._outgoing.setdefault(incarnation, [])
        self._wake.set()

    def heads_count_from(self, incarnation: str) -> int | None:
        """Number of the first hash of a node's heads that counts; None: nothing was heard of that node."""
        return self._heads_from.get(incarnation)

    async def introduce(self) -> None:
        """Say hello to everybody who lives, and return when all of them have answered or are dead.

        Until then another node may think that it is alone, and tell nobody of its deliveries. Cancelling is safe.
        """
        await self._greet(lambda: set(self._watch.live) - self._welcomes - {self._incarnation})

    async def reach(self, incarnations: Collection[str]) -> Collection[str]:
        """Say hello to nodes once more; answers which have read all that was sent to them before.

        Who does not answer within REACH_MAX_S is not waited for. Nor is anybody while Redis is away: nothing is sure to
        arrive in order then, so that all count as ready. Cancelling is safe.
        """
        if self._transport.away:
            await trio.lowlevel.checkpoint()
            return incarnations
        number = self._hellos + 1
        with trio.move_on_after(REACH_MAX_S):
            await self._greet(lambda: [each for each in incarnations if self._answered.get(each, 0) < number])
        ready = {each for each in incarnations if self._answered.get(each, 0) >= number}
        silent = sorted(set(incarnations) - ready)
        if silent:
            log.warning("nodes do not answer in time that they have read what was sent to them", nodes=silent)
        return ready

    async def read_up(self) -> bool:
        """Whether this node has read all that others sent to it before, those that have ended among them.

        It says hello to itself to find out. That takes no longer than REACH_MAX_S, and no time while Redis is away, or
        these links rest: what waits in the inbox is read later then, or never. Cancelling is safe.
        """
        if not self._running or self._kept is not None or self._transport.away:
            await trio.lowlevel.checkpoint()
            return not self._running and self._kept is None  # nobody knows this node yet
        self._hellos += 1
        number = self._hellos
        hello = Parcel(self._incarnation, number, [])
        self._transport.send(self._incarnation, encode_parcel(hello), _ignore)
        with trio.move_on_after(REACH_MAX_S):
            while self._answered.get(self._incarnation, 0) < number:
                await self._welcomed.wait()
            return True
        log.warning("this node does not read its inbox in time: what ended nodes sent last counts as lost")
        return False

    async def _greet(self, missing: Callable[[], Collection[str]]) -> None:
        """Say hello to those who are missing, again and again, until nobody is."""
        while missing():
            self._hellos += 1
            for incarnation in missing():
                self.send(incarnation, Hello(self._hellos))
            with trio.move_on_after(HELLO_S):
                while missing():
                    await self._welcomed.wait()

    @property
    def idle(self) -> bool:
        """Whether nothing is to be sent."""
        return not self._outgoing

    def pause(self) -> None:
        """Keep what comes, unread, until ``resume``; sending goes on. Does nothing during a pause."""
        if self._kept is None:
            self._kept = []

    def resume(self) -> None:
        """Read what was kept, and then what comes. Does nothing where there is no pause."""
        kept, self._kept = self._kept, None
        for parcel in kept or ():
            self._receive(parcel)

    def state(self) -> LinksState:
        """What a process has to know that goes on with these links; call it during a pause, when ``idle``."""
        return LinksState(
            dict(self._sent), dict(self._expected), list(self._welcomes), list(self._kept or ()), self._hellos,
            dict(self._heads_from),
        )  # fmt: skip

    def restore(self, state: LinksState) -> None:
        """Go on with the links of a process that sends and reads nothing any more; call it before ``run``.

        They are in a pause, which ends as soon as they run.
        """
        now_s = trio.current_time()
        self._sent, self._sent_s = dict(state.sent), dict.fromkeys(state.sent, now_s)
        self._expected, self._heard_s = dict(state.expected), dict.fromkeys(state.expected, now_s)
        self._welcomes = set(state.welcomes)
        self._hellos = state.hellos
        self._heads_from = dict(state.heads_from)
        self._kept = [*state.kept, *(self._kept or ())]

    def flush_soon(self) -> None:
        """Run a flush at the end of this pass even if nothing is sent."""
        self._wake.set()

    async def run(self) -> None:
        """Send what passes of the loop gather until cancelled; what is not sent then is lost."""
        self._running = True
        self.resume()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_alive)
            while True:
                await self._wake.wait()
                if self._flushed_items >= GATHER_ITEMS_MIN:
                    await trio.sleep_until(self._flushed_s + GATHER_S)
                self._wake = trio.Event()
                self.flush()

    def flush(self) -> None:
        """Send everything now."""
        for prepare in self.before_flush:
            prepare()
        outgoing, self._outgoing = self._outgoing, {}
        now_s = self._flushed_s = trio.current_time()
        self._flushed_items = sum(map(len, outgoing.values()))
        for incarnation, items in outgoing.items():
            number = self._sent[incarnation] = self._sent.get(incarnation, 0) + 1
            self._sent_s[incarnation] = now_s
            self.parcels += 1
            parcel = Parcel(self._incarnation, number, items, self.heads_from())
            self._transport.send(incarnation, encode_parcel(parcel), _ignore)
        self.after_flush()

    async def _keep_alive(self) -> None:
        self._awake_s = trio.current_time()
        while True:
            await self.sleep(EMPTY_PARCEL_S / 2)
            self._look_at_itself()
            self._awake_s = trio.current_time()
            quiet_s = trio.current_time() - EMPTY_PARCEL_S / 2
            for incarnation in self._watch.live:
                if incarnation != self._incarnation and self._sent_s.get(incarnation, -1.0) <= quiet_s:
                    self._outgoing.setdefault(incarnation, [])
                    self._wake.set()
            self._look_for_silence()
            for seen in [
                each
                for each, since_s in self._newcomers.items()
                if each in self._watch.live or since_s < trio.current_time() - NEWCOMER_S
            ]:
                del self._newcomers[seen]
            forgotten_s = trio.current_time() - FORGET_S
            # Not at once: who has just said hello does not count as living yet, and must not get a number twice.
            for ended in [each for each, sent_s in self._sent_s.items() if sent_s < forgotten_s]:
                if ended not in self._watch.live:
                    del self._sent[ended], self._sent_s[ended]
            for ended in [each for each, heard_s in self._heard_s.items() if heard_s < forgotten_s]:
                del self._expected[ended], self._heard_s[ended]
                self._welcomes.discard(ended)
                self._heads_from.pop(ended, None)
                self._answered.pop(ended, None)

    def _look_for_silence(self) -> None:
        if self._transport.away:
            self._silences.begin_anew()  # everybody resyncs now and then anyway
            return
        for sender in self._silences.look(self._watch.live, self._heard_s):
            log.warning("a node renews its lease and is not heard of", sender=sender, silent_s=SILENCE_S)
            self._note_gap(sender)

    def _look_at_itself(self) -> None:
        now_s = trio.current_time()
        if now_s - self._awake_s > STANDSTILL_S:
            stood_still_s, self._awake_s = now_s - self._awake_s, now_s
            log.warning("this node stood still", seconds=round(stood_still_s, 1))
            self.on_standstill(stood_still_s)

    def _note_gap(self, sender: str) -> None:
        self.gaps += 1
        for notify in self.on_gap:
            notify(sender)
        self.send(sender, LinkBroken())

    def _receive(self, encoded: bytes) -> None:
        if self._kept is not None:
            self._kept.append(encoded)
            return
        try:
            parcel = decode_parcel(encoded)
        except NOT_UNDERSTOOD as error:
            log.error("parcel not understood", error=str(error), bytes=len(encoded))
            return  # its number is missing from now on, and that has consequences
        self._look_at_itself()
        sender = parcel.sender
        if sender == self._incarnation:
            self._note_answer(sender, parcel.number)  # a hello of ``read_up``
            return
        self._heard_s[sender] = trio.current_time()
        expected = self._expected.get(sender, 1)
        if parcel.number < expected:
            return  # it came by two ways
        self._expected[sender] = parcel.number + 1
        if parcel.heads_from > self._heads_from.setdefault(sender, parcel.heads_from):
            self._heads_from[sender] = parcel.heads_from
            self.on_heads_void(sender)
        if parcel.number > expected:
            log.warning("parcels lost", sender=sender, lost=parcel.number - expected)
            self._note_gap(sender)
        items = [item for item in parcel.items if not self._greeted(sender, item)]
        if items:
            self.received(sender, items)

    def _greeted(self, sender: str, item: Item) -> bool:
        """Whether an item was for these links themselves, and is seen to."""
        if type(item) is Hello:
            if sender not in self._watch.live:
                self._newcomers[sender] = trio.current_time()
            self._welcomes.add(sender)
            self.send(sender, Welcome(item.number))
        elif type(item) is Welcome:
            self._welcomes.add(sender)
            self._note_answer(sender, item.number)
        else:
            return False
        return True

    def _note_answer(self, incarnation: str, number: int) -> None:
        self._answered[incarnation] = max(number, self._answered.get(incarnation, 0))
        self._welcomed.set()
        self._welcomed = trio.Event()


def _ignore(_taken: bool) -> None:
    """Whether a parcel was taken need not be known: what is not shows as a gap."""
