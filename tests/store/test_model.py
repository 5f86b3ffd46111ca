"""The embedded store against a model in plain Python, by random commands, restarts among them."""

import shutil
import tempfile
from pathlib import Path
from unittest.mock import patch

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.frames import EntryKind
from store import embedded_recent
from store.embedded import EmbeddedStore
from store.entries import Append, ReceiptRecord
from tests.store.conformance import EVERYTHING
from tests.store.entries import created, entry, record
from tests.store.outcomes import append_all

CONVERSATIONS = st.sampled_from(["g1", "g2", "g3"])
USERS = st.sampled_from(["alice", "bob", "carol"])
COMMANDS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), CONVERSATIONS, st.lists(USERS, min_size=1, unique=True)),
        st.tuples(st.just("append"), CONVERSATIONS, st.integers(-2, 2), st.integers(1, 6)),
        st.tuples(st.just("add"), CONVERSATIONS, USERS),
        st.tuples(st.just("remove"), CONVERSATIONS, USERS),
        st.tuples(st.just("receipt"), CONVERSATIONS, USERS, st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("take over"), CONVERSATIONS),
        st.tuples(st.just("restart")),
    ),
    max_size=40,
)


class Model:
    """What the store should hold."""

    def __init__(self):
        self.logs = {}  # conversation -> entries, seq 1 first
        self.members = {}  # conversation -> {user: [delivered, read]}
        self.epochs = {}

    def write(self, conversation, entries):
        """Append if it follows or repeats the log; says whether it may."""
        log = self.logs.get(conversation)
        if log is None:
            return False
        first = entries[0].entry.seq
        overlap = log[first - 1 : first - 1 + len(entries)] if first >= 1 else None
        if overlap is None or first > len(log) + 1 or overlap != entries[: len(overlap)]:
            return False
        for stored in entries[len(overlap) :]:
            log.append(stored)
            for user in stored.entry.users or ():
                if stored.entry.kind == EntryKind.MEMBERS_REMOVED:
                    self.members[conversation].pop(user, None)
                else:
                    self.members[conversation].setdefault(user, [0, 0])
        return True


class Runner:
    """Does each command to the store and to the model, and compares."""

    def __init__(self):
        self.model = Model()
        self.store = None

    async def do(self, command, *args):
        await getattr(self, command.replace(" ", "_"))(*args)

    async def create(self, conversation, users):
        first = created(*users)
        new = conversation not in self.model.logs
        assert await self.store.create(record(conversation), first, 1) == new
        if new:
            self.model.logs[conversation] = [first]
            self.model.members[conversation] = {user: [0, 0] for user in users}
            self.model.epochs[conversation] = 1

    async def append(self, conversation, offset, count):
        first = len(self.model.logs.get(conversation, ())) + 1 + offset
        await self._append(conversation, [entry(seq) for seq in range(first, first + count)] if first >= 0 else [])

    async def _append(self, conversation, entries):
        if entries:
            epoch = self.model.epochs.get(conversation, 1)
            [error] = await append_all(self.store, Append(conversation, epoch, entries))
            assert (error is None) == self.model.write(conversation, entries), error

    async def add(self, conversation, user):
        seq = len(self.model.logs.get(conversation, ())) + 1
        await self._append(conversation, [entry(seq, kind=EntryKind.MEMBERS_ADDED, users=[user])])

    async def remove(self, conversation, user):
        seq = len(self.model.logs.get(conversation, ())) + 1
        await self._append(conversation, [entry(seq, kind=EntryKind.MEMBERS_REMOVED, users=[user])])

    async def receipt(self, conversation, user, delivered, read):
        await self.store.save_receipts([ReceiptRecord(conversation, user, delivered, read)])
        pointers = self.model.members.get(conversation, {}).get(user)
        if pointers is not None:
            pointers[:] = [max(pointers[0], delivered), max(pointers[1], read)]

    async def take_over(self, conversation):
        epoch = self.model.epochs.get(conversation, 0) + 1
        loaded = await self.store.take_over(conversation, epoch, 5)
        if conversation not in self.model.logs:
            assert loaded is None
            return
        self.model.epochs[conversation] = epoch
        log = self.model.logs[conversation]
        assert (loaded.head_seq, loaded.tail) == (len(log), log[-5:])
        found = {user: [m.delivered_seq, m.read_seq] for user, m in loaded.members.items()}
        assert found == self.model.members[conversation]

    async def compare(self):
        for conversation, log in self.model.logs.items():
            assert await self.store.read(conversation, **EVERYTHING) == [stored.encoded for stored in log]
        for user in ("alice", "bob", "carol"):
            found = {each.conversation_id: each for each in await self.store.memberships(user)}
            expected = {each for each, members in self.model.members.items() if user in members}
            assert set(found) == expected
            for conversation, membership in found.items():
                members, log = self.model.members[conversation], self.model.logs[conversation]
                assert membership.head_seq == len(log)
                assert membership.last_encoded == log[-1].encoded
                assert membership.member_count == len(members)
                assert [membership.delivered_seq, membership.read_seq] == members[user]

    async def run(self, path, commands):
        """All commands; each restart closes the store and opens it again."""
        rest = iter([*commands, ("restart",), ("restart",)])
        more = True
        while more:
            self.store = EmbeddedStore.open(path)
            async with trio.open_nursery() as nursery:
                await nursery.start(self.store.run)
                await self.compare()
                more = False
                for command in rest:
                    if command[0] == "restart":
                        more = True
                        break
                    await self.do(*command)
                await self.compare()
                nursery.cancel_scope.cancel()


@settings(max_examples=40)
@given(COMMANDS, st.integers(1, 12))
def test_the_store_holds_what_the_model_holds(commands, generation_entries):
    path = Path(tempfile.mkdtemp(prefix="tidegate-model-"))
    try:
        with (
            patch.object(embedded_recent, "GENERATION_ENTRIES", generation_entries),
            patch.object(embedded_recent, "INDEX_ENTRIES_MIN", 2),
        ):
            trio.run(Runner().run, path, commands)
    finally:
        shutil.rmtree(path)
