"""One bad history per invariant, each named by exactly that breach; and good ones that are easily mistaken for bad."""

from collections.abc import Callable

import pytest

from gateway.check.checker import check
from gateway.check.history import SeenEntry
from gateway.check.report import INVARIANTS
from tests.gateway.check.histories import Builder, created, message

A, B, C = "alice", "bob", "carol"
FIRST = created(A, B)


def _chat() -> Builder:
    """Conversation c of alice and bob, created at seq 1, both connected."""
    history = Builder()
    history.record("ok", "connect", A, user=A, connection="alice-1")
    history.record("ok", "connect", B, user=B, connection="bob-1")
    history.create(A, B)
    return history


def lost_write(history: Builder) -> None:
    history.send(A, "m", 2)
    history.read(B, FIRST, final=True)


def duplicate(history: Builder) -> None:
    history.send(A, "m", 2)
    history.send(A, "m", 3, attempt=2)
    history.read(B, FIRST, message(2, A, "m"), message(3, A, "m"), final=True)


def inconsistent(history: Builder) -> None:
    history.send(A, "m", 2)
    history.push(B, SeenEntry(2, A, "m", "another payload"))


def nonmonotonic_send(history: Builder) -> None:
    fields = {"user": A, "conversation": "c", "connection": "alice-1"}
    first = history.invoke("send", A, client_msg_id="m", **fields)
    second = history.invoke("send", A, client_msg_id="n", **fields)
    history.record("ok", "send", A, call=second, seq=3)
    history.record("ok", "send", A, call=first, seq=2)


def poll_skip(history: Builder) -> None:
    for seq, name in ((2, "m"), (3, "n"), (4, "o")):
        history.send(A, name, seq)
    history.push(B, FIRST)
    history.push(B, message(2, A, "m"))
    history.push(B, message(4, A, "o"))


def late_arrival(history: Builder) -> None:
    call = history.invoke("send", A, user=A, conversation="c", client_msg_id="m", payload="p-m")
    history.send(B, "n", 3)
    history.read(B, FIRST, message(3, B, "n"))
    history.record("ok", "send", A, call=call, seq=2)
    history.read(B, FIRST, message(2, A, "m"), message(3, B, "n"), final=True)


def stale_read(history: Builder) -> None:
    history.send(A, "m", 2)
    history.read(B, FIRST, message(2, A, "m"))
    history.read(B, FIRST)


def phantom(history: Builder) -> None:
    history.send(A, "m", None, end="fail", error="TOO_LONG")
    history.push(B, message(2, A, "m"))


def realtime(history: Builder) -> None:
    history.send(A, "m", 3, connection="")
    history.send(B, "n", 2, connection="")


def split_brain(history: Builder) -> None:
    history.send(A, "m", 2, epoch=1)
    history.record("ok", "commit", "node-2", conversation="c", epoch=2)
    history.send(A, "n", 3, epoch=1)


def bucket_gap(history: Builder) -> None:
    history.send(A, "m", 2)
    history.send(A, "n", 4, connection="")
    history.read(B, FIRST, message(2, A, "m", bucket=0), message(4, A, "n", bucket=1), final=True)


def leak(history: Builder) -> None:
    history.record("info", "resources", "node-1", phase="before", resources={"tasks": 12, "descriptors": 30})
    history.record("info", "resources", "node-1", phase="after", resources={"tasks": 13, "descriptors": 30})


def leak_to_outsider(history: Builder) -> None:
    history.change("remove", A, "out", 2, B)
    history.send(A, "m", 3)
    history.push(B, message(3, A, "m"))


