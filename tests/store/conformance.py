"""What every store must do, whatever it is made of. A backend's test file subclasses StoreConformance and gives it a
``store`` fixture: an empty store that runs.
"""

import pytest
import trio

from protocol.codec import decode_entry
from protocol.frames import ConversationKind, EntryKind
from store.entries import Append, Involvement, MemberRecord, ReceiptRecord, Search
from store.interface import NotWritten, StaleEpoch
from tests.store.entries import T0_US, append, created, entry, record
from tests.store.outcomes import Outcomes, append_all

EVERYTHING = {"after_seq": 0, "before_seq": 2**53, "limit": 10_000, "newest": False}


async def make(store, conversation_id="g1", *users, kind=ConversationKind.GROUP, title="", epoch=1):
    first = created(*(users or ("alice", "bob")), title=title)
    assert await store.create(record(conversation_id, kind, title), first, epoch)
    return first


async def seqs(store, conversation_id="g1", **bounds):
    encoded = await store.read(conversation_id, **{**EVERYTHING, **bounds})
    return [decode_entry(each).seq for each in encoded]


async def find(store, client_msg_id, *, conversation_id="g1", sender="alice", since_us=0):
    bounds = {"after_seq": 0, "before_seq": 2**53}
    return (await store.find(conversation_id, sender, client_msg_id, since_us, **bounds)).entry


class Creating:
    async def test_a_created_conversation_has_its_record_members_and_first_entry(self, store):
        first = await make(store, "g1", "alice", "bob", title="Sailing")
        loaded = await store.take_over("g1", 1, 10)
        assert loaded.record == record("g1", title="Sailing")
        assert list(loaded.members) == ["alice", "bob"]
        assert [(m.joined_seq, m.delivered_seq, m.read_seq) for m in loaded.members.values()] == [(1, 0, 0)] * 2
        assert (loaded.head_seq, loaded.head_time_us) == (1, T0_US + 1)
        assert loaded.tail == [first]

    async def test_creating_it_again_changes_nothing(self, store):
        first = await make(store, "g1", "alice", "bob")
        assert not await store.create(record("g1", title="other"), created("mallory"), 5)
        loaded = await store.take_over("g1", 1, 10)
        assert loaded.record.title == ""
        assert list(loaded.members) == ["alice", "bob"]
        assert loaded.tail == [first]

    async def test_what_does_not_exist_is_none_or_empty(self, store):
        assert await store.take_over("nowhere", 1, 10) is None
        assert await seqs(store, "nowhere") == []
        assert await find(store, "c1", conversation_id="nowhere") is None
        assert await store.memberships("nobody") == []
        assert await store.last_seen(["nobody"]) == {}


