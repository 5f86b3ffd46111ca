"""An owner on a store in memory, with an edge that writes everything down."""

from collections.abc import Callable, Sequence
from itertools import count

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.config import Settings
from gateway.owner.owner import Owner
from gateway.owner.ports import SingleOwner
from protocol.frames import (
    Command,
    ConversationKind,
    ConversationReply,
    CreateConversation,
    Reply,
    Send,
)
from tests.fakes.edge import FakeOrigin, RecordingEdge
from tests.fakes.memory_store import MemoryStore


class FakeOwnership(SingleOwner):
    """Ownership that a test can take away."""

    def __init__(self) -> None:
        self.current: int | None = 1
        self.sure = True

    def epoch(self, conversation_id: str) -> int | None:
        return self.current

    def may_speak(self, conversation_id: str, epoch: int) -> bool:
        return self.sure


class World:
    """An owner and all around it.

    Attributes:
        now_us: what the wall clock says.
    """

    def __init__(self, settings: Settings, store: MemoryStore | None = None) -> None:
        self.settings = settings
        self.store = store or MemoryStore()
        self.edge = RecordingEdge()
        self.scope = trio.CancelScope()
        self.ownership = FakeOwnership()
        self.now_us = 1_700_000_000_000_000
        self.owner = Owner(settings, self.store, self.edge, self.ownership, lambda: self.now_us)
        self._ids = count(1)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the owner until ``scope`` is cancelled."""
        with self.scope:
            await self.owner.run(task_status=task_status)

    @property
    def nothing_waits(self) -> bool:
        """Whether the backlog is empty, counted in commands as in bytes."""
        return (self.owner.backlog.waiting, self.owner.backlog.waiting_bytes) == (0, 0)

    def next_id(self) -> int:
        return next(self._ids)

    async def ask(self, origin: FakeOrigin, command: Command) -> Reply:
        """Submit a command and wait for its reply."""
        before = len(self.edge.replies_to(origin))
        self.owner.submit(origin, command)
        await wait_all_tasks_blocked()
        replies = self.edge.replies_to(origin)[before:]
        assert len(replies) == 1, replies
        return replies[0]

    async def group(self, creator: FakeOrigin, *others: str, title: str = "team") -> str:
        """A new group; what its creation brought is forgotten."""
        return await self._created(creator, ConversationKind.GROUP, others, f"create-{self.next_id()}", title)

    async def channel(self, creator: FakeOrigin, *others: str, title: str = "news") -> str:
        """A new channel; what its creation brought is forgotten."""
        return await self._created(creator, ConversationKind.CHANNEL, others, f"create-{self.next_id()}", title)

    async def direct(self, creator: FakeOrigin, other: str) -> str:
        """The conversation of two; what its creation brought is forgotten."""
        return await self._created(creator, ConversationKind.DIRECT, [other], "direct")

    async def _created(
        self, creator: FakeOrigin, kind: ConversationKind, others: Sequence[str], client_msg_id: str, title: str = ""
    ) -> str:
        reply = await self.ask(creator, CreateConversation(self.next_id(), kind, list(others), client_msg_id, title))
        assert isinstance(reply, ConversationReply), reply
        self.edge.forget()
        return reply.conversation.conversation_id

    def send(self, origin: FakeOrigin, conversation_id: str, client_msg_id: str, attempt: int = 1) -> Send:
        """Submit a message whose body is its client_msg_id."""
        command = Send(self.next_id(), conversation_id, client_msg_id, client_msg_id, attempt=attempt)
        self.owner.submit(origin, command)
        return command


StartWorld = Callable[..., World]


@pytest.fixture
def alice() -> FakeOrigin:
    return FakeOrigin("alice")


@pytest.fixture
def bob() -> FakeOrigin:
    return FakeOrigin("bob")


@pytest.fixture
def eve() -> FakeOrigin:
    return FakeOrigin("eve")


@pytest.fixture
async def start_world(nursery: trio.Nursery) -> StartWorld:
    """Starts owners: ``await start_world(tail_entries_max=16)``; several may share a store, one after the other."""

    async def start(store: MemoryStore | None = None, **settings: object) -> World:
        world = World(Settings(**settings), store)  # type: ignore[arg-type]
        if store is None:
            await nursery.start(world.store.run)
        await nursery.start(world.run)
        return world

    return start


@pytest.fixture
async def world(start_world: StartWorld) -> World:
    return await start_world()
