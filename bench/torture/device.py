"""One device of a user under trial: the SDK's client, with everything it asked and was handed in the history."""

import random
import uuid
from collections import defaultdict
from collections.abc import Callable

import trio

from bench.torture.attempts import Attempts, Make
from bench.torture.node import TrialNode
from gateway.check.history import Kind, SeenEntry
from gateway.check.recorder import Recorder, payload_of
from protocol import limits
from protocol.client import (
    Address,
    Client,
    ConversationCreated,
    ConversationLeft,
    EntryEvent,
    MembersAdded,
    MembersRemoved,
    MessageReceived,
    Online,
    Refused,
    RequestTimeout,
    StateChanged,
    Waiting,
    connect,
)
from protocol.frames import RemoveMembers, Send, SendAck

SEND_TIMEOUT_S = 60.0
"""Seconds after which a device gives a message up and does not know what became of it."""

BODY_CHARS = (5, 20, 100, 1_500)
"""Lengths of messages, in characters; one is drawn for each."""

URL = "ws://127.0.0.1/"
"""A stand-in: where a device connects is decided anew for each connection."""


class Hasty(random.Random):
    """Jitter that comes back soon: what is measured is how long the cluster was away, not how long a client waited."""

    def random(self) -> float:
        return super().random() * 0.2