class Appending:
    async def test_appended_entries_are_read_back_byte_for_byte(self, store):
        first = await make(store)
        wanted = [entry(2, metadata={"a": "b"}), entry(3, "Grüße 🌊"), entry(4)]
        assert await append_all(store, Append("g1", 1, wanted)) == [None]
        assert await store.read("g1", **EVERYTHING) == [each.encoded for each in [first, *wanted]]

    async def test_batches_in_flight_come_out_in_order(self, store):
        await make(store)
        outcomes = Outcomes()
        batches = [append("g1", seq) for seq in range(2, 60)]
        for each in batches:
            store.append([each], outcomes)
        assert outcomes.calls == []  # never from inside append
        await outcomes.wait(len(batches))
        assert outcomes.all == [(each, None) for each in batches]
        assert await seqs(store) == list(range(1, 60))

    async def test_a_batch_may_name_many_conversations_and_one_repeatedly(self, store):
        for conversation_id in ("g1", "g2"):
            await make(store, conversation_id)
        batch = [append("g1", 2), append("g2", 2, 3), append("g1", 3, 4)]
        assert await append_all(store, *batch) == [None] * 3
        assert await seqs(store, "g1") == [1, 2, 3, 4]
        assert await seqs(store, "g2") == [1, 2, 3]

    async def test_an_empty_append_and_an_empty_batch_are_allowed(self, store):
        await make(store)
        store.append([], Outcomes())
        assert await append_all(store, Append("g1", 1, [])) == [None]

    @pytest.mark.parametrize("seq", [1, 3, 100])
    async def test_what_does_not_follow_the_head_is_refused(self, store, seq):
        await make(store)
        [error] = await append_all(store, append("g1", seq))
        assert isinstance(error, NotWritten)
        assert await seqs(store) == [1]

    async def test_a_gap_inside_an_append_refuses_all_of_it(self, store):
        await make(store)
        [error] = await append_all(store, append("g1", 2, 4))
        assert isinstance(error, NotWritten)
        assert await seqs(store) == [1]

    async def test_a_bad_append_spoils_nobody_elses(self, store):
        await make(store, "g1")
        await make(store, "g2")
        batch = [append("g1", 2), append("g1", 9), append("nowhere", 2), append("g2", 2), append("g1", 3)]
        errors = await append_all(store, *batch)
        assert [type(error) for error in errors] == [type(None), NotWritten, NotWritten, type(None), type(None)]
        assert await seqs(store, "g1") == [1, 2, 3]
        assert await seqs(store, "g2") == [1, 2]

    async def test_the_same_rows_again_change_nothing(self, store):
        await make(store)
        assert await append_all(store, append("g1", 2, 3), append("g1", 2, 3)) == [None, None]
        assert await append_all(store, append("g1", 2, 3)) == [None]
        assert await append_all(store, append("g1", 2)) == [None]
        assert await seqs(store) == [1, 2, 3]

    async def test_a_repeat_may_bring_new_rows_behind_the_old(self, store):
        await make(store)
        assert await append_all(store, append("g1", 2, 3)) == [None]
        assert await append_all(store, append("g1", 3, 4)) == [None]
        assert await seqs(store) == [1, 2, 3, 4]

    async def test_other_rows_under_a_seq_are_refused(self, store):
        await make(store)
        original = append("g1", 2, 3)
        await append_all(store, original)
        for other in (append("g1", 3, body="forged"), append("g1", 3, 4, body="forged")):
            [error] = await append_all(store, other)
            assert isinstance(error, NotWritten)
        assert (await store.read("g1", **EVERYTHING))[1:] == [each.encoded for each in original.entries]

    async def test_a_repeat_of_a_member_change_changes_members_once(self, store):
        await make(store)
        added = Append("g1", 1, [entry(2, kind=EntryKind.MEMBERS_ADDED, users=["carol"])])
        assert await append_all(store, added, added) == [None, None]
        [carols] = await store.memberships("carol")
        assert carols.member_count == 3


class Epochs:
    async def test_an_older_epoch_may_neither_append_nor_take_over(self, store):
        await make(store, epoch=3)
        assert (await store.take_over("g1", 5, 10)).head_seq == 1
        with pytest.raises(StaleEpoch):
            await store.take_over("g1", 4, 10)
        [error] = await append_all(store, append("g1", 2, epoch=3))
        assert isinstance(error, StaleEpoch)
        assert await append_all(store, append("g1", 2, epoch=5)) == [None]

    async def test_taking_over_again_under_the_same_epoch_is_allowed(self, store):
        await make(store)
        await append_all(store, append("g1", 2))
        assert (await store.take_over("g1", 1, 10)).head_seq == 2

    async def test_an_epoch_that_was_never_recorded_may_not_append(self, store):
        await make(store)
        [error] = await append_all(store, append("g1", 2, epoch=2))
        assert isinstance(error, NotWritten)

    async def test_a_takeover_sees_every_append_made_before_it(self, store):
        await make(store)
        outcomes = Outcomes()
        for seq in range(2, 50):
            store.append([append("g1", seq)], outcomes)
        loaded = await store.take_over("g1", 2, 5)
        assert loaded.head_seq == 49
        assert outcomes.errors == [None] * 48
        assert [stored.entry.seq for stored in loaded.tail] == [45, 46, 47, 48, 49]
        assert loaded.tail == [entry(seq) for seq in range(45, 50)]


