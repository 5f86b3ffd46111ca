"""Which rows count. A random history of owners is compared with what those owners know to be true."""

from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import segments
from store.segments import WINDOW_ENTRIES, Segment, Segments


class Row(NamedTuple):
    seq: int
    epoch: int


def counts(all_segments: Segments, bucket: int, seq: int, epoch: int) -> bool:
    return bool(segments.counting(all_segments, bucket, [Row(seq, epoch)]))


def segment(epoch: int, first_seq: int, bucket: int = 0) -> Segment:
    return Segment(epoch, first_seq, bucket, 0)


THREE = (segment(1, 1), segment(3, 11), segment(3, 21, bucket=1))
MERGED = Segment(3, 1, 0, 0, since_epoch=1)
"""The first two of them."""


@pytest.mark.parametrize(("seq", "expected"), [(0, None), (1, 0), (10, 0), (11, 1), (20, 1), (21, 2), (10_000, 2)])
def test_a_seq_is_covered_by_the_last_segment_that_begins_at_or_before_it(seq, expected):
    found = segments.covering(THREE, seq)
    assert found == (None if expected is None else THREE[expected])


@pytest.mark.parametrize(
    ("bucket", "seq", "epoch", "expected"),
    [
        (0, 10, 1, True),
        (0, 11, 1, False),  # a late row of the first owner
        (0, 11, 3, True),
        (0, 10, 3, False),
        (0, 11, 2, False),  # an owner that never recorded a segment
        (0, 21, 3, False),  # the right owner, into a bucket that ended before
        (1, 21, 3, True),
        (1, 20, 3, False),
    ],
)
def test_a_row_counts_by_epoch_and_bucket_of_its_segment(bucket, seq, epoch, expected):
    assert counts(THREE, bucket, seq, epoch) is expected


def test_nothing_counts_without_segments():
    assert not counts((), 0, 1, 1)


def test_a_new_segment_drops_those_that_cover_nothing_any_more():
    assert segments.with_segment(THREE, segment(4, 21, bucket=1)) == (MERGED, segment(4, 21, bucket=1))
    assert segments.with_segment((segment(1, 1),), segment(2, 1)) == (segment(2, 1),)


def test_a_new_segment_lets_those_before_it_be_merged():
    assert segments.with_segment(THREE, segment(4, 30, bucket=1)) == (MERGED, THREE[2], segment(4, 30, bucket=1))
    assert segments.with_segment(THREE[:1], segment(3, 11)) == (THREE[0], segment(3, 11)), (
        "the last one is never merged"
    )


def test_of_a_merged_segment_the_newest_row_of_a_seq_counts():
    both = (MERGED, segment(4, 21))
    rows = [Row(10, 1), Row(11, 1), Row(11, 3), Row(12, 3), Row(12, 4), Row(21, 3), Row(21, 4)]
    expected = [Row(10, 1), Row(11, 3), Row(12, 3), Row(21, 4)]
    assert segments.counting(both, 0, rows) == expected
    assert segments.counting(both, 0, reversed(rows)) == expected[::-1]


@pytest.mark.parametrize("new", [segment(2, 30), segment(4, 20)])
def test_a_segment_may_neither_be_older_nor_take_entries_away(new):
    with pytest.raises(ValueError, match="cannot follow"):
        segments.with_segment(THREE, new)


@pytest.mark.parametrize(
    ("rows", "head"),
    [
        ([], 10),
        ([(11, 3)], 11),
        ([(12, 3)], 10),  # a gap at its very beginning
        ([(11, 3), (13, 3)], 11),
        ([(11, 3), (12, 2), (13, 3)], 11),  # what fills the gap does not count
        ([(9, 3), (10, 3)], 10),  # before it
        ([(11, 4), (12, 4)], 10),
    ],
)
def test_the_head_is_the_last_row_that_counts_without_a_gap(rows, head):
    assert segments.head_of(segment(3, 11), rows) == head


@given(st.integers(1, 5_000), st.integers(0, 3_000), st.sets(st.integers(1, WINDOW_ENTRIES - 1)), st.randoms())
def test_the_head_is_found_in_the_window_whatever_of_it_arrived(first_seq, durable, under_way, random):
    last = segment(2, first_seq)
    head = first_seq - 1 + durable
    arrived = [(head + offset, 2) for offset in under_way]
    newest = max((seq for seq, _ in arrived), default=head)
    window = segments.window_begins(last, newest)
    rows = [(seq, 2) for seq in range(window, head + 1)] + arrived + [(seq, 1) for seq in range(head, head + 9)]
    random.shuffle(rows)
    expected = head
    while expected - head + 1 in under_way:
        expected += 1
    assert segments.head_of(last, rows) == expected


@st.composite
def histories(draw: st.DrawFn) -> tuple[tuple[Segment, ...], dict[int, tuple[int, int]], list[tuple[int, int, int]]]:
    """Segments of some owners, who wrote each seq (epoch and bucket), and rows that former owners wrote too late."""
    found: tuple[Segment, ...] = ()
    truth: dict[int, tuple[int, int]] = {}
    late = []
    epoch, bucket, head = 0, 0, 0
    for _ in range(draw(st.integers(1, 8))):
        new_owner = draw(st.booleans()) or not found
        if new_owner:
            for offset in range(1, draw(st.integers(0, 4)) + 1):
                late.append((bucket, head + offset, epoch))
            epoch += draw(st.integers(1, 3))
        else:
            bucket += 1
        found = segments.with_segment(found, Segment(epoch, head + 1, bucket, 0))
        for _ in range(draw(st.integers(0, 6))):
            head += 1
            truth[head] = (bucket, epoch)
    return found, truth, late


@given(histories())
def test_exactly_the_rows_that_owners_acknowledged_count(history):
    found, truth, late = history
    for bucket in range(max(each.bucket for each in found) + 1):
        stored = {(seq, epoch) for seq, (where, epoch) in truth.items() if where == bucket}
        expected = [Row(*key) for key in sorted(stored)]
        stored |= {(seq, epoch) for where, seq, epoch in late if where == bucket and epoch < found[-1].epoch}
        assert segments.counting(found, bucket, [Row(*key) for key in sorted(stored)]) == expected
    assert [each.first_seq for each in found] == sorted({each.first_seq for each in found})
    assert [each.epoch for each in found] == sorted(each.epoch for each in found)


@given(histories())
def test_takeovers_do_not_make_the_list_longer_for_ever(history):
    found, _, _ = history
    closed = Counter(each.bucket for each in found[:-1])
    assert set(closed.values()) <= {1}


@given(histories(), st.integers(-1, 60), st.integers(0, 61))
def test_stretches_name_every_seq_between_two_once_with_its_segment(history, after_seq, before_seq):
    found, _, _ = history
    named = [
        (seq, stretch.segment)
        for stretch in segments.stretches(found, after_seq, before_seq)
        for seq in range(stretch.after_seq + 1, stretch.before_seq)
    ]
    assert named == [(seq, segments.covering(found, seq)) for seq in range(max(1, after_seq + 1), before_seq)]


@pytest.mark.parametrize(("seqs", "count"), [([], 0), ([7], 1), ([7, 8, 9], 3), ([7, 9], 1), ([7, 8, 10, 11], 2)])
def test_unbroken_ends_at_the_first_gap(seqs, count):
    assert segments.unbroken(seqs) == count
