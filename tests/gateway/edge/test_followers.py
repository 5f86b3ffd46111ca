"""Who follows channels here: learned from what a Sync reads and from entries, whatever their order."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from gateway.broker import Delivery, channel_followed_by, channel_id_of, followers_of, is_channel
from gateway.edge import followers as followers_module
from gateway.edge.followers import Followers
from protocol.codec import encode_entry
from protocol.frames import Entry, EntryKind

NEWS, CATS = channel_id_of("n" * 24), channel_id_of("k" * 24)
ADDED, REMOVED, MESSAGE = EntryKind.MEMBERS_ADDED, EntryKind.MEMBERS_REMOVED, EntryKind.MESSAGE


def delivery(seq: int, kind: int = MESSAGE, *users: str, channel: str = NEWS, told_again: bool = False) -> Delivery:
    """What an owner delivers: an entry for the followers, and for those whom it adds or removes."""
    entry = Entry(seq, kind, seq, "alice", f"m{seq}", "", None, list(users) or None)
    recipients = users if told_again else (followers_of(channel), *users)
    return Delivery(channel, recipients, [encode_entry(entry)], [None])


class Place:
    """The followers of a node, and what they tell others."""

    def __init__(self, *connected: str) -> None:
        self.connected = set(connected)
        self.followers = Followers(self.connected)
        self.log: list[tuple[str, ...]] = []
        self.followers.on_first = lambda channel: self.log.append(("first", channel))
        self.followers.on_last = lambda channel: self.log.append(("last", channel))
        self.followers.on_joined = lambda channel, users: self.log.append(("joined", channel, *users))

    def get(self, delivery: Delivery) -> list[str]:
        return sorted(self.followers.recipients(delivery))

    async def compare(self, user: str, *channels: str, whole: bool = True, joined_seq: int = 1) -> bool:
        with self.followers.comparing(user) as comparison:
            return await comparison.take(dict.fromkeys(channels, joined_seq), whole=whole)


@pytest.fixture
def place() -> Place:
    return Place("alice", "bob", "carol")


def test_channels_are_told_by_their_ids() -> None:
    assert is_channel(NEWS)
    assert not any(is_channel(other) for other in ("", "c", "c1", "g" + "n" * 24, "d" + "n" * 24))
    assert channel_followed_by(followers_of(NEWS)) == NEWS
    assert channel_followed_by("alice") == ""


async def test_who_has_synced_gets_what_happens_and_nobody_else(place: Place) -> None:
    assert place.get(delivery(5)) == []
    assert not await place.compare("bob", NEWS)
    assert place.get(delivery(6)) == ["bob"]
    assert place.get(delivery(6, channel=CATS)) == []
    assert await place.compare("bob", NEWS)  # all was pushed already: what was read is complete
    assert place.log == [("first", NEWS)]


async def test_a_sync_of_all_ends_what_the_user_is_no_longer_in(place: Place) -> None:
    await place.compare("bob", NEWS, CATS)
    await place.compare("bob", whole=False)
    assert place.followers.is_following("bob", NEWS)
    await place.compare("bob", CATS)
    assert place.get(delivery(5)) == []
    assert place.log == [("first", NEWS), ("first", CATS), ("last", NEWS)]


async def test_who_is_removed_gets_that_and_nothing_later(place: Place) -> None:
    await place.compare("bob", NEWS)
    await place.compare("carol", NEWS)
    assert place.get(delivery(5, REMOVED, "bob", "nobody")) == ["bob", "carol", "nobody"]
    assert place.get(delivery(6)) == ["carol"]
    assert place.get(delivery(7, REMOVED, "carol")) == ["carol"]
    assert place.log[-1] == ("last", NEWS)
    assert len(place.followers) == 0


async def test_who_is_added_while_connected_follows_from_that_entry_on(place: Place) -> None:
    assert place.get(delivery(5, ADDED, "bob", "elsewhere")) == ["bob", "elsewhere"]
    assert place.get(delivery(6)) == ["bob"]


async def test_who_is_gone_follows_nothing(place: Place) -> None:
    await place.compare("bob", NEWS, CATS)
    await place.compare("carol", NEWS)
    place.connected.remove("bob")
    place.followers.departed("bob")
    assert place.get(delivery(6)) == ["carol"]
    await place.compare("bob", NEWS)  # its answer comes too late
    assert place.get(delivery(7)) == ["carol"]
    assert sorted(place.followers) == [NEWS]


async def test_what_was_read_before_another_device_followed_is_not_enough(place: Place) -> None:
    with place.followers.comparing("bob") as second:
        with place.followers.comparing("bob") as first:
            assert place.get(delivery(5)) == []  # not in what the second one has read, perhaps
            assert not await first.take({NEWS: 1}, whole=True)
        assert not await second.take({NEWS: 1}, whole=True)
    assert await place.compare("bob", NEWS)


async def test_what_was_read_before_an_old_join_was_told_again_is_not_enough(place: Place) -> None:
    with place.followers.comparing("bob") as comparison:
        assert place.get(delivery(5)) == []  # not in what was read, perhaps
        assert place.get(delivery(2, ADDED, "bob", told_again=True)) == ["bob"]
        assert not await comparison.take({NEWS: 1}, whole=True)


async def test_what_was_read_while_the_channel_was_being_registered_is_not_enough(
    place: Place, nursery: trio.Nursery
) -> None:
    known = trio.Event()

    async def registered(_channel: str) -> None:
        await known.wait()

    place.followers.registered = registered
    nursery.start_soon(place.compare, "bob", NEWS)
    await wait_all_tasks_blocked()
    with place.followers.comparing("bob") as second:  # what it reads may be older than the registration
        known.set()
        await wait_all_tasks_blocked()
        assert not await second.take({NEWS: 1}, whole=True)


async def test_a_removal_during_a_comparison_is_not_undone_by_what_was_read_before(place: Place) -> None:
    with place.followers.comparing("bob") as comparison:
        place.get(delivery(5, REMOVED, "bob"))
        await comparison.take({NEWS: 1}, whole=True)
    assert place.get(delivery(6)) == []


async def test_a_join_during_a_comparison_is_not_undone_by_what_was_read_before(place: Place) -> None:
    with place.followers.comparing("bob") as first, place.followers.comparing("bob") as second:
        place.get(delivery(5, ADDED, "bob"))
        await first.take({}, whole=True)
        await second.take({}, whole=True)
    assert place.get(delivery(6)) == ["bob"]
    await place.compare("bob")  # read after it
    assert place.get(delivery(7)) == []


async def test_what_a_dead_owner_left_behind_changes_nothing(place: Place) -> None:
    place.get(delivery(5, ADDED, "bob"))
    place.get(delivery(7, REMOVED, "bob"))
    place.get(delivery(5, ADDED, "bob"))
    assert place.get(delivery(8)) == []
    place.get(delivery(9, ADDED, "bob", "carol", told_again=True))
    place.get(delivery(7, REMOVED, "bob"))
    assert place.get(delivery(10)) == ["bob", "carol"]


async def test_changes_that_are_told_again_reach_those_they_are_about(place: Place) -> None:
    await place.compare("carol", NEWS)
    assert place.get(delivery(5, ADDED, "bob", told_again=True)) == ["bob"]
    assert place.get(delivery(6)) == ["bob", "carol"]


async def test_of_many_channels_only_so_many_changes_are_remembered(place: Place, monkeypatch) -> None:
    monkeypatch.setattr(followers_module, "CHANGES_KNOWN_MAX", 10)
    for number in range(50):
        place.get(delivery(5, ADDED, "bob", channel=channel_id_of(f"{number:024}")))
    assert len(place.followers._changed_seq) == 10
    assert len(place.followers) == 50


async def test_in_a_cluster_a_sync_waits_until_the_directory_knows(place: Place, nursery: trio.Nursery) -> None:
    known = {NEWS: trio.Event(), CATS: trio.Event()}
    place.followers.registered = lambda channel: known[channel].wait()
    done: list[bool] = []

    async def compare(user: str, *channels: str) -> None:
        done.append(await place.compare(user, *channels))

    nursery.start_soon(compare, "bob", NEWS, CATS)
    await wait_all_tasks_blocked()
    nursery.start_soon(compare, "bob", NEWS)  # a second device: not told that all is well before it is
    await wait_all_tasks_blocked()
    assert not done
    for event in known.values():
        event.set()
    await wait_all_tasks_blocked()
    assert done == [False, False]
    assert await place.compare("bob", NEWS)


async def test_in_a_cluster_who_joins_where_nobody_followed_is_to_sync(place: Place) -> None:
    async def known(channel: str) -> None:
        await trio.lowlevel.checkpoint()

    place.followers.registered = known
    place.get(delivery(5, ADDED, "bob", "elsewhere"))
    place.get(delivery(6, ADDED, "carol"))
    assert place.log == [("first", NEWS), ("joined", NEWS, "bob"), ("joined", NEWS, "carol")]
    place.followers.joined(NEWS)
    place.followers.joined(NEWS)
    place.get(delivery(7, ADDED, "alice"))  # the directory knows by now
    assert len(place.log) == 3


async def test_another_process_goes_on_with_the_same_followers(place: Place) -> None:
    await place.compare("bob", NEWS, CATS)
    await place.compare("carol", NEWS)
    successor = Place("bob", "carol")
    successor.followers.restore(place.followers.all())
    assert successor.get(delivery(5)) == ["bob", "carol"]
    assert successor.get(delivery(5, channel=CATS)) == ["bob"]


async def test_when_changes_were_lost_nobody_follows_until_the_next_sync(place: Place) -> None:
    await place.compare("bob", NEWS, CATS)
    place.followers.end_all()
    assert place.get(delivery(5)) == []
    assert len(place.followers) == 0


async def test_what_was_read_before_changes_were_lost_makes_nobody_follow(place: Place) -> None:
    with place.followers.comparing("bob") as comparison:
        place.followers.end_all()  # that bob was removed, perhaps
        await comparison.take({NEWS: 1}, whole=True)
    assert place.get(delivery(6)) == []
    await place.compare("bob", NEWS)
    assert place.get(delivery(7)) == ["bob"]


async def test_what_is_told_again_does_not_reach_who_joined_behind_it(place: Place) -> None:
    await place.compare("alice", NEWS)
    await place.compare("bob", NEWS, joined_seq=8)
    assert place.get(delivery(9, ADDED, "carol")) == ["alice", "bob", "carol"]
    assert place.get(delivery(7)) == ["alice"]
    assert place.get(delivery(8)) == ["alice", "bob"]
    assert place.get(delivery(9)) == ["alice", "bob", "carol"]


async def test_who_is_in_again_is_told_again_what_removed_them(place: Place) -> None:
    await place.compare("bob", NEWS)
    place.get(delivery(5, REMOVED, "bob"))
    place.get(delivery(7, ADDED, "bob"))
    assert place.get(delivery(5, REMOVED, "bob")) == ["bob"]
    assert place.get(delivery(6)) == []
    assert place.get(delivery(8)) == ["bob"]


async def test_who_joined_when_is_known_in_the_next_process(place: Place) -> None:
    await place.compare("alice", NEWS)
    await place.compare("bob", NEWS, joined_seq=8)
    successor = Place("alice", "bob")
    successor.followers.restore(place.followers.all())
    assert successor.get(delivery(7)) == ["alice"]
    assert successor.get(delivery(8)) == ["alice", "bob"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("join", "leave", "lost join", "lost leave", "read", "take", "connect", "depart")),
        st.sampled_from(("alice", "bob", "eve")),
    ),
    max_size=40,
)


@given(steps=STEPS)
def test_once_all_has_arrived_who_follows_is_who_is_in(steps: list[tuple[str, str]]) -> None:
    """Reads may be old or new when their comparison ends, and it is noticed when changes are lost; at the end each user
    here has synced once. Meanwhile no entry, told for the first time or again, reaches who was not in by it.
    """
    trio.run(_run_steps, steps)


async def _run_steps(steps: list[tuple[str, str]]) -> None:
    place = Place()
    members: dict[str, int] = {}
    open_reads: dict[str, tuple[object, object, dict[str, int]]] = {}
    seq = 1

    async def take(user: str) -> None:
        manager, comparison, read = open_reads.pop(user)
        await comparison.take(read, whole=True)  # type: ignore[attr-defined]
        manager.__exit__(None, None, None)  # type: ignore[attr-defined]

    def read(user: str) -> None:
        manager = place.followers.comparing(user)
        open_reads[user] = manager, manager.__enter__(), {NEWS: members[user]} if user in members else {}

    for step, user in steps:
        joins = step.endswith("join")
        if step.endswith(("join", "leave")) and (user in members) != joins:
            seq += 1
            if joins:
                members[user] = seq
            else:
                del members[user]
            if step.startswith("lost"):
                place.followers.end_all()
            else:
                place.get(delivery(seq, ADDED if joins else REMOVED, user))
        elif step == "connect":
            place.connected.add(user)
        elif step == "depart" and user in place.connected:
            place.connected.remove(user)
            place.followers.departed(user)
        elif step == "read" and user not in open_reads:
            read(user)
        elif step == "take" and user in open_reads:
            await take(user)
        for each in (seq - 1, seq, seq + 1):
            assert set(place.get(delivery(each))) <= {user for user in place.connected if members.get(user, 99) <= each}
    for user in list(open_reads):
        await take(user)
    for user in place.connected:
        read(user)
        await take(user)
    assert set(place.get(delivery(seq + 1))) == members.keys() & place.connected