class Reading:
    @pytest.fixture
    async def filled(self, store):
        await make(store)
        await append_all(store, append("g1", *range(2, 21)))
        return store

    @pytest.mark.parametrize(
        ("bounds", "expected"),
        [
            ({"limit": 3}, [1, 2, 3]),
            ({"limit": 3, "newest": True}, [18, 19, 20]),
            ({"after_seq": 5, "before_seq": 10}, [6, 7, 8, 9]),
            ({"after_seq": 5, "before_seq": 10, "limit": 2}, [6, 7]),
            ({"after_seq": 5, "before_seq": 10, "limit": 2, "newest": True}, [8, 9]),
            ({"after_seq": 18, "limit": 100, "newest": True}, [19, 20]),
            ({"after_seq": 20}, []),
            ({"after_seq": 1_000}, []),
            ({"before_seq": 1}, []),
            ({"after_seq": 5, "before_seq": 6}, []),
            ({"after_seq": 9, "before_seq": 3, "newest": True}, []),
            ({"limit": 0}, []),
            ({"before_seq": 2**63, "limit": 1, "newest": True}, [20]),
        ],
    )
    async def test_ranges(self, filled, bounds, expected):
        assert await seqs(filled, **bounds) == expected

    async def test_a_tail_is_as_long_as_asked_for_and_the_head_is_told_anyway(self, filled):
        loaded = await filled.take_over("g1", 1, 0)
        assert (loaded.head_seq, loaded.tail) == (20, [])
        assert len((await filled.take_over("g1", 1, 100)).tail) == 20

    async def test_find_goes_by_sender_and_client_msg_id_back_to_a_time(self, filled):
        await append_all(filled, Append("g1", 1, [entry(21, sender="bob", client_msg_id="c5")]))
        assert await find(filled, "c5") == entry(5)
        assert await find(filled, "c5", since_us=T0_US + 5) == entry(5)
        assert await find(filled, "c5", since_us=T0_US + 6) is None
        assert (await find(filled, "c5", sender="bob")).entry.seq == 21
        assert await find(filled, "c6", sender="bob") is None

    async def test_find_walks_through_a_long_tail(self, filled):
        for first in range(21, 1_221, 100):
            await append_all(filled, append("g1", *range(first, first + 100)))
        assert await find(filled, "c2") == entry(2)
        assert await find(filled, "absent") is None

    @pytest.mark.parametrize(
        ("after_seq", "before_seq", "since_us", "expected"),
        [
            (0, 21, 0, Search(entry(5), ended=False)),
            (4, 6, 0, Search(entry(5), ended=False)),
            (5, 21, 0, Search(None, ended=False)),
            (0, 5, 0, Search(None, ended=False)),
            (5, 21, T0_US + 6, Search(None, ended=False)),
            (5, 21, T0_US + 7, Search(None, ended=True)),
            (3, 21, T0_US + 6, Search(None, ended=True)),
            (0, 5, T0_US + 6, Search(None, ended=True)),
        ],
    )
    async def test_find_looks_between_two_seqs(self, filled, after_seq, before_seq, since_us, expected):
        found = await filled.find("g1", "alice", "c5", since_us, after_seq=after_seq, before_seq=before_seq)
        assert found == expected


