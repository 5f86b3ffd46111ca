"""What stands around a catch-up: an owner, a store that both use, and an edge that records."""

from trio.testing import wait_all_tasks_blocked

from gateway.edge.catchup import Catchup
from gateway.owner.owner import Owner
from gateway.owner.ports import SingleOwner
from protocol.frames import CreateConversation, Send, Sync
from tests.fakes.edge import RecordingEdge
from tests.fakes.memory_store import MemoryStore


class Place:
    """An owner, a catch-up and the store that both use."""

    def __init__(self, settings):
        self.store = MemoryStore()
        self.edge = RecordingEdge()
        self.now_us = 1_700_000_000_000_000
        self.owner = Owner(settings, self.store, self.edge, SingleOwner(), self.clock_us)
        self.catchup = Catchup(settings, self.store, self.owner, self.edge)

    def clock_us(self):
        self.now_us += 1000
        return self.now_us

    async def own(self, origin, command):
        """Have the owner carry out a command; answers its reply and forgets all else."""
        self.owner.submit(origin, command)
        await wait_all_tasks_blocked()
        (reply,) = self.edge.replies_to(origin)
        self.edge.forget()
        return reply

    async def create(self, origin, kind, *members, name="c1", title=""):
        reply = await self.own(origin, CreateConversation(1, kind, list(members), name, title))
        return reply.conversation.conversation_id

    async def fill(self, origin, conversation_id, count, body="hello"):
        for n in range(count):
            self.owner.submit(origin, Send(0, conversation_id, f"f{self.now_us}-{n}", body))
        await wait_all_tasks_blocked()
        self.edge.forget()

    async def ask(self, origin, command):
        self.catchup.submit(origin, command)
        await wait_all_tasks_blocked()
        replies = self.edge.replies_to(origin)
        self.edge.forget()
        return replies

    async def sync(self, origin, cursors=None, only_named=False):
        self.store.calls.clear()
        pages = await self.ask(origin, Sync(3, cursors, only_named))
        assert [page.done for page in pages] == [False] * (len(pages) - 1) + [True]
        return pages[-1], {each.conversation_id: each for page in pages for each in page.conversations}
