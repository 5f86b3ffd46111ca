"""Several nodes, their users, and what goes wrong with them: all of it decided by a seed.

``python -m tests.simulation.run`` runs seeds from the command line.
"""

import random
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import msgspec
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import just

from gateway.check.checker import check
from gateway.check.history import Record, SeenEntry, encode, parse
from gateway.check.report import Report
from gateway.cluster.heads import HEADS_TTL_S
from gateway.cluster.slots import slot_of
from gateway.edge.hub import ask
from protocol.codec import decode_entry
from protocol.frames import (
    AddMembers,
    Command,
    ConversationKind,
    ConversationReply,
    CreateConversation,
    ErrorReply,
    RemoveMembers,
    Reply,
    SendAck,
)
from store.cassandra import CassandraStore
from tests.simulation.cassandra import Cassandra, NodeTables
from tests.simulation.device import NOTHING_STORED, Device, seen_entry
from tests.simulation.faults import FAULT_MAX_S, Faults
from tests.simulation.node import Node
from tests.simulation.peers import Streets
from tests.simulation.place import Place
from tests.simulation.redis import Redis
from tests.simulation.timeline import Timeline, VirtualClock

NODES = ("a", "b", "c")
USERS = ("alice", "bob", "carol")
READERS = ("dave", "erin")
GUEST = "guest"
CONVERSATIONS = 2

CHANNEL_SHARE = 0.3
"""Share of conversations that are channels."""

START_S = 12.0
"""Seconds that nodes have to begin."""

FAULTS_S = 60.0
"""Seconds of trouble in each run."""

LAST_S = 2.0
"""Seconds for which parcels still get lost when nobody sends any more."""

CALM_MAX_S = 90.0
"""Seconds within which everything that was begun has to be answered once nothing goes wrong any more."""

QUIET_S = 15.0
"""Seconds after the last answer in which everything has to arrive everywhere."""

CALL_MAX_S = 15.0
"""Seconds that a caller waits for a reply."""

GIVE_UP_EVERY = 4
"""One of so many worlds is one in which who is refused gives up, so that it shows whether what was refused is there."""

FAIR_SHARE = 0.4
"""Share of worlds in which Redis loses nothing, so that no push may skip what was acknowledged."""


class NeverAnswered(AssertionError):
    """Nothing goes wrong any more, and still somebody waits."""