class Members:
    async def test_members_come_and_go_with_entries(self, store):
        await make(store, "g1", "alice", "bob")
        batch = Append(
            "g1",
            1,
            [
                entry(2, kind=EntryKind.MEMBERS_ADDED, users=["carol", "dave"]),
                entry(3, kind=EntryKind.MEMBERS_REMOVED, users=["bob"]),
                entry(4, kind=EntryKind.RENAMED, body="New title"),
            ],
        )
        assert await append_all(store, batch) == [None]
        loaded = await store.take_over("g1", 1, 1)
        assert {user: m.joined_seq for user, m in loaded.members.items()} == {"alice": 1, "carol": 2, "dave": 2}
        assert loaded.record.title == "New title"
        assert await store.memberships("bob") == []
        [carols] = await store.memberships("carol")
        assert (carols.title, carols.head_seq, carols.member_count) == ("New title", 4, 3)

    async def test_a_refused_append_changes_no_member(self, store):
        await make(store, "g1", "alice", "bob")
        late = Append("g1", 1, [entry(7, kind=EntryKind.MEMBERS_ADDED, users=["carol"])])
        [error] = await append_all(store, late)
        assert isinstance(error, NotWritten)
        assert await store.memberships("carol") == []

    async def test_adding_a_member_again_keeps_its_pointers_and_leaving_forgets_them(self, store):
        await make(store, "g1", "alice", "bob")
        await store.save_receipts([ReceiptRecord("g1", "bob", 1, 1)])
        await append_all(store, Append("g1", 1, [entry(2, kind=EntryKind.MEMBERS_ADDED, users=["bob", "carol"])]))
        bob = (await store.take_over("g1", 1, 1)).members["bob"]
        assert (bob.joined_seq, bob.read_seq) == (1, 1)
        await append_all(
            store,
            Append(
                "g1",
                1,
                [
                    entry(3, kind=EntryKind.MEMBERS_REMOVED, users=["bob", "nobody"]),
                    entry(4, kind=EntryKind.MEMBERS_ADDED, users=["bob"]),
                ],
            ),
        )
        bob = (await store.take_over("g1", 1, 1)).members["bob"]
        assert (bob.joined_seq, bob.read_seq) == (4, 0)
        [bobs] = await store.memberships("bob")
        assert (bobs.joined_seq, bobs.member_count) == (4, 3)

    async def test_memberships_tell_head_pointers_and_the_peers_of_direct_conversations(self, store):
        await make(store, "d1", "alice", "bob", kind=ConversationKind.DIRECT)
        await make(store, "d2", "alice", kind=ConversationKind.DIRECT)
        await make(store, "g1", "alice", "bob", "carol", title="Sailing")
        await make(store, "g2", "bob", "carol")
        last = entry(2)
        await append_all(store, Append("g1", 1, [last]))
        await store.save_receipts([ReceiptRecord("g1", "alice", 2, 1)])
        found = {each.conversation_id: each for each in await store.memberships("alice")}
        assert set(found) == {"d1", "d2", "g1"}
        g1 = found["g1"]
        assert (g1.kind, g1.title, g1.member_count, g1.peer) == (ConversationKind.GROUP, "Sailing", 3, "")
        assert (g1.head_seq, g1.head_time_us, g1.last_encoded) == (2, T0_US + 2, last.encoded)
        assert (g1.delivered_seq, g1.read_seq) == (2, 1)
        assert found["d1"].peer == "bob"
        assert found["d2"].peer == "alice"
        assert found["d1"].head_seq == 1

    async def test_involvements_tell_what_is_known_without_the_logs(self, store):
        await make(store, "d1", "alice", "bob", kind=ConversationKind.DIRECT)
        await make(store, "g1", "bob", "carol")
        await make(store, "g2", "bob", "carol")
        added = entry(2, kind=EntryKind.MEMBERS_ADDED, users=["alice"])
        await append_all(store, Append("g1", 1, [added]), Append("g2", 1, [added]))
        await append_all(store, Append("g2", 1, [entry(3, kind=EntryKind.MEMBERS_REMOVED, users=["alice"])]))
        await store.save_receipts(
            [ReceiptRecord("g1", "alice", 2, 0, joined_seq=2), ReceiptRecord("d1", "alice", 1, 1)]
        )
        found = sorted(await store.involvements("alice"), key=lambda each: each.conversation_id)
        assert found == [
            Involvement("d1", ConversationKind.DIRECT, 1, 1, 1, "bob"),
            Involvement("g1", ConversationKind.GROUP, 2, 2, 0),
        ]
        assert await store.involvements("nobody") == []
        await make(store, "d2", "alice", kind=ConversationKind.DIRECT)
        [note_to_self] = [each for each in await store.involvements("alice") if each.conversation_id == "d2"]
        assert note_to_self.peer == "alice"

    async def test_memberships_of_involvements_that_were_read_before(self, store):
        await make(store, "d1", "alice", "bob", kind=ConversationKind.DIRECT)
        await make(store, "g1", "alice", "bob", title="Sailing")
        await make(store, "g2", "alice", "bob")
        known = {each.conversation_id: each for each in await store.involvements("alice")}
        await append_all(store, append("g1", 2))
        found = {each.conversation_id: each for each in await store.memberships("alice", [known["d1"], known["g1"]])}
        assert set(found) == {"d1", "g1"}
        assert (found["g1"].title, found["g1"].head_seq, found["g1"].member_count) == ("Sailing", 2, 2)
        assert found["d1"].peer == "bob"
        again = {each.conversation_id: each for each in await store.memberships("alice", list(found.values()))}
        assert again == found
        assert await store.memberships("alice", []) == []

    async def test_acquainted_are_those_who_share_a_conversation_now(self, store):
        await make(store, "g1", "alice", "bob", "carol")
        await make(store, "g2", "dave", "erin")
        await append_all(store, Append("g1", 1, [entry(2, kind=EntryKind.MEMBERS_REMOVED, users=["carol"])]))
        assert await store.acquainted("alice", ["bob", "carol", "dave", "nobody"]) == {"bob"}
        assert await store.acquainted("alice", []) == set()

    async def test_any_user_id_is_a_user_id(self, store):
        odd = ["o'brien", 'quo"te', "nul\0byte", "Zoë", "🌊" * 32, "%_"]
        await make(store, "g1", *odd)
        assert sorted((await store.take_over("g1", 1, 1)).members) == sorted(odd)
        for user in odd:
            assert [each.conversation_id for each in await store.memberships(user)] == ["g1"]
        assert await store.acquainted(odd[0], odd[1:]) == set(odd[1:])


