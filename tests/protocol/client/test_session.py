import random

from hypothesis import given
from hypothesis import strategies as st

from protocol.client.session import Session, since_joining
from protocol.frames import Entry, EntryKind


def entry(seq: int, kind: int = EntryKind.MESSAGE, users: list[str] | None = None) -> Entry:
    return Entry(seq, kind, seq, "bob", f"m{seq}", "body", users=users)


def seqs(entries: list[Entry]) -> list[int]:
    return [e.seq for e in entries]


@given(
    count=st.integers(1, 60),
    cursor=st.integers(0, 20),
    held_max=st.integers(0, 30),
    seed=st.integers(0, 2**32),
    own=st.sets(st.integers(1, 80)),
)
def test_each_entry_once_and_in_order_whatever_the_order_of_arrival(
    count: int, cursor: int, held_max: int, seed: int, own: set[int]
) -> None:
    """Shuffled, repeated and lost pushes, then history from the cursor until no gap is left."""
    rng = random.Random(seed)
    session = Session({"c": cursor}, held_max)
    head = cursor + count
    arriving = [rng.randint(1, head) for _ in range(2 * count)]
    shown: list[int] = []

    def take(seq: int) -> None:
        shown.extend(seqs(session.own("c", seq) if seq in own else session.offer("c", entry(seq))))

    for seq in arriving:
        if rng.random() < 0.2:
            session.exists("c", seq)
        else:
            take(seq)
    session.exists("c", head)
    while session.gap() is not None:
        start = session.cursor("c")
        for seq in range(start + 1, min(head, start + 5) + 1):
            take(seq)
        assert session.cursor("c") > start
    assert shown == [seq for seq in range(cursor + 1, head + 1) if seq not in own]
    assert session.cursors() == {"c": head}


def test_an_entry_beyond_a_gap_is_held_back_until_the_gap_is_filled() -> None:
    session = Session({"c": 1}, 10)
    assert session.offer("c", entry(3)) == []
    assert session.gap() == "c"
    assert session.cursors() == {"c": 1}
    assert seqs(session.offer("c", entry(2))) == [2, 3]
    assert session.gap() is None


def test_own_entries_are_neither_shown_nor_gaps() -> None:
    session = Session({"c": 1}, 10)
    assert session.offer("c", entry(3)) == []
    assert seqs(session.own("c", 2)) == [3]
    assert session.own("c", 4) == []
    assert session.offer("c", entry(4)) == []
    assert session.gap() is None


def test_an_unknown_conversation_begins_with_its_first_entry() -> None:
    session = Session({}, 10)
    assert seqs(session.offer("c", entry(40))) == [40]
    assert session.gap() is None
    assert session.offer("c", entry(39)) == []


def test_a_head_that_was_asked_for_hides_no_entry_that_was_on_its_way() -> None:
    session = Session({}, 10)
    session.start_at("c", 7)
    assert session.cursors() == {"c": 7}
    assert seqs(session.offer("c", entry(7))) == [7]
    assert seqs(session.offer("c", entry(8))) == [8]


def test_an_entry_beyond_the_head_asked_for_leaves_a_gap() -> None:
    session = Session({}, 10)
    session.start_at("c", 7)
    assert session.offer("c", entry(9)) == []
    assert session.gap() == "c"
    assert session.cursor("c") == 7


def test_an_old_acknowledgement_does_not_move_the_beginning_back() -> None:
    session = Session({}, 10)
    session.start_at("c", 7)
    assert session.own("c", 3) == []
    assert session.cursors() == {"c": 7}


def test_a_forgotten_conversation_begins_anew() -> None:
    session = Session({"c": 5}, 10)
    session.offer("c", entry(9))
    assert session.forget("c")
    assert not session.forget("c")
    assert session.gap() is None
    assert seqs(session.offer("c", entry(20))) == [20]


def test_what_comes_late_of_a_conversation_that_was_left_was_seen_before() -> None:
    session = Session({}, 10)
    for seq in (4, 5, 6):
        session.offer("c", entry(seq))
    session.forget("c")
    assert session.offer("c", entry(5)) == []
    assert session.own("c", 4) == []
    session.exists("c", 6)
    assert "c" not in session
    assert session.gap() is None
    assert seqs(session.offer("c", entry(9))) == [9], "back in, with an entry of its own"
    assert session.offer("c", entry(6)) == []


def test_cursors_beyond_a_restored_head_are_lowered() -> None:
    session = Session({"c": 5, "d": 2}, 10)
    assert session.lower({"c": 3, "d": 4}) == ["c"]
    assert session.cursors() == {"c": 3, "d": 2}


def test_the_view_begins_with_the_entry_that_made_the_user_a_member() -> None:
    log = [entry(1, EntryKind.CREATED, ["bob"]), entry(2), entry(3, EntryKind.MEMBERS_ADDED, ["alice"]), entry(4)]
    assert seqs(since_joining(log, "alice")) == [3, 4]
    assert seqs(since_joining(log, "carol")) == [1, 2, 3, 4]
