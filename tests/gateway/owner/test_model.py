"""One group under everything that may happen to it, against what must always hold (a generated program an example).

Several users and devices send and repeat, members come and go, the store answers late, not at all or wrongly, and the
owner is killed and started again on what the store has. See the checks in ``Watch`` and ``Run.judge``.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import trio
from hypothesis import event, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.broker import Delivery, Origin
from gateway.config import Settings
from gateway.owner.owner import Owner
from gateway.owner.ports import SingleOwner
from protocol.codec import decode_entry
from protocol.errors import ErrorCode
from protocol.frames import (
    AddMembers,
    Command,
    ConversationKind,
    CreateConversation,
    ErrorReply,
    RemoveMembers,
    Reply,
    Send,
    SendAck,
)
from store.entries import changes_of
from store.interface import NotWritten, OutcomeUnknown
from tests.fakes.edge import FakeOrigin, RecordingEdge
from tests.fakes.memory_store import LostAnswer, MemoryStore

USERS = ["alice", "alice", "bob", "carol"]  # one for each device

TROUBLE = st.lists(st.sampled_from([None, LostAnswer, OutcomeUnknown, NotWritten]), min_size=1, max_size=3)
SEND = st.tuples(st.just("send"), st.integers(0, len(USERS) - 1))
REPEAT = st.tuples(st.just("repeat"), st.integers(0, 30))

OPERATIONS = st.one_of(
    SEND,
    SEND,
    SEND,
    REPEAT,
    REPEAT,
    st.tuples(
        st.sampled_from(["add", "remove", "hold", "release", "answer", "answer", "pass", "pass", "pass", "settle"]),
        st.just(0),
    ),
    st.tuples(st.just("trouble"), TROUBLE),
    st.tuples(st.just("trouble"), TROUBLE),
    st.tuples(st.just("kill"), st.integers(0, 3)),
    st.tuples(st.just("chatter"), st.just(0)),
)


class Watch(RecordingEdge):
    """Checks each delivery and acknowledgement at the moment it is made."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self.store = store
        self.last_seq = 0  # the newest delivered by this owner, or there when it began
        self.delivered: set[int] = set()
        self.answers: dict[int, list[Reply]] = {}

    def restart(self) -> None:
        self.last_seq = max((len(log.entries) for log in self.store.logs.values()), default=0)

    def deliver(self, delivery: Delivery) -> None:
        log = self.store.logs[delivery.conversation_id].entries
        for encoded in delivery.entries:
            seq = decode_entry(encoded).seq
            assert log[seq - 1 : seq] == [encoded], "delivered before it was durable"
            assert seq <= self.last_seq + 1, "delivered with a gap"
            assert seq <= self.last_seq or set(delivery.recipients) == recipients(log, seq)
            self.last_seq = max(seq, self.last_seq)
            self.delivered.add(seq)
        super().deliver(delivery)

    def reply(self, origin: Origin, reply: Reply, conversation_id: str = "") -> None:
        if isinstance(reply, SendAck):
            assert reply.seq in self.delivered, "acknowledged before it was delivered"
        self.answers.setdefault(reply.id, []).append(reply)
        super().reply(origin, reply, conversation_id)


def recipients(log: list[bytes], seq: int) -> set[str]:
    """Who is to get entry ``seq``: the members before it and after it."""
    members: set[str] = set()
    for encoded in log[:seq]:
        changes = changes_of(decode_entry(encoded))
        before = set(members)
        members = members | set(changes.added) - set(changes.removed)
        members -= set(changes.removed)
    return members | (before if changes.removed else set())


class Sent(NamedTuple):
    user: str
    client_msg_id: str