class World:
    """All of it.

    Attributes:
        history: what devices saw.
        counts: what happened, by name.
        sending: whether devices begin new sends.
        sends_per_s: of each of the two senders of a device.
        fair: Redis loses nothing, and is there all the time.
        gives_up: who is told that nothing of a send was stored does not repeat it.
        sync_share: how many of the times that a device comes back it asks for all that is new; otherwise it reads the
            history.
        acknowledged: of each conversation the seqs of what was acknowledged by whoever appended it.
        known_seqs: of each conversation the greatest seq that everybody who comes back has to be told.
        shown_seqs: the greatest seq that each user was pushed, acknowledged, or told when coming back.
    """

    def __init__(self, seed: int, nursery: trio.Nursery) -> None:
        self.rng = random.Random(seed)
        self.nursery = nursery
        self.timeline = Timeline()
        self.cassandra = Cassandra(self.rng, self.timeline)
        self.redis = Redis(self.rng, self.timeline)
        self.streets = Streets(self.timeline)
        self.nodes: dict[str, Node] = {}
        self.devices: list[Device] = []
        self.history: list[Record] = []
        self.acknowledged: dict[str, set[int]] = {}
        self.known_seqs: dict[str, int] = {}
        self.shown_seqs: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.sending = False
        self.sends_per_s = self.rng.choice((0.3, 1.0, 2.0))
        self.fair = self.rng.random() < FAIR_SHARE
        self.gives_up = seed % GIVE_UP_EVERY == 1
        self.sync_share = self.rng.choice((0.5, 0.8, 1.0))
        self._changing = 0
        self._calls = 0

    @staticmethod
    def clock_us() -> int:
        """The wall clock of all nodes."""
        return 1_700_000_000_000_000 + int(trio.current_time() * 1_000_000)

    def count(self, what: str) -> None:
        """Something happened."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def acknowledge(self, conversation_id: str, ack: SendAck) -> None:
        """Somebody was told that an entry is in the log.

        What a repeat finds there may never have been delivered, and is now: in the order of the repeats, not in that of
        the log.
        """
        if not ack.duplicate:
            self.acknowledged.setdefault(conversation_id, set()).add(ack.seq)
        self.know(conversation_id, ack.seq)

    def know(self, conversation_id: str, seq: int) -> None:
        """Somebody was told that the conversation is that far.

        What an owner says while Redis is out of its reach, others may not hear of before they have heard that, or
        before the heads that it wrote have expired: they resync then.
        """
        owner = self.owner_of(conversation_id)
        if owner is not None and not owner.redis.away and trio.current_time() > owner.redis.back_s + HEADS_TTL_S:
            self.known_seqs[conversation_id] = max(seq, self.known_seqs.get(conversation_id, 0))

    def show(self, user: str, seq: int) -> None:
        """A user learns that its conversation is that far, perhaps before others may."""
        self.shown_seqs[user] = max(seq, self.shown_seqs.get(user, 0))

    def next_call(self) -> int:
        """A number that no call had before."""
        self._calls += 1
        return self._calls

    def record(self, type: str, op: str, process: str, **fields: Any) -> None:
        """Write down what is seen now."""
        for name in ("entry", "entries"):
            if name in fields:
                fields[name] = msgspec.convert(fields[name], SeenEntry if name == "entry" else tuple[SeenEntry, ...])
        time_ns = int(trio.current_time() * 1e9)
        self.history.append(Record(time=time_ns, type=type, op=op, process=process, **fields))  # type: ignore[arg-type]

    def any_node(self) -> Node | None:
        """A node that clients may come to."""
        ready = [node for node in self.nodes.values() if node.ready]
        return self.rng.choice(ready) if ready else None

    def owner_of(self, conversation_id: str) -> Node | None:
        """The node that the slot table names, if it still lives: as the newest table says that any node knows.

        An older one may name a node that does not know yet that it owns nothing any more.
        """
        tables = [node.cluster.ownership.table for node in self.nodes.values()]
        newest = max(tables, key=lambda table: table.version, default=None)
        owner = newest.slots[slot_of(conversation_id)].owner if newest is not None else ""
        return next((node for node in self.nodes.values() if node.incarnation == owner), None)

    def start(self, name: str) -> None:
        """Begin a life of a node."""
        node = self.nodes[name] = Node(self, name)
        self.nursery.start_soon(node.run)

    # --- A run ------------------------------------------------------------------------------------------------------

    async def run(self) -> Report:
        """Begin, go through trouble, become quiet, and have it judged."""
        self.nursery.start_soon(self.timeline.run)
        for name in NODES:
            self.start(name)
        await trio.sleep(START_S)
        self.nursery.start_soon(self._keep_nodes)
        for number in range(CONVERSATIONS):
            await self._found(number)
        self.sending = True
        await Faults(self).run(FAULTS_S)
        # What is lost last is the hardest to miss: nothing that follows gives it away.
        self.redis.lossy = 0.0 if self.fair else self.rng.choice((0.0, 0.1, 0.3))
        await trio.sleep(FAULT_MAX_S)
        self.sending = False
        await trio.sleep(LAST_S)
        self.redis.lossy = self.cassandra.unknown_share = 0.0
        await self._calm()
        await trio.sleep(QUIET_S)
        self.record("info", "quiet", "simulation")
        await self._final_reads()
        return check(parse(encode(record) for record in self.history))

    async def _keep_nodes(self) -> None:
        """Start again what has ended, as a supervisor does."""
        while True:
            await trio.sleep(1.0 + self.rng.random())
            for name in NODES:
                if name not in self.nodes:
                    self.start(name)

    async def _calm(self) -> None:
        with trio.move_on_after(CALM_MAX_S) as patience:
            while self._changing or any(device.unsent or device.resuming for device in self.devices):  # noqa: ASYNC110
                await trio.sleep(0.5)
        if patience.cancelled_caught:
            waiting = [device.name for device in self.devices if device.unsent or device.resuming]
            raise NeverAnswered(f"unanswered although nothing is wrong any more: {waiting}, {self._changing}")

    async def _final_reads(self) -> None:
        """Read all logs as a stranger does, from the tables alone."""
        tables = NodeTables(self.cassandra, Place(self.timeline, self.rng))
        store = CassandraStore(tables, lambda _conversation_id, _epoch: False)
        for conversation_id in sorted({device.conversation_id for device in self.devices}):
            call = self.next_call()
            self.record("invoke", "read", "reader", call=call, conversation=conversation_id, final=True)
            encoded = await store.read(conversation_id, after_seq=0, before_seq=2**60, limit=100_000, newest=False)
            entries = tuple(seen_entry(decode_entry(each)) for each in encoded)
            head_seq = entries[-1]["seq"] if entries else 0
            self.record(
                "ok", "read", "reader", call=call, conversation=conversation_id, entries=entries,
                first_seq=1, last_seq=head_seq, head_seq=head_seq, final=True,
            )  # fmt: skip

    # --- Conversations and members ----------------------------------------------------------------------------------

    async def _found(self, number: int) -> None:
        users = tuple(f"{user}{number}" for user in (*USERS, *READERS))  # each is in one conversation only
        creator, *others = users
        kind = ConversationKind.CHANNEL if self.rng.random() < CHANNEL_SHARE else ConversationKind.GROUP
        key, call = f"create-{number}", self.next_call()
        self.record("invoke", "create", "founder", call=call, user=creator, client_msg_id=key, users=users)
        reply = None
        while not isinstance(reply, ConversationReply):
            reply = await self.call(creator, CreateConversation(call, kind, others, key, key))
        conversation_id = reply.conversation.conversation_id
        self.count(kind.name.lower())
        self.record("ok", "create", "founder", call=call, conversation=conversation_id, seq=1)
        guest = f"{GUEST}{number}"
        for user in (*users, creator, guest):
            name = f"{user}-{sum(device.user == user for device in self.devices)}"
            sends = user.startswith(USERS)
            device = Device(self, name, user, conversation_id, sends=sends, stays=user != guest)
            self.devices.append(device)
            self.nursery.start_soon(device.run)
        self.nursery.start_soon(self._keep_changing_members, conversation_id, creator, guest)

    async def _keep_changing_members(self, conversation_id: str, creator: str, guest: str) -> None:
        """Let the guest in and out, now and then."""
        changes = 0
        while True:
            await trio.sleep(self.rng.uniform(2.0, 15.0))
            if not self.sending:
                continue
            self._changing += 1
            changes += 1
            key = f"change-{changes}"
            op, make = ("add", AddMembers) if changes % 2 else ("remove", RemoveMembers)
            attempt, done = 0, False
            while not done:
                attempt += 1
                call = self.next_call()
                self.record(
                    "invoke", op, creator, call=call, user=creator, conversation=conversation_id, client_msg_id=key,
                    users=(guest,), attempt=attempt,
                )  # fmt: skip
                reply = await self.call(creator, make(call, conversation_id, key, [guest], attempt))
                done = isinstance(reply, SendAck)
                if isinstance(reply, SendAck):
                    self.acknowledge(conversation_id, reply)
                    self.show(creator, reply.seq)
                    self.record(
                        "ok", op, creator, call=call, conversation=conversation_id, seq=reply.seq,
                        duplicate=reply.duplicate,
                    )  # fmt: skip
                else:
                    assert reply is None or isinstance(reply, ErrorReply), reply
                    refused = reply is not None and reply.code in NOTHING_STORED
                    self.record("fail" if refused else "info", op, creator, call=call, conversation=conversation_id)
                    await trio.sleep(0.5)
            self._changing -= 1

    async def call(self, user: str, command: Command) -> Reply | None:
        """Have a node carry out a command for a caller without a connection; None: it did not answer."""
        node = self.any_node()
        if node is None:
            await trio.sleep(0.5)
            return None
        with trio.move_on_after(CALL_MAX_S):
            return await ask(node.submit, user, command)
        return None


class Result(msgspec.Struct):
    """What became of a run.

    Attributes:
        breaches: what was broken, in words; empty: nothing.
        happened: what happened, by name.
        digest: of the whole history; the same for the same seed.
        history: what devices saw, of a run that is looked into alone.
    """

    seed: int
    breaches: list[str]
    happened: dict[str, int]
    virtual_s: float
    digest: int
    history: list[Record]


def simulate(seed: int, mutation: Callable[[], AbstractContextManager[object]] = nullcontext) -> Result:
    """Run one seed, perhaps with a part of the protocol left out.

    The same seed gives the same run wherever PYTHONHASHSEED is the same: the order of sets depends on it.
    """
    names = random.Random(seed)
    random.seed(seed)

    def token(count: int = 8) -> str:
        return f"{names.getrandbits(8 * count):x}"

    async def main() -> Result:
        async with trio.open_nursery() as nursery:
            world = World(seed, nursery)
            breaches: list[str] = []
            happened: dict[str, int] = {}
            try:
                report = await world.run()
            except NeverAnswered as error:
                breaches = [str(error)]
            else:
                breaches = [f"{each.name}: {each.conversation} {each.what}" for each in report.breaches]
                happened = dict(report.sometimes)
            happened |= world.counts | {"unknown": world.cassandra.unknowns, "direct": world.streets.used}
            digest = hash(tuple((record.time, record.type, record.op, record.process) for record in world.history))
            result = Result(seed, breaches, happened, trio.current_time(), digest, world.history)
            for node in list(world.nodes.values()):
                node.end()
            nursery.cancel_scope.cancel()
        return result

    outcomes: list[Result | BaseException] = []

    # Under hypothesis trio chooses the same among tasks that may run, each time: they know each other by entry point.
    @settings(max_examples=1, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=HealthCheck)
    @given(just(seed))
    def run(_seed: int) -> None:
        try:
            outcomes.append(trio.run(main, clock=VirtualClock()))
        except BaseException as error:  # noqa: BLE001 - raised below
            outcomes.append(error)

    with patch.object(secrets, "token_hex", token), patch.object(secrets, "token_urlsafe", token), mutation():
        run()
    (outcome,) = outcomes
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