class Device:
    """Stays connected to some node, sends, and notes what it hears.

    Attributes:
        name: of the device; its user's name is the part before the last dash.
        conversations: where it may send.
        acknowledged: conversation -> seqs that it was acknowledged.
        heard: conversation -> seqs that it was handed.
        unanswered: commands under way.
        longest_ack_s: the longest that it waited for an acknowledgement, seconds.
        refusals: in words, what was refused for good, and where it was turned out, in conversations that it is in.
    """

    def __init__(
        self, user: str, name: str, nodes: list[TrialNode], token: Callable[[str], str], recorder: Recorder, seed: int
    ) -> None:
        """Describe a device; it connects in ``run``. ``token`` makes one for a user."""
        self.user = user
        self.name = f"{user}-{name}"
        self.conversations: list[str] = []
        self.acknowledged: dict[str, set[int]] = defaultdict(set)
        self.heard: dict[str, set[int]] = defaultdict(set)
        self.unanswered = 0
        self.longest_ack_s = 0.0
        self.refusals: list[str] = []
        self.client: Client | None = None
        self._nodes = nodes
        self._token = token
        self._recorder = recorder
        self._rng = random.Random(seed)
        self._turn = self._rng.randrange(len(nodes))
        self._connections = 0
        self._shown = ""
        self._busy: set[str] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stay connected until cancelled; started once connected for the first time."""
        jitter = Hasty(self._rng.random())
        async with (
            connect(URL, token=self._token(self.user), device=self.name, opener=self._open, rng=jitter) as self.client,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._listen, self.client)
            await self.client.wait_online()
            task_status.started()

    async def send_while(self, sending: Callable[[], bool], pause_s: float) -> None:
        """Send now and then, never two messages of one conversation at once, as long as ``sending`` says so."""
        assert self.client is not None
        async with trio.open_nursery() as nursery:
            while sending():
                free = [name for name in self.conversations if name not in self._busy]
                if free:
                    nursery.start_soon(self.say, self._rng.choice(free))
                if self._rng.random() < READ_SHARE:
                    nursery.start_soon(self._look, self._rng.choice(self.conversations))
                await trio.sleep(self._rng.expovariate(1 / pause_s))

    async def say(self, conversation: str) -> None:
        """Send one message and wait until it is acknowledged, refused for good, or given up."""
        name = uuid.uuid4().hex
        body = "x" * self._rng.choice(BODY_CHARS) + name
        self._busy.add(conversation)
        try:
            await self._append(
                "send", conversation, name,
                lambda request_id, attempt: Send(request_id, conversation, name, body, None, attempt),
                payload=payload_of(body),
            )  # fmt: skip
        finally:
            self._busy.discard(conversation)

    async def remove(self, conversation: str, user: str) -> None:
        """Remove a user from a conversation, and wait as for a message."""
        name = uuid.uuid4().hex
        await self._append(
            "remove", conversation, name,
            lambda request_id, attempt: RemoveMembers(request_id, conversation, name, [user], attempt), users=(user,),
        )  # fmt: skip

    async def _append(self, op: str, conversation: str, name: str, make: Make, **fields: object) -> None:
        assert self.client is not None
        attempts = Attempts(
            self._recorder, self.name, op, make, user=self.user, conversation=conversation, client_msg_id=name, **fields
        )
        self.unanswered += 1
        begun_s = trio.current_time()
        try:
            reply = await self.client.request(attempts.command, timeout_s=SEND_TIMEOUT_S, own=name)
        except RequestTimeout as error:
            attempts.end("info", error=str(error))
        except Refused as refused:
            attempts.end("fail", error=str(refused))
            if conversation in self.conversations:
                self.refusals.append(f"{self.name} in {conversation}: {refused}")
        else:
            assert isinstance(reply, SendAck), reply
            attempts.end("ok", seq=reply.seq, duplicate=reply.duplicate)
            self.acknowledged[conversation].add(reply.seq)
            self.longest_ack_s = max(self.longest_ack_s, trio.current_time() - begun_s)
        finally:
            self.unanswered -= 1

    async def create(self, members: list[str], recorded_as: str) -> str:
        """Create a group of this user and others; its id."""
        assert self.client is not None
        call = self._recorder.next_call()
        users = (self.user, *members)
        self._recorder.record(
            "invoke", "create", self.name, call=call, user=self.user, client_msg_id=recorded_as, users=users
        )
        made = await self.client.create_group(recorded_as, members, client_msg_id=recorded_as)
        self._recorder.record("ok", "create", self.name, call=call, conversation=made.conversation_id, seq=1)
        return made.conversation_id

    async def read_all(self, conversation: str) -> int:
        """The full read at the end, recorded as one; how many entries there are."""
        assert self.client is not None
        call = self._recorder.next_call()
        self._recorder.record(
            "invoke", "read", self.name, call=call, user=self.user, conversation=conversation, final=True
        )
        entries: list[SeenEntry] = []
        more = True
        while more:
            page = await self.client.history(conversation, after_seq=len(entries), limit=limits.HISTORY_ENTRIES_MAX)
            entries += [_seen(entry) for entry in page.entries]
            more = page.has_more
        self._read(call, tuple(entries), 1, len(entries))
        return len(entries)

    async def _look(self, conversation: str) -> None:
        """Read the newest entries."""
        assert self.client is not None
        call = self._recorder.next_call()
        self._recorder.record("invoke", "read", self.name, call=call, user=self.user, conversation=conversation)
        try:
            page = await self.client.history(conversation, limit=20)
        except (RequestTimeout, Refused) as error:
            self._recorder.record("info", "read", self.name, call=call, error=str(error))
            return
        entries = tuple(_seen(entry) for entry in page.entries)
        self._read(call, entries, entries[0].seq, page.head_seq)

    def _read(self, call: int, entries: tuple[SeenEntry, ...], first: int, head: int) -> None:
        self._recorder.record(
            "ok", "read", self.name, call=call, entries=entries, first_seq=first,
            last_seq=entries[-1].seq if entries else head, head_seq=head,
        )  # fmt: skip

    def leave_out_of_quiet(self) -> None:
        """Say in the history that it is not connected, so that nobody asks what reached it of where it was removed.

        What was lost on its way there before the removal, it may not read any more. Of all else the load keeps account.
        """
        if self._shown:
            self._recorder.record("info", "disconnect", self.name, connection=self._shown, note="was removed somewhere")
            self._shown = ""

    @property
    def connection(self) -> str:
        """The present connection, or the last one, as the history calls it."""
        return f"{self.name}#{self._connections}"

    async def _open(self, _address: Address) -> trio.abc.HalfCloseableStream:
        """Connect to the next node that is meant to run and thought to be healthy, as a load balancer would."""
        self._connections += 1
        for _ in self._nodes:
            self._turn += 1
            node = self._nodes[self._turn % len(self._nodes)]
            if node.wanted and node.healthy:
                break
        return await trio.open_tcp_stream(*node.front)

    async def _listen(self, client: Client) -> None:
        async for event in client.events():
            if isinstance(event, StateChanged):
                self._changed(event)
            elif isinstance(event, EntryEvent):
                self.heard[event.conversation_id].add(event.seq)
                self._recorder.record(
                    "ok", "deliver", self.name, user=self.user, connection=self._shown,
                    conversation=event.conversation_id, entry=_seen(event),
                )  # fmt: skip
            elif isinstance(event, ConversationLeft) and event.conversation_id in self.conversations:
                self.refusals.append(f"{self.name} was told that it is not in {event.conversation_id} any more")

    def _changed(self, event: StateChanged) -> None:
        if isinstance(event.state, Online):
            self._shown = self.connection
            self._recorder.record("ok", "connect", self.name, user=self.user, connection=self._shown)
        elif isinstance(event.state, Waiting) and self._shown:
            self._recorder.record("info", "disconnect", self.name, connection=self._shown, note=event.state.reason)
            self._shown = ""


READ_SHARE = 0.05
"""How many reads of the newest entries go with each message."""


def _seen(event: EntryEvent) -> SeenEntry:
    kind: Kind = "other"
    users: tuple[str, ...] = ()
    payload = ""
    match event:
        case MessageReceived():
            kind, payload = "message", payload_of(event.body)
        case ConversationCreated():
            kind, users = "created", tuple(event.users)
        case MembersAdded():
            kind, users = "added", tuple(event.users)
        case MembersRemoved():
            kind, users = "removed", tuple(event.users)
    return SeenEntry(event.seq, event.sender, event.client_msg_id, payload, kind, users)