PLANTED: dict[str, Callable[[Builder], None]] = {
    "lost-write": lost_write,
    "duplicate": duplicate,
    "inconsistent": inconsistent,
    "nonmonotonic-send": nonmonotonic_send,
    "poll-skip": poll_skip,
    "late-arrival": late_arrival,
    "stale-read": stale_read,
    "phantom": phantom,
    "realtime": realtime,
    "split-brain": split_brain,
    "bucket-gap": bucket_gap,
    "leak": leak,
    "leak-to-outsider": leak_to_outsider,
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_breach_is_named_and_nothing_else_is(name: str) -> None:
    history = _chat()
    PLANTED[name](history)
    report = check(history.parsed())
    assert report.names() == {name}, report.as_text()
    assert report.judged[name] > 0


def test_every_invariant_has_a_planted_history() -> None:
    assert set(PLANTED) == {invariant.breach for invariant in INVARIANTS}


def _expect(history: Builder, *names: str) -> None:
    report = check(history.parsed())
    assert report.names() == set(names), report.as_text()


# --- more ways to break the same promises -----------------------------------------------------------------------------


def test_an_application_handed_the_same_entry_twice_is_a_poll_skip() -> None:
    history = _chat()
    history.send(A, "m", 2)
    history.deliver(B, message(2, A, "m"))
    history.deliver(B, message(2, A, "m"))
    _expect(history, "poll-skip")


def test_an_application_not_handed_an_entry_is_a_poll_skip() -> None:
    history = _chat()
    history.send(A, "m", 2)
    history.send(A, "n", 3)
    history.deliver(B, FIRST)
    history.deliver(B, message(3, A, "n"))
    _expect(history, "poll-skip")


def _resume(history: Builder, cursor: int, head: int, *read: SeenEntry) -> None:
    history.record("ok", "connect", B, user=B, connection="bob-2")
    call = history.invoke("resume", B, user=B, connection="bob-2", conversation="c", cursor=cursor)
    fields = {"user": B, "connection": "bob-2", "conversation": "c"}
    page = history.invoke("read", B, **fields)
    span = {"first_seq": read[0].seq, "last_seq": read[-1].seq, "head_seq": head} if read else {}
    span = span or {"first_seq": head + 1, "last_seq": head, "head_seq": head}
    history.record("ok", "read", B, call=page, entries=read, **span)
    history.record("ok", "resume", B, call=call, head_seq=head)


def test_a_resume_that_leaves_out_an_entry_is_a_poll_skip() -> None:
    history = _chat()
    for seq, name in ((2, "m"), (3, "n"), (4, "o")):
        history.send(A, name, seq)
    _resume(history, 1, 4, message(3, A, "n"), message(4, A, "o"))
    _expect(history, "poll-skip")


def test_a_push_that_does_not_follow_on_a_resume_is_a_poll_skip() -> None:
    history = _chat()
    for seq, name in ((2, "m"), (3, "n"), (4, "o")):
        history.send(A, name, seq)
    _resume(history, 1, 2, message(2, A, "m"))
    history.push(B, message(4, A, "o"), "bob-2")
    _expect(history, "poll-skip")


def test_an_entry_nobody_sent_is_a_phantom() -> None:
    history = _chat()
    history.push(B, message(2, A, "invented"))
    _expect(history, "phantom")


def test_an_entry_seen_before_it_was_sent_is_a_phantom() -> None:
    history = _chat()
    history.push(B, message(2, A, "m"))
    history.send(A, "m", 2)
    _expect(history, "phantom")


def test_an_acknowledgement_of_anothers_seq_is_inconsistent() -> None:
    history = _chat()
    history.send(A, "m", 2)
    history.push(B, message(2, A, "m"))
    history.send(B, "n", 2)
    assert "inconsistent" in check(history.parsed()).names()


def test_a_new_entry_below_one_that_was_only_seen_is_a_late_arrival() -> None:
    history = _chat()
    history.invoke("send", A, user=A, conversation="c", client_msg_id="m", payload="p-m")
    history.push(B, message(3, A, "m"))
    history.send(B, "n", 2, connection="")
    _expect(history, "late-arrival")


def test_a_sender_that_cannot_read_its_own_entry_has_a_stale_read() -> None:
    history = _chat()
    history.send(A, "m", 2)
    history.read(A, FIRST)
    _expect(history, "stale-read")


def test_a_read_out_of_order_is_a_stale_read() -> None:
    history = _chat()
    history.send(A, "m", 2)
    history.read(B, message(2, A, "m"), FIRST)
    _expect(history, "stale-read")


def test_an_entry_pushed_and_then_gone_for_good_is_a_stale_read() -> None:
    history = _chat()
    history.send(A, "m", None, end="info")
    history.push(B, message(2, A, "m"))
    history.read(A, FIRST, final=True)
    _expect(history, "stale-read")


def test_an_old_epoch_behind_a_new_one_in_the_log_is_a_split_brain() -> None:
    history = _chat()
    history.send(A, "m", 2)
    history.send(A, "n", 3)
    history.read(B, FIRST, message(2, A, "m", epoch=2), message(3, A, "n", epoch=1))
    _expect(history, "split-brain")


def test_buckets_that_go_back_are_a_bucket_gap() -> None:
    history = _chat()
    history.send(A, "m", 2)
    history.send(A, "n", 3)
    history.read(B, FIRST, message(2, A, "m", bucket=1), message(3, A, "n", bucket=0))
    _expect(history, "bucket-gap")


def test_buckets_that_go_back_from_page_to_page_are_a_bucket_gap() -> None:
    history = _chat()
    history.send(A, "m", 2)
    history.send(A, "n", 3)
    history.page(B, message(2, A, "m", bucket=1))
    history.page(B, message(3, A, "n", bucket=0))
    _expect(history, "bucket-gap")


def test_an_entry_in_two_buckets_is_a_bucket_gap() -> None:
    history = _chat()
    history.send(A, "m", 2)
    history.page(A, message(2, A, "m", bucket=0))
    history.page(B, message(2, A, "m", bucket=1))
    _expect(history, "bucket-gap")


def test_a_final_read_that_ends_with_a_bucket_is_a_bucket_gap() -> None:
    history = _chat()
    history.send(A, "m", 2)
    history.read(B, FIRST, message(2, A, "m", bucket=0), head=3, final=True)
    _expect(history, "bucket-gap")


def test_an_entry_that_came_neither_with_the_resume_nor_after_it_is_a_leak() -> None:
    history = _chat()
    call = history.invoke("send", A, user=A, conversation="c", client_msg_id="m", payload="p-m", connection="alice-1")
    _resume(history, 1, 1)
    history.record("info", "disconnect", B, connection="bob-1")
    history.record("ok", "send", A, call=call, seq=2)
    history.record("info", "quiet", "harness")
    _expect(history, "leak")


def test_an_entry_that_never_reached_a_connected_member_is_a_leak() -> None:
    history = _chat()
    history.send(A, "m", 2)
    history.push(B, FIRST)
    history.record("info", "quiet", "harness")
    _expect(history, "leak")


def test_a_push_to_somebody_never_in_the_conversation_is_a_leak_to_an_outsider() -> None:
    history = _chat()
    history.send(A, "m", 2)
    history.push(C, message(2, A, "m"))
    _expect(history, "leak-to-outsider")


def test_a_read_after_the_removal_was_acknowledged_is_a_leak_to_an_outsider() -> None:
    history = _chat()
    history.change("remove", A, "out", 2, B)
    history.read(B, FIRST, SeenEntry(2, A, "out", kind="removed", users=(B,)))
    _expect(history, "leak-to-outsider")


def test_an_old_entry_pushed_to_a_former_member_when_all_was_quiet_is_a_leak_to_an_outsider() -> None:
    history = _removed_and_quiet()
    history.push(B, message(2, A, "m"))
    _expect(history, "leak-to-outsider")


def test_a_send_of_a_former_member_that_is_acknowledged_is_a_leak_to_an_outsider() -> None:
    history = _chat()
    history.change("remove", A, "out", 2, B)
    history.send(B, "m", 3)
    _expect(history, "leak-to-outsider")


def _removed_and_quiet() -> Builder:
    """Bob got seq 2 and his removal at seq 3; then all was quiet."""
    history = _chat()
    history.push(B, FIRST)
    history.send(A, "m", 2)
    history.push(B, message(2, A, "m"))
    history.change("remove", A, "out", 3, B)
    history.push(B, SeenEntry(3, A, "out", kind="removed", users=(B,)))
    history.record("info", "quiet", "harness")
    return history


# --- good ones --------------------------------------------------------------------------------------------------------


def test_own_sends_are_no_skip_on_the_connection_that_sent_them() -> None:
    history = _chat()
    history.push(B, FIRST)
    history.send(A, "m", 2)
    history.push(B, message(2, A, "m"))
    call = history.invoke("send", B, user=B, conversation="c", client_msg_id="n", payload="p-n", connection="bob-1")
    history.push(A, message(3, B, "n"))
    history.send(A, "o", 4)
    history.push(B, message(4, A, "o"))
    history.record("info", "send", B, call=call)
    history.read(A, FIRST, message(2, A, "m"), message(3, B, "n"), message(4, A, "o"), final=True)
    _expect(history)


def test_a_repeated_push_and_a_duplicate_answer_are_no_breach() -> None:
    history = _chat()
    history.push(B, FIRST)
    history.send(A, "m", None, end="info")
    history.push(B, message(2, A, "m"))
    history.send(A, "n", 3)
    history.push(B, message(3, A, "n"))
    call = history.invoke("send", A, user=A, conversation="c", client_msg_id="m", payload="p-m", attempt=2)
    history.push(B, message(2, A, "m"))
    history.record("ok", "send", A, call=call, seq=2, duplicate=True, connection="alice-1")
    history.read(B, FIRST, message(2, A, "m"), message(3, A, "n"), final=True)
    _expect(history)


def test_a_removed_member_that_comes_back_misses_what_lies_between() -> None:
    history = _chat()
    history.push(B, FIRST)
    history.change("remove", A, "out", 2, B)
    history.push(B, SeenEntry(2, A, "out", kind="removed", users=(B,)))
    history.send(A, "m", 3)
    history.change("add", A, "in", 4, B)
    history.push(B, SeenEntry(4, A, "in", kind="added", users=(B,)))
    history.read(B, FIRST, SeenEntry(2, A, "out", kind="removed", users=(B,)), message(3, A, "m"),
                 SeenEntry(4, A, "in", kind="added", users=(B,)), final=True)  # fmt: skip
    history.record("info", "quiet", "harness")
    _expect(history)


def test_a_resume_with_pushes_before_its_answer_is_whole() -> None:
    history = _chat()
    for seq, name in ((2, "m"), (3, "n"), (4, "o")):
        history.send(A, name, seq)
    history.record("ok", "connect", B, user=B, connection="bob-2")
    call = history.invoke("resume", B, user=B, connection="bob-2", conversation="c", cursor=1)
    page = history.invoke("read", B, user=B, connection="bob-2", conversation="c")
    history.push(B, message(4, A, "o"), "bob-2")
    entries = (message(2, A, "m"), message(3, A, "n"))
    history.record("ok", "read", B, call=page, entries=entries, first_seq=2, last_seq=3, head_seq=3)
    history.record("ok", "resume", B, call=call, head_seq=3)
    report = check(history.parsed())
    assert report.ok, report.as_text()
    assert report.sometimes["resume-with-news"] == 1


def test_a_send_of_unknown_outcome_may_be_there_or_not() -> None:
    for entries in ((FIRST,), (FIRST, message(2, A, "m"))):
        history = _chat()
        history.send(A, "m", None, end="info")
        history.read(B, *entries, final=True)
        _expect(history)


def _resuming(history: Builder) -> int:
    history.record("ok", "connect", B, user=B, connection="bob-2")
    return history.invoke("resume", B, user=B, connection="bob-2", conversation="c", cursor=1)


def _synced(history: Builder, call: int, first: int, last: int, *entries: SeenEntry) -> None:
    page = history.invoke("read", B, user=B, connection="bob-2", conversation="c")
    history.record("ok", "read", B, call=page, entries=entries, first_seq=first, last_seq=last, head_seq=last)
    history.record("ok", "resume", B, call=call, head_seq=last)


def _three(history: Builder) -> None:
    for seq, name in ((2, "m"), (3, "n"), (4, "o")):
        history.send(A, name, seq)


def _again(history: Builder) -> None:
    """Alice repeats m, which is pushed once more."""
    call = history.invoke("send", A, user=A, conversation="c", client_msg_id="m", payload="p-m", attempt=2)
    history.push(B, message(2, A, "m"), "bob-2")
    history.record("ok", "send", A, call=call, seq=2, duplicate=True, connection="alice-1")


def test_an_old_entry_pushed_again_to_somebody_who_just_came_proves_nothing() -> None:
    history = _chat()
    _three(history)
    history.record("ok", "connect", B, user=B, connection="bob-2")
    _again(history)
    history.send(A, "p", 5)
    history.push(B, message(5, A, "p"), "bob-2")
    _expect(history)


def test_an_old_entry_pushed_again_while_resuming_is_no_skip() -> None:
    history = _chat()
    _three(history)
    call = _resuming(history)
    _again(history)
    _synced(history, call, 2, 4, message(2, A, "m"), message(3, A, "n"), message(4, A, "o"))
    history.send(A, "p", 5)
    history.push(B, message(5, A, "p"), "bob-2")
    _expect(history)


def test_an_entry_that_fell_between_a_sync_and_the_pushes_is_a_poll_skip() -> None:
    history = _chat()
    _three(history)
    call = _resuming(history)
    history.push(B, message(4, A, "o"), "bob-2")
    _synced(history, call, 2, 2, message(2, A, "m"))
    assert "poll-skip" in check(history.parsed()).names()


def test_buckets_that_follow_each_other_from_page_to_page_have_no_gap() -> None:
    history = _chat()
    history.send(A, "m", 2)
    history.send(A, "n", 3)
    history.page(B, message(3, A, "n", bucket=1))
    history.page(B, FIRST, message(2, A, "m", bucket=0), head=3)
    history.read(B, FIRST, message(2, A, "m", bucket=0), message(3, A, "n", bucket=1), final=True)
    report = check(history.parsed())
    assert report.ok, report.as_text()
    assert report.sometimes["new-bucket"] == 1


def test_resources_that_are_back_and_entries_that_arrived_are_no_leak() -> None:
    history = _chat()
    history.record("info", "resources", "node-1", phase="before", resources={"tasks": 12, "descriptors": 30})
    call = history.invoke("send", A, user=A, conversation="c", client_msg_id="m", payload="p-m", connection="alice-1")
    history.record("info", "disconnect", B, connection="bob-1")
    _resume(history, 1, 1)
    history.record("ok", "send", A, call=call, seq=2)
    history.push(B, message(2, A, "m"), "bob-2")
    history.record("info", "quiet", "harness")
    history.record("info", "resources", "node-1", phase="after", resources={"tasks": 12, "descriptors": 29})
    _expect(history)


def test_resources_without_a_number_from_before_are_not_judged() -> None:
    history = _chat()
    history.record("info", "resources", "node-1", phase="after", resources={"tasks": 13})
    report = check(history.parsed())
    assert report.ok, report.as_text()
    assert report.judged["leak"] == 0


def test_what_was_on_its_way_to_a_member_may_arrive_behind_the_removal() -> None:
    history = _chat()
    history.push(B, FIRST)
    history.send(A, "m", 2)
    history.change("remove", A, "out", 3, B)
    history.push(B, message(2, A, "m"))
    history.push(B, SeenEntry(3, A, "out", kind="removed", users=(B,)))
    _expect(history)


def test_a_removal_told_again_and_an_old_entry_after_the_return_leak_nothing() -> None:
    history = _removed_and_quiet()
    history.push(B, SeenEntry(3, A, "out", kind="removed", users=(B,)))
    history.change("add", A, "in", 4, B)
    history.push(B, SeenEntry(4, A, "in", kind="added", users=(B,)))
    history.push(B, message(2, A, "m"))
    history.record("info", "quiet", "harness")
    _expect(history)
