"""Several nodes without their sockets, their users, and what goes wrong with them: all of it decided by a seed.

The nodes' own code is real: lease, watch, slots, links, routing, owner and the store. Time is virtual.
"""

import random
import secrets
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import msgspec
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import just
from trio.testing import MockClock

from gateway.broker import Delivery, Origin
from gateway.check.checker import check
from gateway.check.history import Record, SeenEntry, encode, parse
from gateway.check.report import Report
from gateway.cluster.cluster import Cluster
from gateway.cluster.lease import Lease
from gateway.cluster.watch import NameTaken, Watch
from gateway.config import Settings
from protocol.codec import decode_entry
from protocol.frames import Command, ConversationKind, ConversationReply, CreateConversation, Reply
from store.cassandra import CassandraStore
from store.cassandra_coordination import CassandraCoordination
from tests.fakes.network import Network, NodeConnection
from tests.simulation.cassandra import Cassandra, NodeTables
from tests.simulation.device import Device, seen_entry

NODES = ("a", "b", "c")
USERS = ("alice", "bob", "carol")
CONVERSATIONS = 2

FAULTS_S = 60.0
"""Seconds of trouble in each run; as long is the calm behind them at most."""

CALM_MAX_S = 90.0
"""Seconds within which everything that was begun has to be answered once nothing goes wrong any more."""

QUIET_S = 15.0
"""Seconds after the last answer in which everything has to arrive everywhere."""