class LargeConversations:
    async def test_some_members_are_asked_about_by_name(self, store):
        await make(store, "g1", "alice", "bob", "carol")
        await append_all(store, Append("g1", 1, [entry(2, kind=EntryKind.MEMBERS_REMOVED, users=["carol"])]))
        await append_all(store, Append("g1", 1, [entry(3, kind=EntryKind.MEMBERS_ADDED, users=["dave"])]))
        await store.save_receipts([ReceiptRecord("g1", "bob", 3, 2)])
        found = await store.find_members("g1", ["bob", "carol", "dave", "nobody", "bob"])
        assert found == {"bob": MemberRecord("bob", 1, 3, 2), "dave": MemberRecord("dave", 3)}
        assert await store.find_members("g1", []) == {}
        assert await store.find_members("nowhere", ["bob"]) == {}

    async def test_members_are_listed_by_pages_in_the_order_of_their_bytes(self, store):
        users = ["Zoë", "alice", "bob", "zoe", "Ωmega", "🌊", "\ufffd"]  # UTF-16 would put the wave before the last
        await make(store, "g1", *users)
        await append_all(store, Append("g1", 1, [entry(2, kind=EntryKind.MEMBERS_REMOVED, users=["bob", "🌊"])]))
        await append_all(store, Append("g1", 1, [entry(3, kind=EntryKind.MEMBERS_ADDED, users=["🌊"])]))
        wanted = sorted(set(users) - {"bob"}, key=str.encode)
        for limit in (1, 2, 5, 100):
            found = []
            while True:
                page = await store.list_members("g1", after=found[-1].user if found else "", limit=limit)
                found += page
                if len(page) < limit:
                    break
            assert [each.user for each in found] == wanted
        assert found[wanted.index("🌊")] == MemberRecord("🌊", 3)
        assert await store.list_members("g1", after="zz", limit=1) == [MemberRecord("Ωmega", 1)]
        assert await store.list_members("nowhere", after="", limit=5) == []

    async def test_a_channel_is_taken_over_without_its_members(self, store):
        await make(store, "c1", "alice", "bob", kind=ConversationKind.CHANNEL, title="News")
        await append_all(store, Append("c1", 1, [entry(2, kind=EntryKind.MEMBERS_ADDED, users=["bob", "carol"])]))
        for epoch in (1, 2):  # the second time the last entry is looked at again
            loaded = await store.take_over("c1", epoch, 10)
            assert (loaded.record.kind, loaded.record.title) == (ConversationKind.CHANNEL, "News")
            assert (loaded.members, loaded.member_count, loaded.head_seq) == ({}, 3, 2)
        gone = entry(3, kind=EntryKind.MEMBERS_REMOVED, users=["alice", "nobody"])
        await append_all(store, Append("c1", 2, [gone, entry(4)]))
        assert (await store.take_over("c1", 3, 10)).member_count == 2
        assert set(await store.find_members("c1", ["alice", "bob", "carol"])) == {"bob", "carol"}

    async def test_the_members_of_others_are_counted_as_well(self, store):
        await make(store, "g1", "alice", "bob", "carol")
        assert (await store.take_over("g1", 1, 10)).member_count == 3

    async def test_a_member_of_a_channel_reads_what_all_do_and_keeps_pointers_of_its_own(self, store):
        await make(store, "c1", "alice", "bob", kind=ConversationKind.CHANNEL, title="News")
        await append_all(store, append("c1", 2, 3))
        await store.save_receipts([ReceiptRecord("c1", "bob", 3, 2, joined_seq=1)])
        [bobs] = await store.memberships("bob")
        assert (bobs.kind, bobs.head_seq, bobs.read_seq, bobs.member_count) == (ConversationKind.CHANNEL, 3, 2, 2)
        assert (bobs.title, bobs.peer) == ("News", "")
        [alices] = await store.involvements("alice")
        assert (alices.kind, alices.read_seq) == (ConversationKind.CHANNEL, 0)