class Run:
    """Carries a program out."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.store = MemoryStore()
        self.edge = Watch(self.store)
        self.sends: list[Sent] = []
        self.requests: dict[int, tuple[int, Sent | None]] = {}  # request id -> incarnation, send
        self.last_requests: dict[Sent, int] = {}
        self.incarnation = 0
        self.now_us = 1_700_000_000_000_000
        self.conversation_id = ""

    async def start(self) -> None:
        self.incarnation += 1
        self.edge.restart()
        self.devices = [FakeOrigin(user) for user in USERS]
        self.owner = Owner(Settings(tail_entries_max=16), self.store, self.edge, SingleOwner(), lambda: self.now_us)
        self.scope = trio.CancelScope()
        await self.nursery.start(self._run_owner)

    async def _run_owner(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            await self.owner.run(task_status=task_status)

    def submit(self, device: int, command: Command, sent: Sent | None = None) -> None:
        self.requests[command.id] = (self.incarnation, sent)
        self.owner.submit(self.devices[device], command)

    @property
    def next_id(self) -> int:
        return len(self.requests) + 1

    def send(self, device: int, sent: Sent, attempt: int) -> None:
        command = Send(self.next_id, self.conversation_id, sent.client_msg_id, sent.client_msg_id, attempt=attempt)
        self.last_requests[sent] = command.id
        self.submit(device, command, sent)

    async def create(self) -> None:
        self.submit(0, CreateConversation(self.next_id, ConversationKind.GROUP, ["bob"], "create"))
        await wait_all_tasks_blocked()
        self.conversation_id = self.edge.replies[0].conversation.conversation_id  # type: ignore[union-attr]

    async def do(self, name: str, argument: Any) -> None:
        match name:
            case "send":
                sent = Sent(USERS[argument], f"m{len(self.sends)}")
                self.sends.append(sent)
                self.send(argument, sent, attempt=1)
            case "repeat" if self.sends:
                sent = self.sends[argument % len(self.sends)]
                device = 1 if sent.user == "alice" and argument % 2 else USERS.index(sent.user)
                self.send(device, sent, attempt=2)
            case "chatter":  # more than a tail, so that older sends have to be looked up
                for _ in range(20):
                    await self.do("send", 2)
                await wait_all_tasks_blocked()
            case "add":
                self.submit(0, AddMembers(self.next_id, self.conversation_id, f"a{self.next_id}", ["carol"]))
            case "remove":
                self.submit(0, RemoveMembers(self.next_id, self.conversation_id, f"r{self.next_id}", ["carol"]))
            case "hold":
                self.store.held = True
            case "release":
                self.store.release()
            case "answer" if self.store.held and self.store.queued:
                self.store.answer()
            case "pass":
                await wait_all_tasks_blocked()
            case "settle":
                await trio.sleep(7)
            case "trouble":  # one batch for each verdict, so that several are in flight when the store is held
                for each in argument:
                    self.store.verdicts.append(each and each("as told"))
                    await self.do("send", 0)
                    await self.do("add" if argument[0] is None else "send", 2)
                    await wait_all_tasks_blocked()
            case "kill":
                self.scope.cancel()
                await wait_all_tasks_blocked()
                self.store.crash(batches_written=argument)
                await self.start()

    async def finish(self) -> None:
        self.store.verdicts.clear()
        self.store.release()
        await trio.sleep(60)

    def judge(self) -> None:
        """What must hold when all is over."""
        log = [decode_entry(encoded) for encoded in self.store.logs[self.conversation_id].entries]
        assert [entry.seq for entry in log] == list(range(1, len(log) + 1))
        assert all(one.time_us < two.time_us for one, two in pairwise(log))
        keys = [Sent(entry.sender, entry.client_msg_id) for entry in log]
        assert len(set(keys)) == len(keys), "a client_msg_id was appended twice"
        for request_id, (incarnation, sent) in self.requests.items():
            answers = self.edge.answers.get(request_id, [])
            assert len(answers) <= 1, answers
            assert answers or incarnation < self.incarnation, f"request {request_id} was never answered"
            if sent is not None and answers:
                last = self.last_requests[sent] == request_id
                self._judge_answer(answers[0], sent, keys, last)
        for device in self.devices:
            acks = [
                each.seq for each in self.edge.replies_to(device) if isinstance(each, SendAck) and not each.duplicate
            ]
            assert acks == sorted(acks), "acknowledged out of order"
        assert (self.owner.backlog.waiting, self.owner.backlog.waiting_bytes) == (0, 0)

    @staticmethod
    def _judge_answer(answer: Reply, sent: Sent, keys: list[Sent], last: bool) -> None:
        # A client repeats what was not answered: only the answer to the last attempt can be one for good.
        event(type(answer).__name__ if isinstance(answer, SendAck) else ErrorCode(answer.code).name)  # type: ignore[union-attr]
        if isinstance(answer, SendAck):
            assert keys[answer.seq - 1] == sent, "acknowledged, but another entry is there"
        else:
            assert isinstance(answer, ErrorReply)
            assert ErrorCode(answer.code).retry or not last or sent not in keys, "refused for good, but visible"


async def run_program(program: list[tuple[str, Any]]) -> None:
    async with trio.open_nursery() as nursery:
        run = Run(nursery)
        await nursery.start(run.store.run)
        await run.start()
        await run.create()
        for name, argument in program:
            await run.do(name, argument)
        await run.finish()
        run.judge()
        nursery.cancel_scope.cancel()


@settings(max_examples=300)
@given(st.lists(OPERATIONS, min_size=10, max_size=60))
def test_a_group_keeps_its_promises(program):
    trio.run(run_program, program, clock=MockClock(autojump_threshold=0))