class Node:
    """One life of a node: what gateway/node.py puts together, with a simulated Cassandra and network."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.devices: list[Device] = []
        self.ready = False
        self.ended = False
        self.tables = NodeTables(world.cassandra)
        coordination = CassandraCoordination(self.tables)
        self.lease = Lease(
            coordination, node=name, address=f"{name}:1", owns=True, protocol=1, lease_s=10.0, renew_s=2.0,
            clock=trio.current_time,
        )  # fmt: skip
        watch = Watch(coordination, self.lease, lease_s=10.0, clock=trio.current_time)
        self.connection = NodeConnection(world.network, self.lease.incarnation)
        self.store = CassandraStore(self.tables, self._may_speak)
        self.cluster = Cluster(
            Settings(), self.store, coordination, self.connection, self.connection, self, self.lease, watch,
            clock_us=world.clock_us,
        )  # fmt: skip
        self.cluster.on_gap = self._resync
        self.cluster.on_fenced = self._fenced
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        try:
            await self._run()
        except* NameTaken:
            # A renewal of the life before came late: the supervisor tries again.
            self.world.count("name taken")
            self.end()

    async def _run(self) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.connection.run)
                await nursery.start(self.store.run)
                await nursery.start(self.cluster.owner.run)
                await nursery.start(self.cluster.run)
                self.ready = True
                await trio.sleep_forever()

    def end(self) -> None:
        """Killed, whatever it was doing."""
        if self.ended:
            return
        self.ended, self.ready = True, False
        self.tables.dead.set()
        self.world.network.inboxes.pop(self.lease.incarnation, None)
        self.scope.cancel()
        devices, self.devices = self.devices, []
        for device in devices:
            device.gone()
        self.world.nodes.pop(self.name)

    def _may_speak(self, conversation_id: str, epoch: int) -> bool:
        return self.cluster.ownership.may_speak(conversation_id, epoch)

    def _fenced(self) -> None:
        self.world.count("fenced")
        self.end()

    def _resync(self) -> None:
        self.world.count("gap")
        for device in self.devices:
            device.resync()

    def submit(self, origin: Origin, command: Command) -> None:
        if self.ready:
            self.cluster.router.submit(origin, command)

    # --- gateway.broker.EdgePort ------------------------------------------------------------------------------------

    def reply(self, origin: Origin, reply: Reply, conversation_id: str = "") -> None:
        if origin is self.world.founder:
            self.world.founded(reply)
        for device in self.devices:
            if device.origin is origin:
                device.replied(reply)

    def not_owner(self, origin: Origin, command: Command) -> None:
        raise AssertionError("the router takes these")

    def is_gone(self, origin: Origin) -> bool:
        return self.ended

    def when_room(self, origin: Origin, then: Callable[[], None]) -> None:
        then()

    def deliver(self, delivery: Delivery) -> None:
        for encoded, origin in zip(delivery.entries, delivery.origins, strict=True):
            entry = decode_entry(encoded)
            for device in self.devices:
                wanted = device.conversation_id == delivery.conversation_id and device.user in delivery.recipients
                if wanted and device.origin is not origin:
                    device.pushed(entry)

    def signal(self, *_signal: Any) -> None:
        """Receipts and typing are not judged here."""


class World:
    """All of it.

    Attributes:
        history: what devices saw.
        counts: what happened, by name.
        sending: whether devices begin new sends.
    """

    def __init__(self, seed: int, nursery: trio.Nursery) -> None:
        self.rng = random.Random(seed)
        self.nursery = nursery
        self.cassandra = Cassandra(self.rng, nursery)
        self.network = Network()
        self.nodes: dict[str, Node] = {}
        self.devices: list[Device] = []
        self.history: list[Record] = []
        self.counts: dict[str, int] = {}
        self.sending = False
        self.founder: Any = None
        self.dropping = 0.0
        self._created: ConversationReply | None = None
        self._calls = 0
        self.network.drop = lambda _receiver, _parcel: self.dropping > 0 and self.rng.random() < self.dropping

    @staticmethod
    def clock_us() -> int:
        return 1_700_000_000_000_000 + int(trio.current_time() * 1_000_000)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def next_call(self) -> int:
        self._calls += 1
        return self._calls

    def record(self, type: str, op: str, process: str, **fields: Any) -> None:
        """Write down what is seen now."""
        for name in ("entry", "entries"):
            if name in fields:
                fields[name] = msgspec.convert(fields[name], SeenEntry if name == "entry" else tuple[SeenEntry, ...])
        time_ns = int(trio.current_time() * 1e9)
        self.history.append(Record(time=time_ns, type=type, op=op, process=process, **fields))  # type: ignore[arg-type]

    def place(self, user: str) -> None:
        """Register the nodes where a user is connected."""
        places = {device.node.lease.incarnation for device in self.devices if device.user == user and device.node}
        self.network.place(user, *sorted(places))

    def any_node(self) -> Node | None:
        """A node that clients may come to."""
        ready = [node for node in self.nodes.values() if node.ready]
        return self.rng.choice(ready) if ready else None

    def start(self, name: str) -> None:
        node = self.nodes[name] = Node(self, name)
        self.nursery.start_soon(node.run)

    # --- A run ------------------------------------------------------------------------------------------------------

    async def run(self) -> Report:
        """Begin, go through trouble, become quiet, and have it judged."""
        for name in NODES:
            self.start(name)
        await trio.sleep(12)
        for number in range(CONVERSATIONS):
            await self._found(number)
        self.sending = True
        await self._trouble()
        self.sending = False
        await self._calm()
        await trio.sleep(QUIET_S)
        self.record("info", "quiet", "simulation")
        await self._final_reads()
        return check(parse(encode(record) for record in self.history))

    async def _found(self, number: int) -> None:
        users = tuple(f"{user}{number}" for user in USERS)  # a connection of a user is in all its conversations
        creator, *others = users
        self.founder, self._created = Founder(creator), None
        call, key = self.next_call(), f"create-{number}"
        self.record("invoke", "create", "founder", call=call, user=creator, client_msg_id=key, users=users)
        node = self.any_node()
        assert node is not None, "started"
        node.submit(self.founder, CreateConversation(call, ConversationKind.GROUP, others, key, key))
        while self._created is None:  # noqa: ASYNC110 - virtual time
            await trio.sleep(0.1)
        conversation_id = self._created.conversation.conversation_id
        self.record("ok", "create", "founder", call=call, conversation=conversation_id, seq=1)
        for user in users:
            device = Device(self, user, conversation_id)
            self.devices.append(device)
            self.nursery.start_soon(device.run)

    def founded(self, reply: Reply) -> None:
        assert isinstance(reply, ConversationReply), reply
        self._created = reply

    async def _calm(self) -> None:
        with trio.move_on_after(CALM_MAX_S) as patience:
            while any(device.unsent or device.resuming for device in self.devices):  # noqa: ASYNC110 - virtual time
                await trio.sleep(0.5)
        assert not patience.cancelled_caught, "something was never answered although nothing is wrong any more"

    async def _final_reads(self) -> None:
        """Read all logs as a stranger does, from the tables alone."""
        store = CassandraStore(NodeTables(self.cassandra), lambda _conversation_id, _epoch: False)
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

    # --- What goes wrong --------------------------------------------------------------------------------------------

    async def _trouble(self) -> None:
        rng = self.rng
        self.cassandra.unknown_share = rng.choice((0.0, 0.01, 0.05))
        end_s = trio.current_time() + FAULTS_S
        while trio.current_time() < end_s:
            await trio.sleep(rng.uniform(1.0, 8.0))
            fault = rng.choice(("kill", "cut", "stall", "stall", "drop", "slow"))
            node = self.any_node()
            if node is not None:
                self.count(fault)
                self.record("info", "fault", "simulation", fault=fault)
                self.nursery.start_soon(getattr(self, f"_{fault}"), node)
        await trio.sleep(25)
        self.cassandra.unknown_share = 0.0
        self.dropping, self.network.delay_s = 0.0, 0.001

    async def _kill(self, node: Node) -> None:
        node.end()

    async def _cut(self, node: Node) -> None:
        """Cut off from Cassandra."""
        node.tables.cut = True
        await trio.sleep(self.rng.uniform(1, 20))
        node.tables.cut = False

    async def _stall(self, node: Node) -> None:
        """What it says to Cassandra, and is told, arrives only after a while: as if it was paused."""
        node.tables.stalled_until_s = trio.current_time() + self.rng.uniform(3, 20)

    async def _drop(self, _node: Node) -> None:
        """Parcels get lost."""
        self.dropping = 0.2
        await trio.sleep(self.rng.uniform(1, 10))
        self.dropping = 0.0

    async def _slow(self, _node: Node) -> None:
        """Parcels take long."""
        self.network.delay_s = self.rng.uniform(0.01, 0.5)
        await trio.sleep(self.rng.uniform(1, 10))
        self.network.delay_s = 0.001

    async def keep_nodes(self) -> None:
        """Start again what has ended, as a supervisor does."""
        while True:
            await trio.sleep(1.0 + self.rng.random())
            for name in NODES:
                if name not in self.nodes:
                    self.start(name)


class Founder:
    """Who creates the conversations."""

    def __init__(self, user: str) -> None:
        self.user = user


class Result(msgspec.Struct):
    """What became of a run."""

    seed: int
    report: Report
    counts: dict[str, int]
    virtual_s: float


def simulate(seed: int) -> Result:
    """Run one seed, and say which on failure."""
    print(f"simulation seed {seed}")
    names = random.Random(seed)
    random.seed(seed)

    def token(count: int = 8) -> str:
        return f"{names.getrandbits(8 * count):x}"

    async def main() -> Result:
        async with trio.open_nursery() as nursery:
            world = World(seed, nursery)
            nursery.start_soon(world.keep_nodes)
            report = await world.run()
            world.counts["unknown"] = world.cassandra.unknowns
            result = Result(seed, report, world.counts, trio.current_time())
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
            outcomes.append(trio.run(main, clock=MockClock(autojump_threshold=0)))
        except BaseException as error:  # noqa: BLE001 - raised below
            outcomes.append(error)

    with patch.object(secrets, "token_hex", token), patch.object(secrets, "token_urlsafe", token):
        run()
    (outcome,) = outcomes
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