class Pointers:
    async def test_receipts_only_ever_rise(self, store):
        await make(store)
        await append_all(store, append("g1", *range(2, 11)))
        for delivered, read in [(5, 3), (4, 4), (2, 1), (9, 2)]:
            await store.save_receipts([ReceiptRecord("g1", "bob", delivered, read)])
        bob = (await store.take_over("g1", 1, 1)).members["bob"]
        assert (bob.delivered_seq, bob.read_seq) == (9, 4)

    async def test_receipts_of_strangers_are_passed_over(self, store):
        await make(store)
        receipts = [
            ReceiptRecord("g1", "nobody", 1, 1),
            ReceiptRecord("nowhere", "bob", 1, 1),
            ReceiptRecord("g1", "bob", 1, 0),
        ]
        await store.save_receipts(receipts)
        await store.save_receipts([])
        members = (await store.take_over("g1", 1, 1)).members
        assert {user: m.delivered_seq for user, m in members.items()} == {"alice": 0, "bob": 1}

    async def test_receipts_of_an_earlier_stay_are_none_of_the_present_one(self, store):
        await make(store)
        changes = [
            entry(2, kind=EntryKind.MEMBERS_REMOVED, users=["bob"]),
            entry(3, kind=EntryKind.MEMBERS_ADDED, users=["bob"]),
        ]
        assert await append_all(store, Append("g1", 1, changes)) == [None]
        await store.save_receipts([ReceiptRecord("g1", "bob", 1, 1, joined_seq=1)])
        assert (await store.take_over("g1", 1, 1)).members["bob"] == MemberRecord("bob", 3)
        await store.save_receipts([ReceiptRecord("g1", "bob", 3, 2, joined_seq=3)])
        assert (await store.take_over("g1", 1, 1)).members["bob"] == MemberRecord("bob", 3, 3, 2)

    async def test_last_seen_is_the_last_one_told(self, store):
        await store.save_last_seen([("alice", 1_000), ("bob", 2_000)])
        await store.save_last_seen([("alice", 3_000)])
        await store.save_last_seen([])
        assert await store.last_seen(["alice", "bob", "carol"]) == {"alice": 3_000, "bob": 2_000}
        assert await store.last_seen([]) == {}
        many = [(f"user{n}", n) for n in range(1_200)]
        await store.save_last_seen(many)
        assert await store.last_seen([user for user, _seen in many]) == dict(many)


class Cancelling:
    async def test_a_store_is_whole_after_any_call_was_cancelled(self, store):
        await make(store)
        calls = [
            lambda: store.create(record("g2"), created("alice"), 1),
            lambda: store.take_over("g1", 1, 5),
            lambda: store.read("g1", **EVERYTHING),
            lambda: store.memberships("alice"),
            lambda: store.save_receipts([ReceiptRecord("g1", "bob", 1, 1)]),
        ]
        for call in calls:
            with trio.CancelScope() as scope:
                scope.cancel()
                await call()
        await store.create(record("g2"), created("alice"), 1)  # True or False: it may or may not have been made
        assert await seqs(store, "g2") == [1]
        assert await append_all(store, append("g1", 2)) == [None]
        assert await seqs(store) == [1, 2]

    async def test_a_store_is_writable(self, store):
        await make(store)
        assert store.writable


class StoreConformance(Creating, Appending, Epochs, Reading, Members, LargeConversations, Pointers, Cancelling):
    """All of it."""
